"""Alerts to receivers outside the run: a file and a webhook. No receiver can stop or slow the run."""

import http.client
import json
import os
import re
import socket
import stat
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from queue import Empty, Full, Queue
from typing import Any

import xxhash

from fledge.errors import FledgeError
from fledge.run.console import Log

LEVELS = ("info", "warning", "error")
QUEUE_SIZE = 1000  # alerts waiting for the receiver; further ones are lost
RETRY_DELAYS = (1.0, 2.0, 4.0, 8.0)  # seconds between the attempts to deliver one alert
TIMEOUT = 5.0  # seconds of one attempt
CLOSE_TIMEOUT = 5.0  # seconds for the waiting alerts when the run ends
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


@dataclass(frozen=True, kw_only=True)
class Alert:
    """One alert. A resumed run that repeats an alert gives it the `id` that it had before."""

    level: str
    message: str
    run: str
    stage: str
    step: int
    evidence: dict[str, Any] = field(default_factory=dict)
    time: float = field(default_factory=time.time)

    @property
    def id(self) -> str:
        """A hash of run, stage, step and message."""
        return xxhash.xxh3_64_hexdigest(f"{self.run}/{self.stage}/{self.step}/{self.message}".encode())

    @property
    def text(self) -> str:
        """The alert as one line for a person."""
        return f"[{self.level}] {self.run}/{self.stage} step {self.step:,}: {self.message}"

    def as_dict(self) -> dict[str, Any]:
        """The alert as receivers get it, with its id and its text."""
        return {"id": self.id, "text": self.text, **asdict(self)}


def payload(alert: Alert, payload_format: str) -> dict[str, Any]:
    """The JSON body that a receiver of this format expects: fledge, slack, feishu, dingtalk or wecom."""
    if payload_format == "feishu":
        return {"msg_type": "text", "content": {"text": alert.text}}
    if payload_format in ("dingtalk", "wecom"):
        return {"msgtype": "text", "text": {"content": alert.text}}
    if payload_format == "slack":
        return {"text": alert.text}
    return alert.as_dict()


def expand_env_vars(text: str, key: str) -> str:
    """The text with `${NAME}` replaced from the environment, so that no secret is written into a recipe or a run.

    Raises FledgeError, with the recipe key, when the environment has no such variable.
    """

    def variable(match: re.Match[str]) -> str:
        value = os.environ.get(match[1])
        if value is None:
            raise FledgeError(f"the environment has no {match[1]}", where=key, hint=f"export {match[1]}=… before the run")
        return value

    return _VARIABLE.sub(variable, text)


def check_url(url: str, key: str) -> None:
    """Raise FledgeError, which does not repeat the address, unless it is http or https with a host and a valid port."""
    try:
        parts = urllib.parse.urlsplit(url)
        port = parts.port
        valid = parts.scheme in ("http", "https") and bool(parts.hostname) and port != 0
        url.encode("ascii") if valid else None
    except ValueError:
        valid = False
    if not valid or any(character.isspace() or ord(character) < 32 for character in url):
        hint = "it is not shown here, because it may be a secret; check it, and the environment variable that it comes from"
        raise FledgeError("this is not a complete address, such as https://host/path", where=key, hint=hint)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> None:
        return None


class _Attempt(urllib.request.HTTPHandler, urllib.request.HTTPSHandler):
    """One attempt to deliver. It ends after TIMEOUT seconds in all, however slowly a receiver sends its answer."""

    def __init__(self) -> None:
        urllib.request.HTTPSHandler.__init__(self)
        self._sockets: list[socket.socket] = []
        self.ran_out = False

    def http_open(self, req: urllib.request.Request) -> Any:
        """Open an http address."""
        return self.do_open(self._watched(http.client.HTTPConnection), req)

    def https_open(self, req: urllib.request.Request) -> Any:
        """Open an https address."""
        return self.do_open(self._watched(http.client.HTTPSConnection), req)

    def _watched(self, kind: Any) -> Any:
        attempt = self

        class Watched(kind):
            def connect(self) -> None:
                create = self._create_connection

                def created(*arguments: Any, **options: Any) -> socket.socket:
                    opened = create(*arguments, **options)
                    attempt._sockets.append(opened.dup())  # TLS takes the socket itself
                    return opened

                self._create_connection = created
                super().connect()

        return Watched

    def _end(self) -> None:
        self.ran_out = True
        for opened in self._sockets:
            with suppress(OSError):
                opened.shutdown(socket.SHUT_RDWR)

    def post(self, request: urllib.request.Request) -> None:
        """Send the request. Raises what urllib raises, and TimeoutError."""
        opener = urllib.request.OpenerDirector()
        for handler in (urllib.request.ProxyHandler(), self, _NoRedirect(),
                        urllib.request.HTTPDefaultErrorHandler(), urllib.request.HTTPErrorProcessor()):  # fmt: skip
            opener.add_handler(handler)
        timer = threading.Timer(TIMEOUT, self._end)
        timer.daemon = True
        timer.start()
        try:
            opener.open(request, timeout=TIMEOUT).close()
        except (OSError, http.client.HTTPException):
            if not self.ran_out:
                raise
        finally:
            timer.cancel()
            for opened in self._sockets:
                opened.close()
        if self.ran_out:  # also after headers that ended with the connection
            raise TimeoutError(f"no complete answer in {TIMEOUT:g} s")


class Webhook:
    """Posts alerts in order, in its own thread. Each alert is tried until the receiver accepts it, at most five times.

    No message of it holds the address or a header: they may be secrets.
    """

    def __init__(self, url: str, headers: dict[str, str], payload_format: str, log: Log) -> None:
        """Start the thread. Raises FledgeError when URL or header are unusable, or name a missing environment variable."""
        self.payload_format, self.log = payload_format, log
        self.url = expand_env_vars(url, "alerts.webhook.url")
        check_url(self.url, "alerts.webhook.url")
        self.headers = {name: expand_env_vars(value, f"alerts.webhook.headers.{name}") for name, value in headers.items()}
        for name, value in self.headers.items():
            if not (name.isascii() and name.isprintable() and value.isascii() and value.isprintable()):
                raise FledgeError("a header is plain text without line breaks", where=f"alerts.webhook.headers.{name}")
        self.queue: Queue[Alert | None] = Queue(QUEUE_SIZE)
        self.lost = 0
        self._sending = False
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._work, name="fledge-webhook", daemon=True)
        self._thread.start()

    def send(self, alert: Alert) -> None:
        """Queue an alert without waiting. The alert is lost when the queue is full."""
        try:
            self.queue.put_nowait(alert)
        except Full:
            self.lost += 1

    def _work(self) -> None:
        while (alert := self.queue.get()) is not None:
            self._sending = True
            problem = self._deliver(alert)
            self._sending = False
            if problem is not None:
                self.lost += 1
                self.log(f"warning: an alert of step {alert.step:,} could not be delivered: {problem}")

    def _deliver(self, alert: Alert) -> str | None:
        """None when the receiver has accepted the alert, else the problem."""
        problem = None
        for pause in (*RETRY_DELAYS, None):
            problem, retryable = self._post(alert)
            if problem is None or not retryable or pause is None or self._ending.wait(pause):
                break
        return problem

    def _post(self, alert: Alert) -> tuple[str | None, bool]:
        """The problem of one attempt (None: accepted), and whether a further attempt may succeed."""
        try:
            data = json.dumps(payload(alert, self.payload_format), ensure_ascii=False).encode("utf-8", "backslashreplace")
            headers = {"Content-Type": "application/json; charset=utf-8", "Idempotency-Key": alert.id, **self.headers}
            _Attempt().post(urllib.request.Request(self.url, data, headers, method="POST"))
            return None, False
        except urllib.error.HTTPError as error:
            with error:
                return f"HTTP {error.code}", error.code >= 500 or error.code in (408, 425, 429)
        except OSError as error:
            cause = getattr(error, "reason", error)
            known = isinstance(cause, OSError) and (cause.strerror or isinstance(cause, TimeoutError))
            return (str(cause) if known else type(cause).__name__), True
        except http.client.HTTPException as error:
            return f"its answer is not HTTP ({type(error).__name__})", True
        except Exception as error:  # the thread goes on with the next alert
            return f"{type(error).__name__}", False

    def close(self) -> None:
        """Wait briefly for the queued alerts, and log how many were not delivered."""
        try:
            self.queue.put_nowait(None)
            self._thread.join(CLOSE_TIMEOUT)
        except Full:
            pass
        self._ending.set()
        undelivered = self.lost + self._sending
        while True:
            try:
                undelivered += self.queue.get_nowait() is not None
            except Empty:
                break
        if undelivered:
            self.log(f"warning: {undelivered} alert{'s' if undelivered > 1 else ''} could not be delivered to the webhook")


def check_alert_file(file: Path) -> None:
    """Raise FledgeError for a path that is no file to append to: a folder, or a pipe whose writer would wait for a reader."""
    try:
        mode = file.stat().st_mode
    except OSError:
        return
    if not (stat.S_ISREG(mode) or stat.S_ISCHR(mode)):
        raise FledgeError("this is not a file: a folder, a pipe or a socket", where="alerts.file", hint="name a file")


class Alerts:
    """The receivers of a run's alerts. Alerts below `level` are not sent."""

    def __init__(self, run: str, level: str, file: Path | None, webhook: Webhook | None, log: Log) -> None:
        self.run, self.level, self.file, self.webhook, self.log = run, level, file, webhook, log
        self._file_failed = False

    def send(self, level: str, message: str, stage: str, step: int, evidence: dict[str, Any]) -> None:
        """Send an alert to every receiver, unless its level is too low."""
        if LEVELS.index(level) < LEVELS.index(self.level):
            return
        alert = Alert(level=level, message=message, run=self.run, stage=stage, step=step, evidence=evidence)
        if self.file is not None:
            self._append(self.file, alert)
        if self.webhook is not None:
            self.webhook.send(alert)

    def _append(self, file: Path, alert: Alert) -> None:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            check_alert_file(file)
            number = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_NONBLOCK", 0), 0o666)
            with os.fdopen(number, "a", encoding="utf-8", errors="backslashreplace") as lines:
                lines.write(json.dumps(alert.as_dict(), ensure_ascii=False) + "\n")
        except (OSError, FledgeError) as error:
            if not self._file_failed:
                self.log(f"warning: alerts cannot be written to {file}: {getattr(error, 'strerror', None) or error}")
            self._file_failed = True

    def close(self) -> None:
        """Close the receivers."""
        if self.webhook is not None:
            self.webhook.close()
