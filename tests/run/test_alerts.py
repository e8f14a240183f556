"""Alerts reach their receivers once, and no receiver can harm a run."""

import json
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest

from fledge.errors import FledgeError
from fledge.run import alerts as module
from fledge.run.alerts import Alerts, Webhook, body


class Receiver(HTTPServer):
    """Loopback; answers with the codes it is given, then with 200."""

    def __init__(self, codes: list[int]) -> None:
        self.codes, self.taken = list(codes), []  # type: ignore[var-annotated]
        super().__init__(("127.0.0.1", 0), _Handler)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/alerts"


class _Handler(BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        server: Any = self.server
        content = self.rfile.read(int(self.headers["Content-Length"]))
        code = server.codes.pop(0) if server.codes else 200
        server.taken.append((code, dict(self.headers), json.loads(content)))
        self.send_response(code)
        if code in (301, 302):
            self.send_header("Location", server.url)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def receiver() -> Iterator[Callable[..., Receiver]]:
    made: list[Receiver] = []

    def make(*codes: int) -> Receiver:
        server = Receiver(list(codes))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        made.append(server)
        return server

    yield make
    for server in made:
        server.shutdown()
        server.server_close()


@pytest.fixture(autouse=True)
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PAUSES", (0.01, 0.01))
    monkeypatch.setattr(module, "TIMEOUT", 1.0)
    monkeypatch.setattr(module, "GRACE", 3.0)


def _alerts(url: str, said: list[str], **more: Any) -> Alerts:
    hook = Webhook(url, more.pop("headers", {}), more.pop("form", "fledge"), said.append)
    return Alerts("mine", more.pop("level", "warning"), more.pop("file", None), hook, said.append)


def test_each_alert_arrives_once_with_level_cause_evidence_and_step(receiver: Callable[..., Receiver], tmp_path: Path) -> None:
    server, said = receiver(), []
    alerts = _alerts(server.url, said, file=tmp_path / "a" / "alerts.jsonl")
    alerts.send("warning", "the loss spiked", "sft", 12, {"value": 9.5})
    alerts.send("info", "nothing much", "sft", 13, {})
    alerts.send("error", "梯度不是有限数", "sft", 14, {"rows": [{"where": "a.jsonl:3", "loss": None}]})
    alerts.close()
    assert [(one["level"], one["step"], one["run"], one["stage"]) for _, _, one in server.taken] == [
        ("warning", 12, "mine", "sft"), ("error", 14, "mine", "sft"),
    ]  # fmt: skip
    assert server.taken[1][2]["message"] == "梯度不是有限数" and server.taken[0][2]["evidence"] == {"value": 9.5}
    assert len({headers["Idempotency-Key"] for _, headers, _ in server.taken}) == 2
    lines = [json.loads(line) for line in (tmp_path / "a" / "alerts.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [one["id"] for one in lines] == [one["id"] for _, _, one in server.taken]
    assert said == []


def test_a_receiver_that_is_busy_is_asked_again_and_one_that_refuses_is_not(receiver: Callable[..., Receiver]) -> None:
    server, said = receiver(503, 429, 200, 403), []
    alerts = _alerts(server.url, said)
    alerts.send("error", "first", "s", 1, {})
    alerts.send("error", "second", "s", 2, {})
    alerts.close()
    assert [(code, one["message"]) for code, _, one in server.taken] == [
        (503, "first"), (429, "first"), (200, "first"), (403, "second"),
    ]  # fmt: skip
    assert said[0] == "warning: an alert of step 2 could not be delivered: HTTP 403"


def test_nobody_is_redirected(receiver: Callable[..., Receiver]) -> None:
    server, said = receiver(302), []
    alerts = _alerts(server.url, said)
    alerts.send("error", "first", "s", 1, {})
    alerts.close()
    assert [code for code, _, _ in server.taken] == [302] and "HTTP 302" in said[0]


def test_a_dead_receiver_costs_nothing_and_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    alerts = _alerts("http://127.0.0.1:9/", said)
    started = time.monotonic()
    for step in range(2000):
        alerts.send("error", "x", "s", step, {})
    assert time.monotonic() - started < 1.0
    monkeypatch.setattr(module, "GRACE", 0.2)
    started = time.monotonic()
    alerts.close()
    assert time.monotonic() - started < 2.0
    assert said[-1].endswith("alerts could not be delivered to the webhook")
    assert int(said[-1].split()[1]) + sum("of step" in line for line in said) >= 1990


def test_secrets_come_from_the_environment(receiver: Callable[..., Receiver], monkeypatch: pytest.MonkeyPatch) -> None:
    server, said = receiver(), []
    monkeypatch.setenv("HOOK", server.url)
    monkeypatch.setenv("TOKEN", "s3cret")
    alerts = _alerts("${HOOK}?a=1", said, headers={"Authorization": "Bearer ${TOKEN}"})
    alerts.send("error", "x", "s", 1, {})
    alerts.close()
    assert server.taken[0][1]["Authorization"] == "Bearer s3cret"
    with pytest.raises(FledgeError, match="the environment has no ABSENT_ONE") as caught:
        _alerts("${ABSENT_ONE}", said)
    assert caught.value.where == "alerts.webhook.url"


@pytest.mark.parametrize(
    ("form", "path"),
    [("slack", ("text",)), ("feishu", ("content", "text")), ("dingtalk", ("text", "content")), ("wecom", ("text", "content"))],
)
def test_the_forms_of_common_receivers(form: str, path: tuple[str, ...]) -> None:
    found: Any = body(module.Alert("error", "boom", "mine", "sft", 3), form)
    for key in path:
        found = found[key]
    assert found == "[error] mine/sft step 3: boom"


def test_a_file_that_cannot_be_written_is_told_once(tmp_path: Path) -> None:
    said: list[str] = []
    (tmp_path / "f").write_text("")
    alerts = Alerts("mine", "warning", tmp_path / "f" / "alerts.jsonl", None, said.append)
    for step in range(3):
        alerts.send("error", "x", "s", step, {})
    assert len(said) == 1 and "alerts cannot be written" in said[0]
