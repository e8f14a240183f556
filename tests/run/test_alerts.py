"""Alerts reach their receivers exactly once, and no receiver can harm a run."""

import json
import os
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from fledge.errors import FledgeError
from fledge.run import alerts as module
from fledge.run.alerts import Alerts, Webhook, payload


class Receiver(HTTPServer):
    """An HTTP server on this machine. It answers with the given status codes, then with 200."""

    def __init__(self, codes: list[int]) -> None:
        self.codes, self.requests = list(codes), []  # type: ignore[var-annotated]
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        """The address that alerts are posted to."""
        return f"http://127.0.0.1:{self.server_port}/alerts"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server: Any = self.server
        content = self.rfile.read(int(self.headers["Content-Length"]))
        code = server.codes.pop(0) if server.codes else 200
        server.requests.append((code, dict(self.headers), json.loads(content)))
        self.send_response(code)
        if code in (301, 302):
            self.send_header("Location", server.url)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[Callable[..., Receiver]]:
    """Starts receivers, and stops them after the test."""
    servers: list[Receiver] = []

    def make(*codes: int) -> Receiver:
        server = Receiver(list(codes))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return server

    yield make
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def short_delays(monkeypatch: pytest.MonkeyPatch) -> None:
    """Retries without long pauses."""
    monkeypatch.setattr(module, "RETRY_DELAYS", (0.01, 0.01))
    monkeypatch.setattr(module, "TIMEOUT", 1.0)
    monkeypatch.setattr(module, "CLOSE_TIMEOUT", 3.0)


def _alerts(url: str, messages: list[str], **more: Any) -> Alerts:
    hook = Webhook(url, more.pop("headers", {}), more.pop("payload_format", "fledge"), messages.append)
    return Alerts("mine", more.pop("level", "warning"), more.pop("file", None), hook, messages.append)


def test_each_alert_arrives_once_with_level_cause_evidence_and_step(receiver: Callable[..., Receiver], tmp_path: Path) -> None:
    server, messages = receiver(), []
    alerts = _alerts(server.url, messages, file=tmp_path / "a" / "alerts.jsonl")
    alerts.send("warning", "the loss spiked", "sft", 12, {"value": 9.5})
    alerts.send("info", "nothing much", "sft", 13, {})
    alerts.send("error", "梯度不是有限数", "sft", 14, {"rows": [{"where": "a.jsonl:3", "loss": None}]})
    alerts.close()
    assert [(one["level"], one["step"], one["run"], one["stage"]) for _, _, one in server.requests] == [
        ("warning", 12, "mine", "sft"), ("error", 14, "mine", "sft"),
    ]  # fmt: skip
    assert server.requests[1][2]["message"] == "梯度不是有限数" and server.requests[0][2]["evidence"] == {"value": 9.5}
    assert len({headers["Idempotency-Key"] for _, headers, _ in server.requests}) == 2
    lines = [json.loads(line) for line in (tmp_path / "a" / "alerts.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [one["id"] for one in lines] == [one["id"] for _, _, one in server.requests]
    assert messages == []


def test_delivery_is_retried_when_the_receiver_is_busy_but_not_when_it_rejects(receiver: Callable[..., Receiver]) -> None:
    server, messages = receiver(503, 429, 200, 403), []
    alerts = _alerts(server.url, messages)
    alerts.send("error", "first", "s", 1, {})
    alerts.send("error", "second", "s", 2, {})
    alerts.close()
    assert [(code, one["message"]) for code, _, one in server.requests] == [
        (503, "first"), (429, "first"), (200, "first"), (403, "second"),
    ]  # fmt: skip
    assert messages[0] == "warning: an alert of step 2 could not be delivered: HTTP 403"


def test_redirects_are_not_followed(receiver: Callable[..., Receiver]) -> None:
    server, messages = receiver(302), []
    alerts = _alerts(server.url, messages)
    alerts.send("error", "first", "s", 1, {})
    alerts.close()
    assert [code for code, _, _ in server.requests] == [302] and "HTTP 302" in messages[0]


def test_an_unreachable_receiver_does_not_delay_the_run_and_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    messages: list[str] = []
    alerts = _alerts("http://127.0.0.1:9/", messages)
    started = time.monotonic()
    for step in range(2000):
        alerts.send("error", "x", "s", step, {})
    assert time.monotonic() - started < 1.0
    monkeypatch.setattr(module, "CLOSE_TIMEOUT", 0.2)
    started = time.monotonic()
    alerts.close()
    assert time.monotonic() - started < 2.0
    assert messages[-1].endswith("alerts could not be delivered to the webhook")
    assert int(messages[-1].split()[1]) + sum("of step" in line for line in messages) >= 1990


def test_secrets_in_url_and_headers_come_from_environment_variables(
    receiver: Callable[..., Receiver], monkeypatch: pytest.MonkeyPatch
) -> None:
    server, messages = receiver(), []
    monkeypatch.setenv("HOOK", server.url)
    monkeypatch.setenv("TOKEN", "s3cret")
    alerts = _alerts("${HOOK}?a=1", messages, headers={"Authorization": "Bearer ${TOKEN}"})
    alerts.send("error", "x", "s", 1, {})
    alerts.close()
    assert server.requests[0][1]["Authorization"] == "Bearer s3cret"
    with pytest.raises(FledgeError, match="the environment has no ABSENT_ONE") as caught:
        _alerts("${ABSENT_ONE}", messages)
    assert caught.value.where == "alerts.webhook.url"


@pytest.mark.parametrize(
    ("payload_format", "path"),
    [("slack", ("text",)), ("feishu", ("content", "text")), ("dingtalk", ("text", "content")), ("wecom", ("text", "content"))],
)
def test_payload_has_the_form_that_each_receiver_expects(payload_format: str, path: tuple[str, ...]) -> None:
    alert = module.Alert(level="error", message="boom", run="mine", stage="sft", step=3)
    value: Any = payload(alert, payload_format)
    for key in path:
        value = value[key]
    assert value == "[error] mine/sft step 3: boom"


def test_an_unwritable_alert_file_is_reported_once(tmp_path: Path) -> None:
    messages: list[str] = []
    (tmp_path / "f").write_text("")
    alerts = Alerts("mine", "warning", tmp_path / "f" / "alerts.jsonl", None, messages.append)
    for step in range(3):
        alerts.send("error", "x", "s", step, {})
    assert len(messages) == 1 and "alerts cannot be written" in messages[0]


class RawReceiver:
    """A receiver that answers a request with these bytes, one after another with pauses between them."""

    def __init__(self, answer: bytes, pause: float = 0.0) -> None:
        self.answer, self.pause, self.accepted = answer, pause, 0
        self.server = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._serve, daemon=True).start()

    @property
    def url(self) -> str:
        """The address that alerts are posted to."""
        return f"http://127.0.0.1:{self.server.getsockname()[1]}/s3cret"

    def _serve(self) -> None:
        with suppress(OSError):
            while True:
                connection, _ = self.server.accept()
                self.accepted += 1
                with connection, suppress(OSError):
                    connection.recv(65536)
                    for start in range(0, len(self.answer), 1 if self.pause else len(self.answer)):
                        connection.sendall(self.answer[start : start + (1 if self.pause else len(self.answer))])
                        time.sleep(self.pause)


@pytest.mark.parametrize(
    ("answer", "pause", "problem"),
    [
        (b"\x00\xff garbage\r\n\r\n", 0.0, "its answer is not HTTP (BadStatusLine)"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 500 + b"\r\n", 0.0, "its answer is not HTTP (HTTPException)"),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n", 0.0, "its answer is not HTTP (LineTooLong)"),
        (b"HTTP/1.1 200 OK\r\n" + b"X: yyyyyyyy\r\n" * 90, 0.01, "no complete answer in 0.3 s"),
    ],
)
def test_an_answer_that_is_not_http_is_told_and_the_next_alert_is_tried(
    answer: bytes, pause: float, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "TIMEOUT", 0.3)
    receiver, messages = RawReceiver(answer, pause), []
    alerts = _alerts(receiver.url, messages)
    started = time.monotonic()
    alerts.send("error", "first", "s", 1, {})
    alerts.send("error", "second", "s", 2, {})
    alerts.close()
    receiver.server.close()
    assert time.monotonic() - started < 6 and receiver.accepted >= 2
    assert messages[0] == f"warning: an alert of step 1 could not be delivered: {problem}"
    assert messages[1].startswith("warning: an alert of step 2") and not any("s3cret" in line for line in messages)


@pytest.mark.parametrize(
    "value",
    ["s3cret", "file:///s3cret", "data:text/plain,s3cret", "ftp://host/s3cret", "http://", "http://host:99999999/s3cret",
     "http://host:0/s3cret", "http://ho st/s3cret", "https://host/s3cret\r\nX: y", "http://[::1/s3cret", "https://host/密s3cret"],
)  # fmt: skip
def test_an_unusable_address_is_refused_without_showing_it(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK", value)
    with pytest.raises(FledgeError, match="not a complete address") as caught:
        _alerts("${HOOK}", [])
    assert caught.value.where == "alerts.webhook.url" and "s3cret" not in caught.value.text()


def test_a_header_with_a_line_break_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKEN", "s3cret\nX: y")
    with pytest.raises(FledgeError, match="a header is plain text") as caught:
        _alerts("http://127.0.0.1:9/", [], headers={"Authorization": "${TOKEN}"})
    assert "s3cret" not in caught.value.text()


def test_a_pipe_as_alert_file_is_refused_and_never_waited_for(tmp_path: Path) -> None:
    pipe, messages = tmp_path / "pipe", []
    os.mkfifo(pipe)
    with pytest.raises(FledgeError, match="this is not a file"):
        module.check_alert_file(pipe)
    alerts = Alerts("mine", "warning", pipe, None, messages.append)
    alerts.send("error", "x", "s", 1, {})
    assert len(messages) == 1 and "this is not a file" in messages[0]
