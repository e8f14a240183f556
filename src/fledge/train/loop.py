"""The loop: the same for pretraining, fine-tuning and preferences.

Everything random is a function of (seed, step, micro-batch) and the data position is a function of the step, so a
run resumed from any checkpoint goes on exactly as the one that was never interrupted.
"""

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fledge.data import PackedData
from fledge.errors import FledgeError
from fledge.model.cost import Cost
from fledge.model.decoder import Decoder
from fledge.model.experts import update_biases
from fledge.objective import LanguageObjective, PreferenceObjective
from fledge.recipe.schema import PreferenceStage, PretrainStage, SftStage
from fledge.run import Console, EventLog, StageDirectory
from fledge.run.console import Progress, duration, step_line
from fledge.run.startup import Startup
from fledge.train.averaging import COUNT, PREFIX, Average
from fledge.train.checkpoint import (
    TrainState,
    newest_checkpoint,
    optimizer_file,
    point,
    prune,
    save_checkpoint,
    step_name,
)
from fledge.train.evidence import resource_values, step_values
from fledge.train.feed import Feed
from fledge.train.length import Extent
from fledge.train.machine import Decision
from fledge.train.optimizer import build_optimizers, optimizer_tensors, restore_optimizers
from fledge.train.scaling import LossScale
from fledge.train.schedule import learning_rate
from fledge.train.update import OutOfMemory, Update, Updater
from fledge.train.validation import validate

EVALUATIONS = 10  # of a stage, where the recipe does not say
SMALLEST_SCALE = 2.0**-10  # of fp16's loss: below, it is not overflow but divergence
MANY_OVERFLOWS = 10
Objective = LanguageObjective | PreferenceObjective


@dataclass(frozen=True)
class Work:
    """All that a stage's loop needs."""

    stage: PretrainStage | SftStage | PreferenceStage
    model: Decoder
    objective: Objective
    train: PackedData
    validation: PackedData | None
    validation_objective: PreferenceObjective | None
    extent: Extent
    decision: Decision
    directory: StageDirectory
    write_model: Callable[[Path], None]
    seed: int
    log_every: int
    tensorboard: bool
    token_bytes: Tensor | None = None  # [V], for bits per byte
    ready: Callable[[], Startup | None] = lambda: None  # where the time before the first step went, if it is to be told


class Interrupted(FledgeError):
    """Somebody asked the run to stop; its state is saved."""


class Loop:
    """Trains one stage, from the newest checkpoint if there is one."""

    def __init__(self, work: Work, console: Console) -> None:
        self.work, self.console = work, console
        self.optimizers = build_optimizers(work.model, work.stage.optimizer)
        self.average = Average(work.model, work.stage.averaging, work.extent.steps) if work.stage.averaging.decay else None
        self.cost = Cost(work.model.config, work.model.vocab_size)
        self.device = torch.device(work.decision.device)
        self.state = TrainState(by_source=[0] * len(work.train.sources))
        self.every = work.stage.evaluation.every or max(1, math.ceil(work.extent.steps / EVALUATIONS))
        self.save_every = work.stage.checkpoint.every or self.every
        self._saved: int | None = None
        self._pending: tuple[Update, Progress] | None = None
        self._spent: dict[str, float] = {}
        self._overflows = 0
        self._asked_to_stop = False
        self._started = time.monotonic()

    def run(self) -> TrainState:
        """Train to the end of the stage; returns its last state. Raises Interrupted after a polite signal."""
        self._restore()
        work, steps, start = self.work, self.work.extent.steps, self.state.step
        self._started = time.monotonic() - self.state.seconds
        self.updater = Updater(
            work.model, work.objective, self.optimizers, work.stage.optimizer.clip, work.seed, self._loss_scale()
        )
        micro = self.state.micro or work.stage.batch.rows
        self.feed = Feed(work.train, work.extent, micro, work.objective.weight, self.device)
        self.events = EventLog(work.directory.events, start)
        self.board = self._board()
        if start == 0:
            self.events.write("start", 0, steps=steps, rows=work.extent.rows)
        work.model.train()
        try:
            with self._signals(), self.console.progress("step", steps, start, work.log_every) as progress:
                while self.state.step < steps and self.state.stop is None:
                    self._step(progress)
                    self._after_step()
                    if self._asked_to_stop:
                        self._save()
                        raise Interrupted(
                            f"stopped on request after step {self.state.step:,} of {steps:,}; the state is saved",
                            hint="go on with --resume",
                        )
        finally:
            self.feed.close()
            self.events.close()
            if self.board:
                self.board.close()
        return self.state

    def _loss_scale(self) -> LossScale | None:
        if self.work.decision.precision != "fp16":
            return None
        saved = self.state.scale
        if saved is None:
            return LossScale(self.device)
        return LossScale(self.device, saved["scale"], int(saved["good"]), int(saved["skipped"]))

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The model with its averaged weights, where they are averaged."""
        with self.average.applied(self.work.model) if self.average is not None else nullcontext():
            yield

    def _board(self) -> Any:
        if not self.work.tensorboard:
            return None
        from fledge.run.tensorboard import TensorBoard

        return TensorBoard(self.work.directory.root / "tensorboard", self.state.step)

    def _restore(self) -> None:
        def refused(path: Path, problem: str) -> None:
            self.console.say(f"warning: {path} is not used: {problem}", style="yellow")

        found = newest_checkpoint(self.work.directory.checkpoints, refused)
        if found is None:
            return
        from fledge.model.directory import load_model

        path, self.state = found
        saved = load_model(path / "model").state_dict()
        self.work.model.load_state_dict(saved)
        tensors = optimizer_file(path)
        if self.average is not None:
            saved = [name for name in tensors if name.startswith((PREFIX, COUNT))]
            self.average.restore({name: tensors.pop(name) for name in saved}, self.device)
        restore_optimizers(self.work.model, self.optimizers, tensors)
        self._saved = self.state.step
        self._settle(path)
        self.console.say(f"going on from step {self.state.step:,} ({path})")

    def _step(self, progress: Progress) -> None:
        """One update, counted; its events are written when its numbers are at hand."""
        work, step = self.work, self.state.step
        rate = learning_rate(step, work.extent.steps, work.stage.optimizer, work.stage.schedule)
        watch = step % work.log_every == 0
        while True:
            window, waited = self.feed.window(step)
            try:
                update = self.updater(window, rate, waited, watch)
                break
            except OutOfMemory as error:
                self._halve(error)
        if self.average is not None:
            self.average.update(work.model, step)
        if update.routing is not None:
            update_biases(work.model, update.routing, ~update.overflow)
        self._flush()
        state = self.state
        state.step += 1
        state.tokens += window.tokens
        state.supervised_tokens += window.supervised
        state.by_source = [a + b for a, b in zip(state.by_source, window.by_source, strict=True)]
        self._pending = (update, progress)
        if self.device.type == "cpu":  # nothing is on its way there
            self._flush()

    def _halve(self, error: OutOfMemory) -> None:
        """Go on with half the micro-batch: the window, and with it what is learned, stays the same."""
        micro = self.feed.micro
        if micro == 1:
            raise FledgeError(
                f"one row of {self.work.train.row_length:,} tokens does not fit into memory ({error})",
                where="batch.micro",
                hint="set machine.checkpointing to full, a shorter data.context, or a smaller model",
            )
        self.feed.micro = self.state.micro = micro // 2
        message = f"out of memory with micro-batches of {micro} rows: going on with {micro // 2}, the batch stays as it was"
        self.events.write("alert", self.state.step, level="warning", message=message, micro=micro // 2, error=str(error))
        self.console.say(f"warning: {message}", style="yellow")

    def _flush(self) -> None:
        """Write the events of the last update. On a GPU that is one step later, so that nothing waits for the device."""
        if self._pending is None:
            return
        (update, progress), self._pending, state = self._pending, None, self.state
        norm = float(update.norm)
        if not math.isfinite(norm) and (update.scale is None or float(update.scale) < SMALLEST_SCALE):
            self._refuse_to_diverge(norm, update.window.step)
        self._count_overflows(math.isfinite(norm), update)
        clip = self.work.stage.optimizer.clip
        state.clipped += clip is not None and math.isfinite(norm) and norm > clip
        self._record(update, progress)

    def _count_overflows(self, finite: bool, update: Update) -> None:
        """Say where fp16 overflows again and again: such steps learn nothing."""
        self._overflows = 0 if finite else self._overflows + 1
        if self._overflows == MANY_OVERFLOWS and update.scale is not None:
            message = (
                f"fp16 overflowed in {MANY_OVERFLOWS} steps in a row, which learned nothing; loss scale {float(update.scale):g}"
            )
            self.events.write("alert", self.state.step, level="warning", message=message)
            self.console.say(f"warning: {message}", style="yellow")

    def _refuse_to_diverge(self, norm: float, step: int) -> None:
        self.events.write("alert", step, level="error", message=f"gradient norm is {norm} in step {step}")
        kept = newest_checkpoint(self.work.directory.checkpoints)
        raise FledgeError(
            f"the gradient is {norm} in step {step:,}: training diverged",
            where=str(self.work.directory.root),
            hint=f"lower optimizer.lr or lengthen schedule.warmup; the last good state is "
            f"{'step ' + str(kept[1].step) if kept else 'the beginning'}",
        )

    def _record(self, update: Update, progress: Progress) -> None:
        state, work, step = self.state, self.work, self.state.step
        values = step_values(update, state, work.train.sources, work.stage.kind != "preference")
        self.events.write("step", step, **values)
        before, state.seconds = state.seconds, time.monotonic() - self._started
        peak = work.decision.matmul_peak or 0.0
        resources = resource_values(
            update, state, work.extent.steps, before, self._spent, self.cost, work.train.row_length, peak
        )
        self._spent = {}
        self._say_ready(state.seconds - before)
        self.events.write("resource", step, **resources)
        if self.board:
            self.board.write(step, {**values, **resources})
        shown = {"loss": float(update.loss), "perplexity": values.get("train/perplexity") or 0.0, **values, **resources}
        if "rewards/accuracies" in values:
            shown["accuracy"] = values["rewards/accuracies"]
        progress.update(step, step_line(shown))

    def _after_step(self) -> None:
        """Evaluate and save where it is time, and decide whether to stop early."""
        step, improved = self.state.step, False
        last = step == self.work.extent.steps
        if last or self._asked_to_stop or step % self.every == 0 or step % self.save_every == 0:
            self._flush()
        if self.work.validation is not None and (last or step % self.every == 0):
            improved = self._evaluate(self.work.validation)
        if last or improved or self.state.stop or step % self.save_every == 0:
            self._save()

    def _evaluate(self, data: PackedData) -> bool:
        work, stage, state = self.work, self.work.stage, self.state
        started = time.monotonic()
        with self._averaged():
            measured = validate(
                work.model, data, stage.evaluation.max_rows, self.feed.micro, work.validation_objective, work.token_bytes
            )
        self._spend("evaluate", time.monotonic() - started)
        values = {f"eval/{name}": value for name, value in measured.items()}
        self.events.write("eval", state.step, **values)
        if self.board:
            self.board.write(state.step, values)
        loss = measured["loss"]
        improved = state.best_loss is None or loss < state.best_loss - stage.early_stop.threshold
        if improved:
            state.best_loss, state.best_step, state.evaluations_without_gain = loss, state.step, 0
        else:
            state.evaluations_without_gain += 1
        self._early_stop(loss)
        self.console.say(
            f"step {state.step:,}: validation loss {loss:.4f}, perplexity {measured['perplexity']:.4g}, "
            f"token accuracy {measured['token_accuracy']:.1%}"
            + (f", pairs right {measured['rewards/accuracies']:.1%}" if "pairs" in measured else "")
        )
        return improved

    def _spend(self, phase: str, seconds: float) -> None:
        """Time between two steps, for the next `resource` event."""
        self._spent[phase] = self._spent.get(phase, 0.0) + seconds

    def _early_stop(self, loss: float) -> None:
        rule, state = self.work.stage.early_stop, self.state
        if rule.target_loss is not None and loss <= rule.target_loss:
            state.stop = f"validation loss {loss:.4f} reached the target {rule.target_loss}"
        elif rule.patience is not None and state.evaluations_without_gain >= rule.patience:
            state.stop = f"validation loss has not improved for {rule.patience} evaluations"
        if state.stop and state.step < self.work.extent.steps:
            self.events.write("stop", state.step, reason=state.stop)
            self.console.say(f"stopping early at step {state.step:,}: {state.stop}", style="yellow")

    def _save(self) -> None:
        if self._saved == self.state.step:
            return
        self._flush()
        started, folder = time.monotonic(), self.work.directory.checkpoints
        tensors: dict[str, Tensor] = optimizer_tensors(self.work.model, self.optimizers)
        if self.average is not None:
            tensors |= self.average.tensors()
        if self.updater.scale is not None:
            self.state.scale = self.updater.scale.state()
        path, size = save_checkpoint(folder, self.state, self._write_models, tensors)
        self._saved = self.state.step
        self._settle(path)
        spent = time.monotonic() - started
        self._spend("save", spent)
        self.events.write("checkpoint", self.state.step, path=path.name, bytes=size, seconds=round(spent, 3))

    def _write_models(self, folder: Path) -> None:
        """The model as it is, to go on from; and with averaged weights, where they are averaged, to use."""
        self.work.write_model(folder / "model")
        if self.average is not None:
            with self._averaged():
                self.work.write_model(folder / "averaged")

    def _say_ready(self, seconds: float) -> None:
        """What went before the first step, and how long that took itself; once a process."""
        startup = self.work.ready()
        if startup is None:
            return
        startup.parts["first_step"] = seconds
        self.events.write("ready", self.state.step, **startup.as_dict())
        self.console.say(startup.line())

    def _settle(self, path: Path) -> None:
        """Point to the newest and the best checkpoint and remove the rest; also after a kill in between."""
        folder = self.work.directory.checkpoints
        point(folder, "last", path)
        if self.state.best_step is not None and (folder / step_name(self.state.best_step)).exists():
            point(folder, "best", folder / step_name(self.state.best_step))
        prune(folder, self.work.stage.checkpoint.keep, self.state.best_step, self.state.step)

    @contextmanager
    def _signals(self) -> Iterator[None]:
        """SIGINT and SIGTERM end the run at the next whole step, with its state saved; a second one changes nothing."""

        def ask(number: int, frame: Any) -> None:
            if not self._asked_to_stop:
                waited = duration(self.state.seconds / max(1, self.state.step))
                self.console.say(f"stopping after this step (about {waited}); the state will be saved", style="yellow")
            self._asked_to_stop = True

        try:
            before = {number: signal.signal(number, ask) for number in (signal.SIGINT, signal.SIGTERM)}
        except ValueError:  # not in the main thread: signals are somebody else's
            before = {}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
