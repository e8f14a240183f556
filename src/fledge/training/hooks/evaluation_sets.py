"""Evaluation sets while a stage trains."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from fledge.checkpoint.state import TrainState
from fledge.model.protocol import LanguageModel
from fledge.training.hooks.hook import HookContext

RunSets = Callable[[LanguageModel, int, Sequence[str]], dict[str, float]]
"""Evaluates sets and writes their results: (model, number of updates, names of the sets) -> metrics `<set>/<metric>`."""


@dataclass(frozen=True, kw_only=True)
class EvaluationSets:
    """Evaluates each set at its interval (name → steps), with the averaged weights if the stage averages weights."""

    run_sets: RunSets
    every_steps: Mapping[str, int]

    def _due_sets(self, step: int) -> list[str]:
        return [name for name, interval in self.every_steps.items() if step > 0 and step % interval == 0]

    def due(self, state: TrainState) -> bool:
        """Whether a set is to be evaluated after this step, once."""
        return state.last_set_step < state.step and bool(self._due_sets(state.step))

    def run(self, context: HookContext) -> None:
        """Evaluate the sets on the main process while other ranks wait, and write the `sets` event."""
        started, state = time.monotonic(), context.state
        state.last_set_step = state.step
        measured: dict[str, float] | None = None
        with context.trainable.averaged():
            model = context.trainable.full_model()
            if model is not None and context.ranks.is_main_process:
                measured = self.run_sets(model, state.step, self._due_sets(state.step))
            context.ranks.barrier()
        context.add_seconds("evaluate", time.monotonic() - started)
        if measured is None:
            return
        values = {f"sets/{name}": value for name, value in measured.items()}
        context.logger.write("sets", state.step, **values)
        context.logger.log_scalars(state.step, values)
