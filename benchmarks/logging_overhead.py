"""The cost of logging: the step of the trainer with all events and metrics against bare updates.

Watched: `Trainer` as `fledge train` runs it, with the metrics and update ratios of every step (`logging.every_steps: 1`),
`step` and `system` events, TensorBoard and the console's figures. Bare: equal model, optimizers and batches, by
`BatchLoader` and `TrainStep` alone, with nothing read and nothing written. Evaluation, samples and checkpoints are off on
both sides. The 26M preset, rows of 512 tokens, 2 micro-batches of 8 (so that halves of a batch are compared as well).

Short segments take turns in one process; who begins changes from round to round. `ratio` is the median time of a
watched segment ÷ that of a bare one; `ratio_cpu` is measured in processor time, which other programs disturb less.
`parts` are seconds of a step, each timed by itself; `ratio_of_parts` is their sum, `ratio_shipped` their sum at
`logging.every_steps: 10`, the default. Real text is read from $FLEDGE_DATA or ../shared/data; without it, from the
quickstart's world.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from measure import options, ratios, report
from pretrain import make_recipe
from training import fresh, packed

from fledge.autotune.autotune import autotune, head_kernel
from fledge.autotune.benchmark import wait_for
from fledge.data import PackedDataset
from fledge.model.cost import ModelCost
from fledge.monitor.run_logger import LogTargets
from fledge.objective import CausalLMObjective
from fledge.plan import plan_stage
from fledge.plan.lr_schedule import learning_rate
from fledge.recipe import Recipe
from fledge.recipe.schema import LoggingConfig
from fledge.run import Console, StageDirectory
from fledge.run.stopping import SignalHandler
from fledge.training.batch_loader import BatchLoader
from fledge.training.batch_source import DatasetSource
from fledge.training.context import TrainContext
from fledge.training.metrics import step_metrics, system_metrics
from fledge.training.train_step import StepOutput, TrainStep
from fledge.training.trainer import Trainer

SHIPPED_EVERY = LoggingConfig().every_steps


class Bench:
    """One model, trained by the trainer and by bare updates in turns, both from batch 0 on."""

    def __init__(self, recipe: Recipe, data: PackedDataset, vocab: int, folder: Path) -> None:
        stage = recipe.stages["pretrain"]
        _, self.horizon, self.stage = plan_stage(stage, data, ModelCost(recipe.model, vocab))
        self.model, self.data = fresh(recipe, vocab), data
        batch = data.batch(0, self.stage.batch.micro_batch_rows)
        make = lambda kernel: CausalLMObjective(0.0, kernel)  # noqa: E731
        self.decision = autotune(recipe.runtime, self.model, batch, make, micro_steps=10_000, log=print)
        self.decision.apply(self.model)
        self.device = torch.device(self.decision.device)
        objective, console = CausalLMObjective(kernel=head_kernel(self.decision)), Console(live=False)
        context = TrainContext(
            stage=self.stage,
            horizon=self.horizon,
            seed=0,
            model=self.model,
            objective=objective,
            data=data,
            locate_example=str,
            compute=self.decision,
            log=LogTargets(directory=StageDirectory(folder), config=LoggingConfig(every_steps=1, tensorboard=True)),
            write_model=self._no_model,
            stopping=SignalHandler(print, ""),
        )
        self.trainer = Trainer(context, console)
        self.open = ExitStack()
        self.trainer.start(self.open.enter_context(console.progress("step", self.horizon.steps, 0, 1)))
        self.bare, self.bare_loader, self.bare_step = self._train_step(objective), self._loader(objective), 0
        for one in (self.trainer, self.bare_loader):
            self.open.callback(one.close)

    def _train_step(self, objective: CausalLMObjective) -> TrainStep:
        optimizers, max_grad_norm = self.trainer.trainable.optimizers, self.stage.optimizer.max_grad_norm
        return TrainStep(self.model, objective, optimizers, max_grad_norm=max_grad_norm, seed=0)

    def _loader(self, objective: CausalLMObjective) -> BatchLoader:
        source = DatasetSource(self.data, self.horizon, self.stage.batch.micro_batch_rows, objective.normalizer)
        return BatchLoader(source, self.horizon.steps, self.device)

    @staticmethod
    def _no_model(folder: Path, weights: object) -> None:
        raise AssertionError("no checkpoint is written here")

    def watched(self, steps: int) -> None:
        """Updates as the trainer makes them, with all their events."""
        for _ in range(steps):
            self.trainer.step()
        self.trainer.recorder.flush(self.trainer.state)

    def plain(self, steps: int) -> None:
        """Bare updates, without events."""
        for _ in range(steps):
            batch, _ = self.bare_loader.batch(self.bare_step)
            self.bare(batch, self._lr())
            self.bare_step += 1
        wait_for(self.device.type)

    def _lr(self) -> float:
        return learning_rate(self.bare_step, self.horizon.steps, self.stage.optimizer, self.stage.schedule)

    def phase_seconds(self, repeats: int) -> dict[str, float]:
        """Median seconds of each part of watching a step."""
        seconds_by_phase: dict[str, list[float]] = {}

        def timed(name: str, call: Callable[[], Any]) -> Any:
            wait_for(self.device.type)
            started = time.perf_counter()
            result = call()
            wait_for(self.device.type)
            seconds_by_phase.setdefault(name, []).append(time.perf_counter() - started)
            return result

        state, sources = self.trainer.state, self.data.sources
        for _ in range(repeats):
            output = self._detailed_step()
            timed("update_sizes", self._copy_and_compare)
            if len(output.batch.batches) > 1:
                self._fill_gradients()
                timed("half_norm", self.bare._grad_norm)
                self.model.zero_grad(set_to_none=True)
            values = timed("evidence", lambda o=output: step_metrics(o, state, sources, True))
            resources = timed("resources", lambda o=output: self._resources(o))
            timed("events", lambda v=values, r=resources: self._write(v, r))
            timed("tensorboard", lambda v=values, r=resources: self._draw(v, r))
        return {name: statistics.median(seconds) for name, seconds in seconds_by_phase.items()}

    def _detailed_step(self) -> StepOutput:
        batch, data_seconds = self.bare_loader.batch(self.bare_step)
        self.bare_step += 1
        return self.bare(batch, self._lr(), data_seconds, log_details=True)

    def _copy_and_compare(self) -> None:
        self.bare.update_ratios.before()
        self.bare.update_ratios.after()

    def _fill_gradients(self) -> None:
        for parameter in self.model.parameters():
            parameter.grad = torch.full_like(parameter, 1e-3)

    def _resources(self, output: StepOutput) -> dict:
        recorder, context = self.trainer.recorder, self.trainer.context
        return system_metrics(
            output,
            self.trainer.state,
            total_steps=self.horizon.steps,
            seconds_before=0.0,
            other_seconds={},
            cost=recorder.cost,
            row_length=self.data.packed_length,
            peak_flops=recorder.peak_flops,
            folder=context.log.directory.root,
        )

    def _write(self, values: dict, resources: dict) -> None:
        self.trainer.logger.write("step", self.trainer.state.step, **values)
        self.trainer.logger.write("system", self.trainer.state.step, **resources)

    def _draw(self, values: dict, resources: dict) -> None:
        self.trainer.logger.log_scalars(self.trainer.state.step, {**values, **resources})


Seconds = dict[str, list[float]]


def take_turns(runs: dict[str, Callable[[], None]], rounds: int) -> tuple[Seconds, Seconds]:
    """Wall and processor seconds of each segment; the order changes from round to round."""
    wall: Seconds = {name: [] for name in runs}
    processor: Seconds = {name: [] for name in runs}
    for number in range(rounds):
        order = list(runs) if number % 2 == 0 else list(runs)[::-1]
        for name in order:
            before, started = time.process_time(), time.perf_counter()
            runs[name]()
            wall[name].append(time.perf_counter() - started)
            processor[name].append(time.process_time() - before)
        print(f"round {number + 1}/{rounds} " + ", ".join(f"{name} {wall[name][-1]:.3f} s" for name in runs), flush=True)
    return wall, processor


def main() -> None:
    """Measure and print the results as one line of JSON."""
    parser = options(__doc__ or "")
    parser.add_argument("--rounds", type=int, help="rounds (default 11, with --quick 9)")
    parser.add_argument("--steps", type=int, default=2, help="steps of a segment (default 2)")
    chosen = parser.parse_args()
    rows, context, layers = (4, 256, 2) if chosen.quick else (8, 512, 8)
    rounds = chosen.rounds or (9 if chosen.quick else 11)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        recipe = make_recipe(rows, context, {"num_hidden_layers": layers}, chosen.quick, folder / "world", accumulation=2)
        data, tokenizer = packed(recipe, "pretrain")
        bench = Bench(recipe, data, tokenizer.vocab_size, folder / "pretrain")
        with bench.open:
            for warm in (bench.watched, bench.plain):
                warm(1)
            runs = {"watched": lambda: bench.watched(chosen.steps), "bare": lambda: bench.plain(chosen.steps)}
            wall, processor = take_turns(runs, rounds)
            phase_seconds = bench.phase_seconds(5)
    step = statistics.median(wall["bare"]) / chosen.steps
    rare = phase_seconds["update_sizes"] + phase_seconds.get("half_norm", 0.0)  # only at every `logging.every_steps`-th step
    always = sum(phase_seconds.values()) - rare
    report(
        {
            "ratio": round(statistics.median(wall["watched"]) / statistics.median(wall["bare"]), 4),
            "ratio_cpu": round(statistics.median(processor["watched"]) / statistics.median(processor["bare"]), 4),
            "ratio_of_parts": round(1 + (always + rare) / step, 4),
            "ratio_shipped": round(1 + (always + rare / SHIPPED_EVERY) / step, 4),
            "ranges": {"wall": ratios(wall["watched"], wall["bare"]), "cpu": ratios(processor["watched"], processor["bare"])},
            "bare_step_seconds": round(step, 4),
            "least_step_seconds": {name: round(min(times) / chosen.steps, 4) for name, times in wall.items()},
            "parts_seconds": {phase: round(seconds, 6) for phase, seconds in phase_seconds.items()},
            "parts_share": {phase: round(seconds / step, 5) for phase, seconds in phase_seconds.items()},
            "batch": [rows, context, recipe.stages["pretrain"].batch.gradient_accumulation_steps],
            "rounds": rounds,
            "steps": chosen.steps,
            "decision": bench.decision.as_dict(),
            "quick": chosen.quick,
        }
    )


if __name__ == "__main__":
    main()
