"""The run directory: its events, and finding a model in it."""

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fledge.errors import FledgeError
from fledge.run import EventLog, read_events, resolve_model_path, write_json
from fledge.run.console import duration


def test_events_after_the_resumed_step_are_removed_and_an_incomplete_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "events.jsonl"
    log = EventLog(path, 0)
    for step in range(1, 6):
        log.write("step", step, value=step * 0.1)
    log.close()
    with path.open("a") as file:
        file.write('{"kind": "step", "st')
    EventLog(path, 3).write("step", 4, value="again")
    assert [(event["step"], event["value"]) for event in read_events(path)] == [
        (1, 0.1), (2, 0.2), (3, pytest.approx(0.3)), (4, "again"),
    ]  # fmt: skip


@pytest.mark.parametrize("character", ["\u2028", "\u2029", "\x85", "\x0b", "\x0c", "\x1c", "\r", "\n"])
def test_only_a_line_feed_ends_an_event(character: str, tmp_path: Path) -> None:
    text = f"before{character}after"
    log = EventLog(tmp_path / "events.jsonl", 0)
    log.write("prompt_tests", 1, failing=[text])
    log.write("step", 2)
    log.close()
    EventLog(tmp_path / "events.jsonl", 2).close()
    assert [event.get("failing") for event in read_events(tmp_path / "events.jsonl")] == [[text], None]


def test_opening_the_log_at_step_0_empties_it(tmp_path: Path) -> None:
    EventLog(tmp_path / "e", 0).write("step", 1)
    EventLog(tmp_path / "e", 0).write("start", 0)
    assert [event["kind"] for event in read_events(tmp_path / "e")] == ["start"]


def test_the_path_of_a_run_means_the_model_of_its_last_finished_stage(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("")
    for order, stage in enumerate(("zebra", "ant")):
        model = tmp_path / stage / "checkpoints" / "step-1" / "model"
        model.mkdir(parents=True)
        (model / "config.json").write_text("{}")
        figures = {"step": 1, "seconds": 1.0, "wall_seconds": 1, "stop": None}
        write_json(tmp_path / stage / "result.json", {"order": order, "model": "checkpoints/step-1/model", **figures})
    assert resolve_model_path(str(tmp_path)).parts[-4] == "ant"
    assert resolve_model_path(str(tmp_path / "zebra")).parts[-4] == "zebra"
    assert resolve_model_path(str(tmp_path / "zebra" / "checkpoints" / "step-1")).name == "model"


def test_a_missing_run_and_a_run_without_a_model_give_different_errors(tmp_path: Path) -> None:
    with pytest.raises(FledgeError, match="no such run"):
        resolve_model_path(str(tmp_path / "nothing"))
    with pytest.raises(FledgeError, match="neither a run nor a model"):
        resolve_model_path(str(tmp_path))
    (tmp_path / "recipe.yaml").write_text("")
    with pytest.raises(FledgeError, match="no model here yet"):
        resolve_model_path(str(tmp_path))


@given(st.floats(0, 1e6))
@settings(deadline=None)
def test_durations_have_units(seconds: float) -> None:
    assert duration(seconds).endswith((" s", " min"))
