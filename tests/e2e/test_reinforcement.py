"""A grpo stage from a command to its results: it learns, stops and resumes exactly, and says what went wrong."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from fledge.errors import FledgeError
from fledge.generation import Engine
from fledge.pipeline import Pipeline
from fledge.recipe import Recipe, recipe_from_dict
from fledge.run import Console
from fledge.training.rollout_source import RolloutSource
from tests.support import small_runs, tiny_run
from tests.support.command import fledge
from tests.support.killing import run_until_killed
from tests.support.ranks import run_ranks, run_recipe
from tests.support.run_directory import events, final_results

QUIET = Console(quiet=True)


def tree(start: Path, output: Path, **changes: Any) -> dict[str, Any]:
    """The recipe of one grpo stage, as plain data."""
    stage = {
        "init_from": str(start / "model"),
        "data": {"train": str(start / "mixed.jsonl"), "validation": 0.25, "max_seq_len": 64},
        "rewards": ["exact_match", {"rule": "length", "max_tokens": 12, "weight": 0.5}],
        "rollout": {"max_new_tokens": 14, "num_generations": 4},
        "batch": {"micro_batch_size": 2, "gradient_accumulation_steps": 2},
        "optimizer": {"learning_rate": 1e-3},
        "duration": "6 steps",
        "evaluation": {"every_steps": 3},
        "checkpoint": {"every_steps": 2, "keep_last": 9},
        **changes,
    }
    return {"name": "small", "output": str(output), "seed": 3, "runtime": small_runs.RUNTIME, "stages": {"grpo": stage}}


def recipe(start: Path, output: Path, **changes: Any) -> Recipe:
    """The recipe, validated."""
    return recipe_from_dict(tree(start, output, **changes))


def steps_of(run: Path) -> list[dict[str, Any]]:
    """The events of the updates."""
    return events(run, "grpo", "step")


OFF_POLICY: dict[str, Any] = {"rollout": {"max_new_tokens": 14, "num_generations": 4, "updates_per_rollout": 3}}
ADAPTER: dict[str, Any] = {"adapter": {"r": 2}, "beta": 0.1, "optimizer": {"learning_rate": 1e-2}}
VARIANTS: dict[str, dict[str, Any]] = {"on-policy": {}, "three updates a rollout": OFF_POLICY, "adapter and KL": ADAPTER}


@pytest.fixture(scope="session", params=list(VARIANTS))
def whole(request: pytest.FixtureRequest, start: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path]:
    """(variant, run directory) of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    return request.param, Pipeline(recipe(start, folder, **VARIANTS[request.param]), QUIET).run()


KILLS = [
    pytest.param(RolloutSource, "batch", 4, id="before the answers of the fourth update"),
    pytest.param(Engine, "_forward_pass", 60, id="while answers are drawn"),
    pytest.param(RolloutSource, "_assembled", 2, id="after the rewards"),
]


@pytest.mark.parametrize(("owner", "name", "at"), KILLS)
def test_a_killed_run_resumes_bit_for_bit(
    owner: Any, name: str, at: int, whole: tuple[str, Path], start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    variant, finished = whole
    killed = recipe(start, tmp_path, **VARIANTS[variant])
    run_until_killed(killed, at, monkeypatch, owner, name)
    assert final_results(Pipeline(killed, QUIET).run(resume=True), ("grpo",)) == final_results(finished, ("grpo",))


@pytest.mark.parametrize("more", [{}, {"adapter": {"r": 2, "lora_dropout": 0.3}}], ids=["weights", "adapter with dropout"])
def test_a_run_killed_between_the_updates_of_a_rollout_goes_on_with_its_answers(
    more: dict[str, Any], start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest checkpoint is of step 4, and the second rollout, of the updates 4 to 6, was drawn by the weights of step 3."""
    finished = Pipeline(recipe(start, tmp_path / "whole", **OFF_POLICY, **more), QUIET).run()
    first = next(event for event in events(finished, "grpo", "step"))
    assert first["train/clip_ratio/region_mean"] == 0  # the first update has the masks of the old log-probabilities
    killed = recipe(start, tmp_path / "killed", **OFF_POLICY, **more)
    run_until_killed(killed, 6, monkeypatch)
    assert final_results(Pipeline(killed, QUIET).run(resume=True), ("grpo",)) == final_results(finished, ("grpo",))


def test_a_run_stopped_by_sigterm_while_it_draws_saves_and_resumes_bit_for_bit(start: Path, tmp_path: Path) -> None:
    """A reward sends the signal to its own process, and the stop is noticed while equal groups are drawn again."""
    (tmp_path / "stopping.py").write_text(
        "import os, signal\n"
        "CALLS = []\n"
        "def brevity(completions):\n"
        "    CALLS.append(len(completions))\n"
        "    if os.environ.get('STOP_NOW') and len(CALLS) == 2:\n"
        "        os.kill(os.getpid(), signal.SIGTERM)\n"
        "    return [len(text) < 30 for text in completions]\n"
    )
    rollout = {"max_new_tokens": 14, "num_generations": 3, "redraw_equal_groups": 2}
    done = {}
    for name in ("whole", "stopped"):
        values = tree(start, tmp_path / f"{name} runs", rewards=[{"function": "stopping:brevity"}], rollout=rollout)
        command = ["train", str(tiny_run.write(tmp_path / f"{name}.yaml", values)), "--quiet"]
        if name == "stopped":
            ended = fledge(*command, folder=tmp_path, STOP_NOW="1")
            assert (ended.returncode, ended.stderr) == (
                143,
                "fledge: stopped on request after step 0 of 6; the state is saved\n",
            )
            command.append("--resume")
        assert fledge(*command, folder=tmp_path).returncode == 0
        done[name] = final_results(tmp_path / f"{name} runs" / "small", ("grpo",))
    assert done["stopped"] == done["whole"]


def test_the_ratio_is_one_at_the_first_update_of_a_rollout_and_moves_after(start: Path, tmp_path: Path) -> None:
    changes = {**OFF_POLICY, "optimizer": {"learning_rate": 1e-2}, "epsilon": 0.02}
    steps = steps_of(Pipeline(recipe(start, tmp_path, **changes), QUIET).run())
    clipped = [step["train/clip_ratio/region_mean"] for step in steps]
    assert clipped[0] == clipped[3] == 0.0
    assert min(clipped[2], clipped[5]) > 0.01
    assert ["train/reward" in step for step in steps] == [True, False, False, True, False, False]


def test_the_generator_and_the_trained_model_agree(whole: tuple[str, Path]) -> None:
    apart = [step.get("train/sampling/logp_difference") for step in steps_of(whole[1])]
    assert max(value for value in apart if value is not None) < 1e-5


def test_an_update_does_not_depend_on_how_it_is_split(start: Path, tmp_path: Path) -> None:
    runs = [
        Pipeline(recipe(start, tmp_path / str(rows), batch={"micro_batch_size": rows, "gradient_accumulation_steps": 4 // rows},
                        duration="3 steps"), QUIET).run()
        for rows in (1, 4)
    ]  # fmt: skip
    one, four = (steps_of(run) for run in runs)
    for name in ("train/reward", "train/loss", "train/grad_norm", "train/entropy", "train/completions/mean_length"):
        assert [step[name] for step in one] == pytest.approx([step[name] for step in four], abs=2e-5), name


def test_two_processes_draw_and_train_as_one(start: Path, tmp_path: Path) -> None:
    changes = {**OFF_POLICY, "duration": "4 steps"}
    Pipeline(recipe(start, tmp_path / "one", **changes), QUIET).run()
    run_ranks(2, run_recipe, tree(start, tmp_path / "two", **changes))
    one, two = (steps_of(tmp_path / name / "small") for name in ("one", "two"))
    for name in ("train/loss", "train/grad_norm", "train/entropy", "train/tokens", "train/target_tokens"):
        assert [step[name] for step in one] == pytest.approx([step[name] for step in two], abs=2e-5), name
    assert [step.get("train/reward") for step in one] == [step.get("train/reward") for step in two]


def test_rewards_teach_what_they_count(start: Path, tmp_path: Path) -> None:
    """Answers of a model that has learned questions of boxes become the sentence that is rewarded."""
    changes = {
        "data": {"train": str(start / "known.jsonl"), "validation": 0.25, "max_seq_len": 64},
        "rewards": [{"rule": "regex", "pattern": "^Finn"}, {"rule": "length", "max_tokens": 4}],
        "duration": "25 steps", "evaluation": {"every_steps": 25}, "optimizer": {"learning_rate": 5e-3},
    }  # fmt: skip
    run = Pipeline(recipe(start, tmp_path, **changes), QUIET).run()
    before, after = (json.loads((run / "grpo" / "eval" / f"{name}.json").read_text()) for name in ("before", "after"))
    assert after["reward"] > before["reward"] + 0.2
    assert after["rewards/length"] > before["rewards/length"] + 0.2


def test_equal_groups_are_counted_and_drawn_again(start: Path, tmp_path: Path) -> None:
    """A reward of 0 for every answer: no draw differs, and nothing is learned."""
    changes = {"rewards": [{"rule": "regex", "pattern": "^never$"}], "duration": "2 steps"}
    rollout = {**tree(start, tmp_path)["stages"]["grpo"]["rollout"], "redraw_equal_groups": 2}
    steps = steps_of(Pipeline(recipe(start, tmp_path, rollout=rollout, **changes), QUIET).run())
    assert [step["train/frac_reward_zero_std"] for step in steps] == [1.0, 1.0]
    assert [step["train/groups_redrawn"] for step in steps] == [1.0, 1.0]
    assert [step["train/grad_norm"] for step in steps] == [0.0, 0.0]


FAULTS = {
    "raises": ("    raise KeyError('price')", "stages.grpo.rewards.bad: it raised KeyError: 'price' ("),
    "nan": (
        "    return [float('nan')] * len(completions)",
        "stages.grpo.rewards.bad: it gave nan for 16 of 16 answers, such as",
    ),
    "hangs": ("    import time\n    time.sleep(100)", "stages.grpo.rewards.bad: not done with 16 answers after 0.5 s"),
    "too few": ("    return [1.0]", "stages.grpo.rewards.bad: it returned 1 rewards for 16 answers"),
    "none": ("    return None", "stages.grpo.rewards.bad: it returned NoneType None, not a list of numbers"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_reward_that_fails_ends_the_run_with_its_name(
    fault: str, start: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    body, message = FAULTS[fault]
    (tmp_path / f"faulty_{fault.replace(' ', '_')}.py").write_text(f"def bad(completions):\n{body}\n")
    monkeypatch.chdir(tmp_path)
    path = f"faulty_{fault.replace(' ', '_')}:bad"
    changes = {"rewards": [{"function": path}], "reward_timeout": 0.5, "evaluation": {"generated_answers": None}}
    with pytest.raises(FledgeError) as raised:
        Pipeline(recipe(start, tmp_path, metric_for_best_model="loss", **changes), QUIET).run()
    assert str(raised.value).startswith(message), str(raised.value)


def test_masked_answers_that_are_all_cut_end_the_run(start: Path, tmp_path: Path) -> None:
    rollout = {"max_new_tokens": 1, "num_generations": 2}
    with pytest.raises(FledgeError, match="all answers of step 1 are cut at 1 tokens, and mask_truncated leaves none"):
        Pipeline(recipe(start, tmp_path, rollout=rollout, mask_truncated=True), QUIET).run()


def test_guards_report_what_rewards_did_not_mean(start: Path, tmp_path: Path) -> None:
    """Rewarding length makes answers long and wrong, and cut."""
    changes = {
        "rewards": [{"rule": "length", "min_tokens": 30}], "duration": "24 steps", "optimizer": {"learning_rate": 1e-3},
        "rollout": {"max_new_tokens": 30, "num_generations": 4},
        "guards": {"length_hacking": {"window": 5}, "truncated": {"window": 5}}, "evaluation": {"every_steps": 8},
        "data": {"train": str(start / "known.jsonl"), "validation": 0.25, "max_seq_len": 64},
    }  # fmt: skip
    found = {event["check"] for event in events(Pipeline(recipe(start, tmp_path, **changes), QUIET).run(), "grpo", "guard")}
    assert {"reward_hacking", "length_hacking", "truncated"} <= found


def test_metrics_are_finite_numbers(whole: tuple[str, Path]) -> None:
    for step in steps_of(whole[1]):
        assert all(math.isfinite(value) for name, value in step.items() if name.startswith("train/") and value is not None)
