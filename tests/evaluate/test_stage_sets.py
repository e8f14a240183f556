"""Evaluation sets of a stage: asked before, while and after it trains; equal after a resume; checked beforehand."""

import json
from pathlib import Path
from typing import Any

import pytest

from fledge.errors import FledgeError
from fledge.evaluate.records import read_set_result, set_result_files
from fledge.generation.loading import load_model_and_tokenizer
from fledge.recipe import recipe_from_dict
from fledge.run import Console, read_events
from tests.support import small_runs

RULES = "- {prompt: 'Hello number 3!', dimension: knowledge, expect: {contains: [lake]}}\n"


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that knows the greetings, in a folder with rows."""
    return small_runs.start_model(tmp_path_factory.mktemp("rows"))


def rows_of(start: Path) -> Path:
    """The folder of the rows, which `start_model` has written."""
    return next(folder for folder in start.parents if (folder / "known.jsonl").exists())


def stage_of(rows: Path, sets: dict[str, Any], **more: Any) -> dict[str, Any]:
    """A stage of eight steps with evaluation sets."""
    return {
        "kind": "sft", "data": {"train": str(rows / "codes.jsonl"), "validation": 0}, "duration": "6 steps",
        "batch": {"micro_batch_size": 4}, "optimizer": {"learning_rate": 5e-3}, "evaluation": {"every_steps": 3, "sets": sets},
        **more,
    }  # fmt: skip


def sets_of(rows: Path) -> dict[str, Any]:
    """Two sets, of which one is asked while the stage trains."""
    (rows / "rules.yaml").write_text(RULES)
    (rows / "base.txt").write_text("Finn keeps it by the lake.\nHello number five!\n")
    return {
        "greetings": {
            "kind": "answers",
            "path": str(rows / "known.jsonl"),
            "max_samples": 4,
            "max_new_tokens": 16,
            "every_steps": 2,
        },
        "rules": {"kind": "prompts", "path": str(rows / "rules.yaml"), "max_new_tokens": 16},
        "base": {"kind": "text", "path": str(rows / "base.txt")},
    }


def test_sets_are_asked_before_while_and_after_a_stage_trains(start: Path, tmp_path: Path) -> None:
    rows = rows_of(start)
    run = small_runs.train(tmp_path, stage_of(rows, sets_of(rows), init_from=str(start)))
    folder = run / "sft" / "eval"
    moments = {path.name: [file.stem for file in set_result_files(path)] for path in sorted(folder.iterdir()) if path.is_dir()}
    every = ["base", "greetings", "rules"]
    steps = {f"step-{step:08d}": ["greetings"] for step in (2, 4, 6)}
    assert moments == {"before": every, "after": every, **steps}
    before = {name: read_set_result(folder / "before" / f"{name}.json") for name in every}
    assert before["greetings"].metrics["exact_match"].value == 1 and before["rules"].metrics["passed"].value == 1
    events = [event for event in read_events(run / "sft" / "events.jsonl") if event["kind"] == "sets"]
    assert [event["step"] for event in events] == [2, 4, 6]
    for event in events:
        result = read_set_result(folder / f"step-{event['step']:08d}" / "greetings.json")
        assert {f"sets/greetings/{name}": one.value for name, one in result.metrics.items()} == {
            key: value for key, value in event.items() if key.startswith("sets/")
        }
    after = read_set_result(folder / "after" / "base.json")
    assert after.fingerprint == before["base"].fingerprint and [a.id for a in after.items] == [
        b.id for b in before["base"].items
    ]
    assert after.metrics["loss"].value != before["base"].metrics["loss"].value
    model, tokenizer = load_model_and_tokenizer((run / "sft" / "checkpoints" / "last").resolve() / "model")
    from fledge.evaluate.sets.in_stage import load_stage_sets

    recipe = recipe_from_dict({"stages": {"sft": stage_of(rows, sets_of(rows))}})
    again = {one.name: one.evaluate(model, tokenizer) for one in load_stage_sets(recipe, "sft")}
    assert again["base"].metrics == after.metrics and again["base"].items == after.items


def test_a_resumed_run_writes_what_one_without_interruption_does(start: Path, tmp_path: Path) -> None:
    rows = rows_of(start)
    stage = stage_of(rows, sets_of(rows), init_from=str(start), checkpoint={"every_steps": 1, "keep_last": 9})
    whole = small_runs.train(tmp_path / "whole", stage) / "sft"
    broken = small_runs.train(tmp_path / "broken", stage) / "sft"
    (broken / "result.json").unlink()
    for file in (broken / "checkpoints").glob("step-0000000[4-6]"):
        for part in sorted(file.rglob("*"), reverse=True):
            part.rmdir() if part.is_dir() else part.unlink()
        file.rmdir()
    for name in ("last", "best"):
        (broken / "checkpoints" / name).unlink(missing_ok=True)
    small_runs.train(tmp_path / "broken", stage)

    def content(folder: Path) -> dict[str, Any]:
        files = [*folder.glob("eval/*/*.jsonl"), *folder.glob("eval/*/*.json")]
        texts = {str(file.relative_to(folder)): file.read_text() for file in files}
        return {name: {**json.loads(text), "seconds": 0} if name.endswith(".json") else text for name, text in texts.items()}

    assert content(broken) == content(whole)

    def events(folder: Path) -> list[Any]:
        return [event for event in read_events(folder / "events.jsonl") if event["kind"] == "sets"]

    def without_time(found: list[Any]) -> list[Any]:
        return [{key: value for key, value in event.items() if key != "time"} for event in found]

    assert without_time(events(broken)) == without_time(events(whole))


def test_a_set_that_changes_while_a_stage_trains_is_told(
    start: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = rows_of(start)
    stage = stage_of(rows, sets_of(rows), init_from=str(start))
    run = small_runs.train(tmp_path, stage) / "sft"
    (run / "result.json").unlink()
    (rows / "base.txt").write_text("Other texts.\n")
    small_runs.train(tmp_path, stage, Console(live=False))
    told = capsys.readouterr().err
    assert "evaluation set base has changed" in told and "set rules has changed" not in told
    (run / "result.json").unlink()
    (run / "eval" / "before" / "rules.json").write_text("{ damaged")
    small_runs.train(tmp_path, stage, Console(live=False))
    told = capsys.readouterr().err
    assert "a result from before is not read" in told and "rules.json" in told and "evaluation set base has changed" in told
    assert (run / "result.json").exists()


@pytest.mark.parametrize(
    ("sets", "message"),
    [
        ({"a": {"kind": "text", "path": "nothing.txt"}}, "there is no file 'nothing.txt'"),
        ({"a": {"kind": "answers", "path": "long.jsonl"}}, "leaves no room"),
        ({"a": {"kind": "text"}}, "needs path"),
        ({"a": {"kind": "text", "path": "x", "stop": ["y"]}}, "stop belongs to sets of kind generation"),
        ({"a b": {"kind": "text", "path": "x"}}, "a name has letters"),
    ],
)
def test_a_set_that_cannot_be_asked_ends_the_run_before_it_begins(
    start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sets: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    small_runs.write_jsonl(tmp_path / "long.jsonl", [small_runs.dialogue("word " * 100, "x")])
    with pytest.raises(FledgeError, match=message):
        small_runs.train(tmp_path, stage_of(rows_of(start), sets, init_from=str(start)))
    assert not (tmp_path / "small").exists()


def test_a_reward_stage_has_no_sets() -> None:
    stage = {"kind": "reward", "data": {"train": "x"}, "evaluation": {"sets": {"a": {"kind": "text", "path": "x"}}}}
    with pytest.raises(FledgeError, match=r"evaluation\.sets needs answers"):
        recipe_from_dict({"stages": {"reward": stage}})
