"""Hooks of the trainer: they run when they are due, also after a resume, and change nothing that is learned."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from torch import Tensor

from fledge.autotune.compute_config import ComputeConfig
from fledge.checkpoint.state import TrainState
from fledge.monitor.run_logger import LogTargets
from fledge.objective import CausalLMObjective
from fledge.plan.horizon import TrainingHorizon
from fledge.recipe.schema import PretrainStage
from fledge.run import Console, StageDirectory, read_events
from fledge.run.stopping import SignalHandler
from fledge.training.context import TrainContext
from fledge.training.hooks import Hook, HookContext, PromptTests
from fledge.training.trainer import Trainer
from tests.support.decoders import make_decoder
from tests.support.packed import pack, random_sequences

STEPS = 9
LENGTHS = [32, 9, 20, 33, 5, 17, 30, 28, 25, 31, 12, 39]
STAGE = {
    "kind": "pretrain",
    "data": {"train": "x"},
    "optimizer": {"name": "adamw", "learning_rate": 1e-3, "betas": [0.9, 0.95], "weight_decay": 0.1},
    "checkpoint": {"every_steps": 3},
}


class Killed(BaseException):
    """The end of the process: no handler catches it."""


@dataclass
class EveryN:
    """A hook that counts every n-th step, and may kill the process or finish the stage at a given step."""

    n: int
    killed_at: int | None = None
    finished_at: int | None = None
    ran_at: list[int] = field(default_factory=list)

    def due(self, state: TrainState) -> bool:
        """Whether the step is a multiple of n."""
        return state.step % self.n == 0

    def run(self, context: HookContext) -> None:
        """Count the step; kill the process or finish the stage at its step."""
        step = context.state.step
        if step == self.killed_at:
            raise Killed
        self.ran_at.append(step)
        context.logger.write("counted", step, steps=step)
        if step == self.finished_at:
            context.finish_stage("counted enough")


def train(folder: Path, *hooks: Hook) -> TrainState:
    """Train a small model in a folder, from the newest checkpoint there."""
    model = make_decoder(dropout=0.1).train()

    def write_model(target: Path, weights: dict[str, Tensor]) -> None:
        model.save_pretrained(target, bos=None, eos=[1], pad=0, weights=weights)

    context = TrainContext(
        stage=PretrainStage.model_validate(STAGE),
        horizon=TrainingHorizon(
            steps=STEPS, rows=4 * STEPS, micro_batch_size=2, gradient_accumulation_steps=2, initial_accumulation_steps=2
        ),
        seed=7,
        model=model,
        objective=CausalLMObjective(),
        data=pack(random_sequences(LENGTHS), packed_length=40),
        locate_example=str,
        compute=ComputeConfig(device="cpu", precision="fp32", attention="blocked", compile=False, threads=1),
        log=LogTargets(directory=StageDirectory(folder)),
        write_model=write_model,
        stopping=SignalHandler(print, ""),
        hooks=hooks,
    )
    return Trainer(context, Console(quiet=True)).run()


def results(folder: Path) -> dict[str, Any]:
    """Everything that a hook must not change."""
    last = folder / "checkpoints" / "last"
    return {
        "weights": (last / "model" / "model.safetensors").read_bytes(),
        "optimizer": (last / "state" / "optimizer.safetensors").read_bytes(),
        "steps": [event for event in read_events(folder / "events.jsonl") if event["kind"] == "step"],
    }


def counted(folder: Path) -> list[int]:
    """The steps of the events that the hook wrote."""
    return [event["step"] for event in read_events(folder / "events.jsonl") if event["kind"] == "counted"]


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The results of training without hooks."""
    folder = tmp_path_factory.mktemp("plain")
    train(folder)
    return results(folder)


def test_a_hook_runs_at_its_steps_and_changes_nothing_that_is_learned(tmp_path: Path, plain: dict[str, Any]) -> None:
    hook = EveryN(2)
    assert train(tmp_path, hook).step == STEPS
    assert hook.ran_at == counted(tmp_path) == [0, 2, 4, 6, 8]
    assert results(tmp_path) == plain


@pytest.mark.parametrize(("killed_at", "again"), [(4, [4, 6, 8]), (8, [6, 8])])
def test_a_resumed_run_calls_the_hook_at_its_steps_and_learns_the_same(
    killed_at: int, again: list[int], tmp_path: Path, plain: dict[str, Any]
) -> None:
    """The newest checkpoints hold steps 3 and 6; at the step of a checkpoint the hook runs once more."""
    with pytest.raises(Killed):
        train(tmp_path, EveryN(2, killed_at=killed_at))
    hook = EveryN(2)
    train(tmp_path, hook)
    assert hook.ran_at == again
    assert results(tmp_path) == plain


def test_hooks_run_in_their_order_and_before_the_checkpoint_of_their_step(tmp_path: Path) -> None:
    order: list[str] = []

    @dataclass
    class Named:
        name: str

        def due(self, state: TrainState) -> bool:
            return state.step == 6

        def run(self, context: HookContext) -> None:
            saved = (tmp_path / "checkpoints" / "step-00000006").exists()
            order.append(f"{self.name} {saved}")
            context.state.failing_prompt_tests = [*(context.state.failing_prompt_tests or []), self.name]

    train(tmp_path, Named("first"), Named("second"))
    assert order == ["first False", "second False"]
    saved = json.loads((tmp_path / "checkpoints" / "step-00000006" / "state" / "trainer.json").read_text())
    assert saved["failing_prompt_tests"] == ["first", "second"]


def test_a_hook_can_end_the_stage_and_its_state_is_saved(tmp_path: Path) -> None:
    state = train(tmp_path, EveryN(2, finished_at=4))
    assert (state.step, state.stop_reason) == (4, "counted enough")
    [stop] = [event for event in read_events(tmp_path / "events.jsonl") if event["kind"] == "stop"]
    assert (stop["step"], stop["reason"]) == (4, "counted enough")
    assert (tmp_path / "checkpoints" / "last").resolve().name == "step-00000004"


def test_prompt_tests_are_compared_with_the_previous_ones_also_after_a_resume(tmp_path: Path) -> None:
    failures = {2: ["a", "b"], 4: ["b"], 6: [], 8: ["a"], 9: ["a"]}
    changes: list[tuple[int, list[str] | None]] = []

    def run_tests(model: Any, step: int, previous: list[str] | None) -> tuple[dict[str, Any], list[str]]:
        changes.append((step, previous))
        passed = 2 - len(failures[step])
        return {"pass_rate": passed / 2, "repetition": 0.0, "passed": passed, "cases": 2}, failures[step]

    hook = PromptTests(run_tests=run_tests, every_steps=2, total_steps=STEPS)
    with pytest.raises(Killed):
        train(tmp_path, hook, EveryN(8, killed_at=8))  # after the tests of step 8, before its checkpoint
    state = train(tmp_path, hook)
    first = [(2, None), (4, ["a", "b"]), (6, ["b"]), (8, [])]
    assert changes == [*first, (8, []), (9, ["a"])]
    assert state.failing_prompt_tests == ["a"] and state.last_prompt_test_step == 9
    events = [event["step"] for event in read_events(tmp_path / "events.jsonl") if event["kind"] == "prompt_tests"]
    assert events == [2, 4, 6, 8, 9]
