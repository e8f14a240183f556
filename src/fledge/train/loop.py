"""The loop: the same for pretraining, fine-tuning and preferences.

Everything random is a function of (seed, step, micro-batch) and the data position is a function of the step, so a
run resumed from any checkpoint goes on exactly as the one that was never interrupted.
"""

import math
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fledge.data import Batch, PackedData
from fledge.errors import FledgeError
from fledge.model.decoder import Decoder
from fledge.objective import LanguageObjective, Outcome, PreferenceObjective
from fledge.recipe.schema import PreferenceStage, PretrainStage, SftStage
from fledge.run import Console, EventLog, StageDirectory, memory_bytes
from fledge.run.console import Progress, duration, step_line
from fledge.train.checkpoint import (
    TrainState,
    newest_checkpoint,
    optimizer_file,
    point,
    prune,
    save_checkpoint,
    step_name,
)
from fledge.train.length import Extent
from fledge.train.machine import Decision
from fledge.train.optimizer import build_optimizers, optimizer_tensors, restore_optimizers
from fledge.train.schedule import learning_rate
from fledge.train.validation import validate

EVALUATIONS = 10  # of a stage, where the recipe does not say
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


class Interrupted(FledgeError):
    """Somebody asked the run to stop; its state is saved."""


class Loop:
    """Trains one stage, from the newest checkpoint if there is one."""

    def __init__(self, work: Work, console: Console) -> None:
        self.work, self.console = work, console
        self.optimizers = build_optimizers(work.model, work.stage.optimizer)
        self.state = TrainState()
        self.every = work.stage.evaluation.every or max(1, math.ceil(work.extent.steps / EVALUATIONS))
        self.save_every = work.stage.checkpoint.every or self.every
        self._saved: int | None = None
        self._asked_to_stop = False
        self._started = time.monotonic()

    def run(self) -> TrainState:
        """Train to the end of the stage; returns its last state. Raises Interrupted after a polite signal."""
        self._restore()
        steps, start = self.work.extent.steps, self.state.step
        self._started = time.monotonic() - self.state.seconds
        self.events = EventLog(self.work.directory.events, start)
        self.board = self._board()
        if start == 0:
            self.events.write("start", 0, steps=steps, rows=self.work.extent.rows)
        self.work.model.train()
        try:
            with self._signals(), self.console.progress("step", steps, start, self.work.log_every) as progress:
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
            self.events.close()
            if self.board:
                self.board.close()
        return self.state

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
        restore_optimizers(self.work.model, self.optimizers, optimizer_file(path))
        self._saved = self.state.step
        self._settle(path)
        self.console.say(f"going on from step {self.state.step:,} ({path})")

    def _window(self, step: int) -> list[Batch]:
        micro, accumulation = self.work.stage.batch.micro, self.work.stage.batch.accumulation
        first, stop = step * self.work.extent.window, self.work.extent.rows
        return [self.work.train.batch(first + i * micro, micro, stop) for i in range(accumulation)]

    def _step(self, progress: Progress) -> None:
        """One update: all micro-batches of the window, one division by the window's weight, one step."""
        work, step = self.work, self.state.step
        window = self._window(step)
        weight = sum(work.objective.weight(batch) for batch in window)
        rate = learning_rate(step, work.extent.steps, work.stage.optimizer, work.stage.schedule)
        for optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
        outcomes = []
        for number, batch in enumerate(window):
            if batch.supervised == 0:
                continue
            if work.model.config.dropout:
                torch.manual_seed(_mix(work.seed, step, number))
            outcome = work.objective(work.model, batch.to(torch.device(work.decision.device)))
            (outcome.loss / weight).backward()
            outcomes.append(Outcome(outcome.loss.detach(), outcome.metrics))
        norm = self._update()
        self.state.step += 1
        self.state.tokens += sum(batch.filled for batch in window)
        self.state.supervised_tokens += sum(batch.supervised for batch in window)
        self._record(outcomes, weight, norm, rate, progress)

    def _update(self) -> float:
        parameters = list(self.work.model.parameters())
        clip = self.work.stage.optimizer.clip
        norm = torch.nn.utils.clip_grad_norm_(parameters, clip if clip is not None else math.inf)
        if not math.isfinite(float(norm)):
            self._refuse_to_diverge(float(norm))
        for optimizer in self.optimizers:
            optimizer.step()
        self.work.model.zero_grad(set_to_none=True)
        return float(norm)

    def _refuse_to_diverge(self, norm: float) -> None:
        step = self.state.step
        self.events.write("alert", step, level="error", message=f"gradient norm is {norm} in step {step}")
        kept = newest_checkpoint(self.work.directory.checkpoints)
        raise FledgeError(
            f"the gradient is {norm} in step {step:,}: training diverged",
            where=str(self.work.directory.root),
            hint=f"lower optimizer.lr or lengthen schedule.warmup; the last good state is "
            f"{'step ' + str(kept[1].step) if kept else 'the beginning'}",
        )

    def _record(self, outcomes: list[Outcome], weight: float, norm: float, rate: float, progress: Progress) -> None:
        state, work = self.state, self.work
        loss = sum(float(outcome.loss) for outcome in outcomes) / weight
        metrics = {name: sum(float(outcome.metrics[name]) for outcome in outcomes) / weight for name in outcomes[0].metrics}
        values: dict[str, Any] = {
            "epoch": round(work.train.epochs_at(min(state.step * work.extent.window, work.extent.rows)), 6),
            "train/loss": loss,
            "learning_rate": rate,
            "grad_norm": norm,
            "tokens": state.tokens,
            "supervised_tokens": state.supervised_tokens,
            **metrics,
        }
        if work.stage.kind != "preference":
            values["train/perplexity"] = math.exp(min(loss, 700.0))
        self.events.write("step", state.step, **values)
        before, state.seconds = state.seconds, time.monotonic() - self._started
        resources = {
            "seconds": round(state.seconds, 3),
            "tokens_per_second": state.tokens / state.seconds,
            "memory_bytes": _memory(work.decision.device),
            "eta_seconds": state.seconds / state.step * (work.extent.steps - state.step),
            "step_seconds": round(state.seconds - before, 4),
        }
        self.events.write("resource", state.step, **resources)
        if self.board:
            self.board.write(state.step, {**values, **resources})
        shown = {"loss": loss, "perplexity": values.get("train/perplexity", 0.0), "learning_rate": rate, **resources}
        if metrics:
            shown["accuracy"] = metrics["rewards/accuracies"]
        progress.update(state.step, step_line(shown))

    def _after_step(self) -> None:
        """Evaluate and save where it is time, and decide whether to stop early."""
        last = self.state.step == self.work.extent.steps
        improved = False
        if self.work.validation is not None and (last or self.state.step % self.every == 0):
            improved = self._evaluate(self.work.validation)
        if last or improved or self.state.stop or self.state.step % self.save_every == 0:
            self._save()

    def _evaluate(self, data: PackedData) -> bool:
        stage, state = self.work.stage, self.state
        measured = validate(self.work.model, data, stage.evaluation.max_rows, stage.batch.micro, self.work.validation_objective)
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
        folder = self.work.directory.checkpoints
        tensors: dict[str, Tensor] = optimizer_tensors(self.work.model, self.optimizers)
        started = time.monotonic()
        path, size = save_checkpoint(folder, self.state, self.work.write_model, tensors)
        self._saved = self.state.step
        self._settle(path)
        spent = round(time.monotonic() - started, 3)
        self.events.write("checkpoint", self.state.step, path=path.name, bytes=size, seconds=spent)

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


def _mix(seed: int, step: int, number: int) -> int:
    """One seed for each micro-batch (splitmix64's odd constants keep neighbours apart)."""
    return (seed * 0x9E3779B97F4A7C15 + step * 0xBF58476D1CE4E5B9 + number * 0x94D049BB133111EB) % 2**63


def _memory(device: str) -> int:
    return torch.cuda.max_memory_allocated() if device == "cuda" else memory_bytes()
