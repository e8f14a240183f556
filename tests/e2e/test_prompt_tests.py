"""Prompt tests of a run: the failures of the previous test are part of the state that a run resumes from."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from fledge.pipeline import Pipeline
from fledge.recipe import Recipe, recipe_from_dict
from fledge.run import Console
from tests.support import tiny_run
from tests.support.killing import run_until_killed
from tests.support.run_directory import events

QUIET = Console(quiet=True)


def _recipe(world: Path, output: Path) -> Recipe:
    """A recipe of fine-tuning only, with a failing and a passing prompt every two steps."""
    tree = tiny_run.tree(world, output)
    prompts = output / "prompts.yaml"
    output.mkdir(exist_ok=True)
    cases = [
        {"prompt": "你是谁？", "expect": {"exact": ["no model says this"]}},
        {"prompt": "hi", "expect": {"length": {"min": 0}}},
    ]
    prompts.write_text(json.dumps(cases), encoding="utf-8")
    tests = {"prompts": str(prompts), "every_steps": 2, "max_new_tokens": 4}
    tree["stages"] = {"sft": {**tree["stages"]["sft"], "prompt_tests": tests}}
    return recipe_from_dict(tree)


def _prompt_tests(run: Path) -> list[dict[str, Any]]:
    return events(run, "sft", "prompt_tests")


def test_a_resumed_run_compares_its_prompt_tests_with_the_results_before_the_kill(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is killed inside the 8th update; the files of failing cases are removed before it is resumed."""
    uninterrupted = Pipeline(_recipe(world, tmp_path / "whole"), QUIET).run()
    events = _prompt_tests(uninterrupted)
    assert [event["step"] for event in events] == [2, 4, 6, 8]
    assert [event["prompt_tests/passed"] for event in events] == [1, 1, 1, 1]
    assert "prompt_tests/newly_failing" not in events[0]
    assert all(event["prompt_tests/newly_failing"] == event["prompt_tests/newly_passing"] == [] for event in events[1:])
    state = json.loads((uninterrupted / "sft" / "checkpoints" / "last" / "state" / "trainer.json").read_text(encoding="utf-8"))
    assert state["failing_prompt_tests"] == ["你是谁？"]
    [failing] = (uninterrupted / "sft" / "prompt_tests" / "step-00000008.jsonl").read_text(encoding="utf-8").splitlines()
    assert json.loads(failing)["name"] == "你是谁？"

    killed = _recipe(world, tmp_path / "killed")
    run_until_killed(killed, 8, monkeypatch)
    shutil.rmtree(tmp_path / "killed" / "tiny" / "sft" / "prompt_tests")
    assert _prompt_tests(Pipeline(killed, QUIET).run(resume=True)) == events
