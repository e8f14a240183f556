"""events.jsonl survives foreign bytes, a full disk and kills in the middle of a roll-back."""

import json
import resource
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fledge.errors import FledgeError
from fledge.run import EventLog, read_events
from fledge.run.events import rolled_back_file, set_events_aside

FOREIGN = [
    b"\xff\xfe\x00",
    b'{"kind": "step", "step": "\xc3',
    b"[1, 2]",
    b"3",
    b'"text"',
    b"null",
    b'{"step": 3}',
    b"[" * 100_000,
]
FOREIGN += [b'{"kind": "step", "step": true}', b'{"kind": 3, "step": 3}', b'{"kind": "step", "step": 1.5}', b""]


@contextmanager
def disk_of(size: int) -> Iterator[None]:
    """No file may grow beyond this size: a write then fails as on a full disk, and a part of it may be written."""
    before, handler = resource.getrlimit(resource.RLIMIT_FSIZE), signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def _log(path: Path, steps: range) -> EventLog:
    log = EventLog(path, 0)
    for step in steps:
        log.write("step", step, loss=step * 0.5)
    return log


@pytest.mark.parametrize("line", FOREIGN)
def test_a_line_that_is_no_event_is_left_out_told_and_kept(tmp_path: Path, line: bytes) -> None:
    path = tmp_path / "events.jsonl"
    _log(path, range(1, 4)).close()
    good = path.read_bytes()
    first, rest = good.split(b"\n", 1)
    path.write_bytes(first + b"\n" + line + b"\n" + rest)
    log = EventLog(path, 3)
    log.close()
    assert [event["step"] for event in read_events(path)] == [1, 2, 3] and path.read_bytes() == good
    assert len(log.warnings) == 1 and "1 lines" in log.warnings[0]
    assert (tmp_path / "events.damaged.txt").read_bytes() == line + b"\n"


@given(st.lists(st.binary(max_size=30), max_size=5), st.integers(0, 3))
@settings(deadline=None, max_examples=40)
def test_any_bytes_between_events_leave_the_events(
    tmp_path_factory: pytest.TempPathFactory, junk: list[bytes], at: int
) -> None:
    path = tmp_path_factory.mktemp("log") / "events.jsonl"
    _log(path, range(1, 4)).close()
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([*lines[:at], *(b"\xff" + part.replace(b"\n", b"") + b"\n" for part in junk), *lines[at:]]))
    log = EventLog(path, 3)
    log.close()
    assert [event["step"] for event in read_events(path)] == [1, 2, 3] and bool(log.warnings) == bool(junk)


def test_a_log_that_was_deleted_is_told(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl", 40)
    assert len(log.warnings) == 1 and "no events of the 40 steps before" in log.warnings[0]


def test_events_of_a_stage_that_starts_over_are_kept_in_another_file(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    _log(path, range(1, 4)).close()
    earlier = set_events_aside(path)
    assert earlier is not None and len(list(read_events(earlier))) == 3 and not path.exists()
    EventLog(path, 0).write("start", 0)
    assert set_events_aside(path) is None


@pytest.mark.parametrize("room", [0, 1, 17])
def test_events_that_the_disk_refuses_are_written_in_order_when_it_takes_them(tmp_path: Path, room: int) -> None:
    path, said = tmp_path / "events.jsonl", list[str]()
    log = EventLog(path, 0, log=said.append)
    log.write("step", 1, loss=0.5)
    before = path.read_bytes()
    with disk_of(len(before) + room):
        assert log.write("step", 2, loss=float("nan")) == {"kind": "step", "step": 2, "loss": None}
        log.write("step", 3, loss=1.5)
        assert path.read_bytes() == before and not log.flush()
        with pytest.raises(FledgeError, match="disk refuses"):
            log.rewind(1, tmp_path / "removed")
    log.write("step", 4, loss=2.0)
    log.close()
    assert [event["step"] for event in read_events(path)] == [1, 2, 3, 4]
    assert len(said) == 2 and str(path) in said[0] and "kept in memory" in said[0] and "3 events" in said[1]


def test_events_that_are_never_written_are_told_at_the_end(tmp_path: Path) -> None:
    said = list[str]()
    log = EventLog(tmp_path / "events.jsonl", 0, log=said.append)
    with disk_of(0):
        log.write("step", 1)
        log.close()
    assert "the last 1 events could not be written" in said[-1]


def test_a_lone_surrogate_in_a_text_is_written_as_an_escape(tmp_path: Path) -> None:
    log = EventLog(tmp_path / "events.jsonl", 0)
    log.write("alert", 1, message="a\ud800b")
    log.close()
    assert [event["message"] for event in read_events(tmp_path / "events.jsonl")] == ["a\ud800b"]


@pytest.mark.parametrize("killed", ["before the cut", "after the cut", "after the report"])
def test_a_rollback_that_is_not_in_the_state_is_undone(tmp_path: Path, killed: str) -> None:
    """The run goes on from a checkpoint of before the roll-back; its events are those that it had."""
    path = tmp_path / "events.jsonl"
    log = _log(path, range(1, 9))
    whole = path.read_bytes()
    log.rewind(3, rolled_back_file(tmp_path, 1))
    if killed == "after the report":
        log.write("guard", 3, action="rollback", evidence={"rollbacks": 1})
    log.close()
    if killed == "before the cut":
        path.write_bytes(whole)
    again = EventLog(path, 6, rollbacks=0)
    again.close()
    assert [event["step"] for event in read_events(path)] == [1, 2, 3, 4, 5, 6] and not rolled_back_file(tmp_path, 1).exists()


def test_a_rollback_that_is_in_the_state_stays(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = _log(path, range(1, 9))
    log.rewind(3, rolled_back_file(tmp_path, 1))
    log.write("guard", 3, action="rollback", evidence={"rollbacks": 1})
    log.write("step", 4)
    log.close()
    EventLog(path, 3, rollbacks=1).close()
    assert [(event["kind"], event["step"]) for event in read_events(path)][-1] == ("guard", 3)
    assert len([json.loads(line) for line in rolled_back_file(tmp_path, 1).read_text().splitlines()]) == 5
