"""Prompt tests while a stage trains: fixed prompts with rules for their answers."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fledge.checkpoint.state import TrainState
from fledge.model.protocol import LanguageModel
from fledge.training.hooks.hook import HookContext

RunPromptTests = Callable[[LanguageModel, int, list[str] | None], tuple[dict[str, Any], list[str]]]
"""Runs the tests: (model, number of updates, names of the tests that failed last time, None before the first time) -> (figures,
names of the tests that fail now)."""


@dataclass(frozen=True, kw_only=True)
class PromptTests:
    """Runs the prompt tests at their interval (None: no interval) and after the last step, with the averaged weights if the
    stage averages weights."""

    run_tests: RunPromptTests
    every_steps: int | None
    total_steps: int

    def due(self, state: TrainState) -> bool:
        """Whether to run the tests now: at the interval and after the last step, once each."""
        at_interval = self.every_steps is not None and state.step % self.every_steps == 0
        return (at_interval or state.step == self.total_steps) and state.last_prompt_test_step < state.step

    def run(self, context: HookContext) -> None:
        """Run the tests on the main process while other ranks wait, write the `prompt_tests` event, and store the failing
        tests."""
        started, state, step = time.monotonic(), context.state, context.state.step
        measured: dict[str, Any] | None = None
        failing = state.failing_prompt_tests
        state.last_prompt_test_step = step
        with context.trainable.averaged():
            model = context.trainable.full_model()
            if model is not None and context.ranks.is_main_process:
                measured, failing = self.run_tests(model, step, state.failing_prompt_tests)
            state.failing_prompt_tests = context.ranks.broadcast_object(failing)
        if measured is None:
            return
        context.add_seconds("evaluate", time.monotonic() - started)
        context.logger.write("prompt_tests", step, **{f"prompt_tests/{name}": value for name, value in measured.items()})
        context.logger.log_scalars(step, {f"prompt_tests/{name}": measured[name] for name in ("pass_rate", "repetition")})
        changes = {"newly failing": measured.get("newly_failing"), "newly passing": measured.get("newly_passing")}
        context.console.log(
            f"step {step:,}: {measured['passed']} of {measured['cases']} prompt tests pass"
            + "".join(f", {change}: {', '.join(names)}" for change, names in changes.items() if names)
        )
