"""Alerts on their way out of the run: to a file, to a webhook. Whoever receives them can neither stop nor slow a run."""

import json
import os
import re
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from queue import Empty, Full, Queue
from typing import Any

import xxhash

from fledge.errors import FledgeError

LEVELS = ("info", "warning", "error")
WAITING = 1000  # alerts that wait for the receiver, at most
PAUSES = (1.0, 2.0, 4.0, 8.0)  # seconds between attempts
TIMEOUT, GRACE = 5.0, 5.0  # seconds of one attempt; for what is still waiting when the run ends
_VARIABLE = re.compile(r"\$\{([A-Za-z_][A-Za-z0-9_]*)\}")


@dataclass(frozen=True)
class Alert:
    """`id` is the same when the same thing is told again by a resumed run."""

    level: str
    message: str
    run: str
    stage: str
    step: int
    evidence: dict[str, Any] = field(default_factory=dict)
    time: float = field(default_factory=time.time)

    @property
    def id(self) -> str:
        """Of run, stage, step and message."""
        return xxhash.xxh3_64_hexdigest(f"{self.run}/{self.stage}/{self.step}/{self.message}".encode())

    @property
    def text(self) -> str:
        """One line for a person."""
        return f"[{self.level}] {self.run}/{self.stage} step {self.step:,}: {self.message}"

    def as_dict(self) -> dict[str, Any]:
        """What receivers get."""
        return {"id": self.id, "text": self.text, **asdict(self)}


def body(alert: Alert, form: str) -> dict[str, Any]:
    """The JSON that a receiver of this kind reads."""
    if form == "feishu":
        return {"msg_type": "text", "content": {"text": alert.text}}
    if form in ("dingtalk", "wecom"):
        return {"msgtype": "text", "text": {"content": alert.text}}
    if form == "slack":
        return {"text": alert.text}
    return alert.as_dict()


def expand_env_vars(text: str, where: str) -> str:
    """The text with `${NAME}` from the environment, so that no secret is written into a recipe or a run."""

    def value(match: re.Match[str]) -> str:
        found = os.environ.get(match[1])
        if found is None:
            raise FledgeError(f"the environment has no {match[1]}", where=where, hint=f"export {match[1]}=… before the run")
        return found

    return _VARIABLE.sub(value, text)


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> None:
        return None


class Webhook:
    """Posts alerts one after the other, in a thread of its own; each until it is taken or five attempts have failed."""

    def __init__(self, url: str, headers: dict[str, str], form: str, say: Callable[[str], None]) -> None:
        """FledgeError where url or headers name what the environment does not have."""
        self.form, self.say = form, say
        self.url = expand_env_vars(url, "alerts.webhook.url")
        self.headers = {name: expand_env_vars(value, f"alerts.webhook.headers.{name}") for name, value in headers.items()}
        self.waiting: Queue[Alert | None] = Queue(WAITING)
        self.lost = 0
        self._ending = threading.Event()
        self._opener = urllib.request.build_opener(_NoRedirect)
        self._thread = threading.Thread(target=self._work, name="fledge-webhook", daemon=True)
        self._thread.start()

    def send(self, alert: Alert) -> None:
        """Take an alert; never waits."""
        try:
            self.waiting.put_nowait(alert)
        except Full:
            self.lost += 1

    def _work(self) -> None:
        while (alert := self.waiting.get()) is not None:
            problem = self._deliver(alert)
            if problem is not None:
                self.lost += 1
                self.say(f"warning: an alert of step {alert.step:,} could not be delivered: {problem}")

    def _deliver(self, alert: Alert) -> str | None:
        """None when it was taken, else why not."""
        problem = None
        for pause in (*PAUSES, None):
            problem, again = self._post(alert)
            if problem is None or not again or pause is None or self._ending.wait(pause):
                break
        return problem

    def _post(self, alert: Alert) -> tuple[str | None, bool]:
        """Why it was not taken, and whether another attempt may help."""
        data = json.dumps(body(alert, self.form), ensure_ascii=False).encode()
        headers = {"Content-Type": "application/json; charset=utf-8", "Idempotency-Key": alert.id, **self.headers}
        try:
            request = urllib.request.Request(self.url, data, headers, method="POST")
            with self._opener.open(request, timeout=TIMEOUT):
                return None, False
        except urllib.error.HTTPError as error:
            with error:
                return f"HTTP {error.code}", error.code >= 500 or error.code in (408, 425, 429)
        except (OSError, ValueError) as error:
            return str(getattr(error, "reason", error)), not isinstance(error, ValueError)

    def close(self) -> None:
        """Wait a little for what is still to be delivered, and say what was not."""
        try:
            self.waiting.put_nowait(None)
            self._thread.join(GRACE)
        except Full:
            pass
        self._ending.set()
        left = self.lost
        while True:
            try:
                left += self.waiting.get_nowait() is not None
            except Empty:
                break
        if left:
            self.say(f"warning: {left} alert{'s' if left > 1 else ''} could not be delivered to the webhook")


class Alerts:
    """Where the alerts of a run go, beside its events and the console."""

    def __init__(self, run: str, level: str, file: Path | None, webhook: Webhook | None, say: Callable[[str], None]) -> None:
        self.run, self.level, self.file, self.webhook, self.say = run, level, file, webhook, say
        self._file_failed = False

    def send(self, level: str, message: str, stage: str, step: int, evidence: dict[str, Any]) -> None:
        """Tell everybody who wants to know of this level."""
        if LEVELS.index(level) < LEVELS.index(self.level):
            return
        alert = Alert(level, message, self.run, stage, step, evidence)
        if self.file is not None:
            self._append(self.file, alert)
        if self.webhook is not None:
            self.webhook.send(alert)

    def _append(self, file: Path, alert: Alert) -> None:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("a", encoding="utf-8") as lines:
                lines.write(json.dumps(alert.as_dict(), ensure_ascii=False) + "\n")
        except OSError as error:
            if not self._file_failed:
                self.say(f"warning: alerts cannot be written to {file}: {error.strerror}")
            self._file_failed = True

    def close(self) -> None:
        """Let go of the receivers."""
        if self.webhook is not None:
            self.webhook.close()
