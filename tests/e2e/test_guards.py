"""A run with a fault names the bad rows, rolls back and continues; a resumed run does so too."""

import json
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from fledge.checkpoint.async_save import AsyncCheckpointer
from fledge.data import Batch
from fledge.errors import FledgeError
from fledge.model.decoder import Decoder
from fledge.objective import CausalLMObjective, LossOutput
from fledge.pipeline import Pipeline
from fledge.recipe import Recipe, recipe_from_dict
from fledge.run import Console, read_events
from fledge.run.stopping import Interrupted
from fledge.training import trainer
from fledge.training.hooks import Checkpointing
from fledge.training.train_step import TrainStep
from tests.support import tiny_run
from tests.support.bad_rows import poison_one_row
from tests.support.killing import Killed, run_until_killed
from tests.support.run_directory import events, final_results

QUIET = Console(quiet=True)
PRETRAIN = ("pretrain",)


def recipe(world: Path, folder: Path, **guards: Any) -> Recipe:
    """A recipe of pretraining only: 20 steps of 4 rows, a checkpoint every 3 steps."""
    tree = tiny_run.tree(world, folder)
    stage = {**tree["stages"]["pretrain"], "duration": "20 steps", "guards": guards}
    return recipe_from_dict({**tree, "stages": {"pretrain": stage}})


@pytest.fixture
def poison(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes the loss NaN for every batch that holds the first row of update 8."""
    poison_one_row(monkeypatch)


@pytest.mark.usefixtures("poison")
def test_one_bad_update_is_skipped_and_its_rows_are_named(world: Path, tmp_path: Path) -> None:
    run = Pipeline(recipe(world, tmp_path), QUIET).run()
    steps, guards = events(run, "pretrain", "step"), events(run, "pretrain", "guard")
    assert [event["step"] for event in steps] == list(range(1, 21))
    assert [event["step"] for event in steps if event["train/grad_norm"] is None] == [8]
    assert [(one["check"], one["action"], one["step"]) for one in guards] == [("non_finite", "skip", 8)]
    rows = guards[0]["evidence"]["rows"]
    assert rows and all("pretrain.jsonl:" in row["where"] for row in rows) and guards[0]["where"] == rows[0]["where"]


@pytest.mark.usefixtures("poison")
def test_a_bad_row_is_skipped_after_a_rollback(world: Path, tmp_path: Path) -> None:
    guarded = recipe(world, tmp_path / "whole", non_finite={"consecutive": 1})
    run = Pipeline(guarded, QUIET).run()
    steps, guards = events(run, "pretrain", "step"), events(run, "pretrain", "guard")
    assert [event["step"] for event in steps] == list(range(1, 21)) and all(event["train/grad_norm"] for event in steps)
    assert [(one["action"], one["step"]) for one in guards] == [("rollback", 6)]
    evidence = guards[0]["evidence"]
    assert evidence["reached_step"] == 8 and evidence["skipped_rows"] == [[28, 4]]
    rolled_back = [json.loads(line) for line in (run / "pretrain" / "events.rolled_back.1.jsonl").read_text().splitlines()]
    triggered = [event for event in rolled_back if event["kind"] == "guard"]
    assert triggered[0]["step"] == 8 and len(triggered[0]["evidence"]["rows"]) > 0
    assert {event["step"] for event in rolled_back if event["kind"] == "step"} == {7, 8}
    state = json.loads((run / "pretrain" / "checkpoints" / "last" / "state" / "trainer.json").read_text())
    assert state["rollbacks"] == 1 and state["skipped_rows"] == [[28, 4]] and state["step"] == 20


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("at", [2, 7, 9, 10, 13])
def test_a_run_that_was_rolled_back_resumes_bit_for_bit(
    at: int, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The run is killed inside its at-th update: before the fault, after it, or after the rollback."""
    rules = {"non_finite": {"consecutive": 1}}
    expected = final_results(Pipeline(recipe(world, tmp_path / "whole", **rules), QUIET).run(), PRETRAIN)
    run_until_killed(recipe(world, tmp_path / "killed", **rules), at, monkeypatch)
    assert final_results(Pipeline(recipe(world, tmp_path / "killed", **rules), QUIET).run(resume=True), PRETRAIN) == expected


def test_weights_that_became_infinite_are_restored_from_the_last_good_checkpoint(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One flipped bit makes every later update bad, until training is rolled back."""
    step, count = TrainStep._step, 0

    def flipped(updater: TrainStep, *arguments: Any) -> Any:
        nonlocal count
        output = step(updater, *arguments)
        count += 1
        if count == 8:
            with torch.no_grad():
                updater.model.layers[0].mlp.down_proj.weight[0, 0] = float("inf")
        return output

    monkeypatch.setattr(TrainStep, "_step", flipped)
    rules = {"non_finite": {"on_rollback": "lower_lr"}, "rollback": {"lr_factor": 0.25}}
    run = Pipeline(recipe(world, tmp_path, **rules), QUIET).run()
    guards, steps = events(run, "pretrain", "guard"), events(run, "pretrain", "step")
    assert [(one["action"], one["evidence"]["reached_step"], one["first_bad_step"]) for one in guards] == [("rollback", 11, 9)]
    assert guards[0]["step"] == 8 or guards[0]["step"] == 6
    rates = {event["step"]: event["train/lr"] for event in steps}
    plain = events(Pipeline(recipe(world, tmp_path / "plain"), QUIET).run(), "pretrain", "step")
    back = guards[0]["step"]
    for event in plain:
        assert rates[event["step"]] == pytest.approx(event["train/lr"] * (0.25 if event["step"] > back else 1))
    assert all(event["train/grad_norm"] is not None for event in steps)


def test_a_fault_that_persists_ends_the_run_after_the_allowed_rollbacks(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = CausalLMObjective.__call__

    def bad(objective: CausalLMObjective, model: Decoder, batch: Batch) -> LossOutput:
        return LossOutput(call(objective, model, batch).loss * float("nan"))

    monkeypatch.setattr(CausalLMObjective, "__call__", bad)
    with pytest.raises(FledgeError, match="2 rollbacks did not help") as caught:
        Pipeline(recipe(world, tmp_path, rollback={"retries": 2}), QUIET).run()
    assert "the last good state is step 0" in (caught.value.hint or "")
    folder = tmp_path / "tiny" / "pretrain"
    assert (folder / "events.rolled_back.2.jsonl").exists() and not (folder / "events.rolled_back.3.jsonl").exists()


def test_an_update_above_the_gradient_limit_is_skipped_where_the_recipe_says_skip(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    call = TrainStep._gradients

    def large(updater: TrainStep, window: Any, *arguments: Any) -> Any:
        gradients = call(updater, window, *arguments)
        if window.step == 37:
            for parameter in updater.model.parameters():
                parameter.grad.mul_(1000)
        return gradients

    monkeypatch.setattr(TrainStep, "_gradients", large)
    tree = recipe(world, tmp_path, grad_spike="skip").model_dump(mode="json")
    tree["stages"]["pretrain"] |= {
        "duration": "40 steps",
        "optimizer": {"name": "adamw", "learning_rate": 1e-3, "max_grad_norm": None},
    }
    run = Pipeline(recipe_from_dict(tree), QUIET).run()
    guards = events(run, "pretrain", "guard")
    assert [(one["check"], one["action"], one["step"]) for one in guards] == [("grad_spike", "skip", 38)]
    after = events(run, "pretrain", "step")[38]
    assert after["train/loss"] < 7 and guards[0]["evidence"]["value"] > 100 * guards[0]["evidence"]["limit"] / 4


def test_guards_of_a_healthy_run_change_nothing(world: Path, tmp_path: Path) -> None:
    ignored = dict.fromkeys(("grad_spike", "loss_spike", "divergence", "validation_increase", "throughput"), "ignore")
    with_guards = Pipeline(recipe(world, tmp_path / "on"), QUIET).run()
    without = Pipeline(recipe(world, tmp_path / "off", **ignored), QUIET).run()
    assert final_results(with_guards, PRETRAIN) == final_results(without, PRETRAIN)
    assert not events(with_guards, "pretrain", "guard", "alert")


def _die(*_: Any, **__: Any) -> Any:
    raise Killed


@pytest.mark.usefixtures("poison")
@pytest.mark.parametrize("place", ["before the report", "after the report", "before pruning"])
def test_a_run_that_is_killed_in_a_rollback_makes_it_once_more_and_ends_as_if_it_had_made_it_once(
    place: str, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rules = {"non_finite": {"consecutive": 1}}
    whole = Pipeline(recipe(world, tmp_path / "whole", **rules), QUIET).run()
    save, update = Checkpointing.save, AsyncCheckpointer.update_links_and_prune
    with monkeypatch.context() as patch, pytest.raises(Killed):
        if place == "before the report":
            patch.setattr(trainer, "rollback_finding", _die)
        elif place == "after the report":
            patch.setattr(Checkpointing, "save", lambda *a: _die() if a[1].state.rollbacks else save(*a))
        else:
            written = tmp_path / "killed" / "tiny" / "pretrain" / "events.rolled_back.1.jsonl"
            patch.setattr(AsyncCheckpointer, "update_links_and_prune", lambda *a: _die() if written.exists() else update(*a))
        Pipeline(recipe(world, tmp_path / "killed", **rules), QUIET).run()
    again = Pipeline(recipe(world, tmp_path / "killed", **rules), QUIET).run()
    assert final_results(again, PRETRAIN) == final_results(whole, PRETRAIN)
    assert len(events(again, "pretrain", "guard")) == 1
    files = [read_events(run / "pretrain" / "events.rolled_back.1.jsonl") for run in (whole, again)]
    taken_back = [[(one["kind"], one["step"]) for one in file if one["kind"] in ("step", "guard", "eval")] for file in files]
    assert taken_back[0] == taken_back[1]


@pytest.mark.usefixtures("poison")
def test_a_run_that_was_stopped_and_resumed_rolls_back_to_the_checkpoint_that_it_would_have_gone_back_to(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Checkpoints are due after steps 3, 4 and 6; the run is stopped after step 7, and step 8 is bad."""
    rules = {"non_finite": {"consecutive": 1}}
    whole = Pipeline(recipe(world, tmp_path / "whole", **rules), QUIET).run()
    count, step = 0, TrainStep._step

    def signalled(updater: TrainStep, *arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count == 7:
            os.kill(os.getpid(), signal.SIGTERM)
        return step(updater, *arguments)

    stopped = recipe(world, tmp_path / "stopped", **rules)
    with monkeypatch.context() as patch, pytest.raises(Interrupted, match="after step 7"):
        patch.setattr(TrainStep, "_step", signalled)
        Pipeline(stopped, QUIET).run()
    checkpoints = tmp_path / "stopped" / "tiny" / "pretrain" / "checkpoints"
    assert (checkpoints / "step-00000007").exists() and (checkpoints / "step-00000006").exists()
    again = Pipeline(stopped, QUIET).run()
    assert final_results(again, PRETRAIN) == final_results(whole, PRETRAIN)
    assert [event["step"] for event in events(again, "pretrain", "guard")] == [6]
