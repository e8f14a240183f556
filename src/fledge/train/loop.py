"""The loop: the same for pretraining, fine-tuning and preferences.

Everything random is a function of (seed, step, micro-batch) and the data position is a function of the step, so a
run resumed from any checkpoint goes on exactly as the one that was never interrupted.
"""

import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
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
from fledge.run import Console, StageDirectory
from fledge.run.alerts import Alerts
from fledge.run.console import Progress, step_line
from fledge.run.startup import Startup
from fledge.run.stopping import Interrupted, Stopping
from fledge.train.checkpoint import TrainState, WriteModel, last_good, newest_checkpoint
from fledge.train.evidence import resource_values, step_values
from fledge.train.feed import Feed
from fledge.train.going_back import allowed, gone_back, told, way_out
from fledge.train.guards import Verdict
from fledge.train.journal import Journal
from fledge.train.learner import Learner
from fledge.train.length import Extent
from fledge.train.machine import Decision
from fledge.train.proof import Proof
from fledge.train.ranks import Ranks
from fledge.train.saving import Saved, Saver
from fledge.train.schedule import learning_rate
from fledge.train.suspects import suspects
from fledge.train.update import Abandoned, OutOfMemory, Update, Updater
from fledge.train.validation import validate

BY_ROWS = ("non_finite", "grad_spike", "loss_spike")  # rules whose cause may lie in the rows of one update
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
    write_model: WriteModel
    stopping: Stopping
    seed: int
    log_every: int
    tensorboard: bool
    where: Callable[[int], str]  # FILE:LINE of a training example
    alerts: Alerts | None = None
    examine: Callable[[Decoder, int], dict[str, Any]] | None = None  # asks regression prompts after so many steps
    token_bytes: Tensor | None = None  # [V], for bits per byte
    ready: Callable[[], Startup | None] = lambda: None  # where the time before the first step went, if it is to be told
    changed: dict[str, list[Any]] = field(default_factory=dict)  # keys of the recipe: what a resumed run had and has
    ranks: Ranks = field(default_factory=Ranks)
    divided: bool = False  # the model among the ranks


class Loop:
    """Trains one stage, from the newest checkpoint if there is one.

    Every rank runs it. What it does next follows from its state, from the events, which the first rank tells, and from what
    the ranks have agreed on, so all do the same.
    """

    def __init__(self, work: Work, console: Console) -> None:
        self.work, self.console = work, console
        self.device = torch.device(work.decision.device)
        self.cost = Cost(work.model.config, work.model.vocab_size)
        precision, ranks, divided = work.decision.precision, work.ranks, work.divided
        self.learner = Learner(work.model, work.stage, work.extent.steps, self.device, precision, ranks, divided)
        self.saver = Saver(work.directory.checkpoints, work.stage.checkpoint.keep, work.write_model, ranks, divided)
        self.proof = Proof(ranks, work.model)
        self._asked: int | None = None  # the signal that all ranks know of
        self.state = TrainState(by_source=[0] * len(work.train.sources))
        self.every = work.stage.evaluation.every or max(1, math.ceil(work.extent.steps / EVALUATIONS))
        self.save_every = work.stage.checkpoint.every or self.every
        self._kept: tuple[int, int, int] | None = None  # step, evaluated and examined step of the newest checkpoint
        self._pending: tuple[Update, Progress] | None = None
        self._spent: dict[str, float] = {}
        self._started = time.monotonic()

    def run(self) -> TrainState:
        """Train to the end of the stage; returns its last state. Raises Interrupted after a polite signal."""
        work = self.work
        with work.stopping.held():
            self._restore()
            steps, start = work.extent.steps, self.state.step
            self._started = time.monotonic() - self.state.seconds
            self.updater = Updater(
                work.model, work.objective, self.learner.optimizers, work.stage.optimizer.clip, work.seed, self.learner.scale,
                self._asked_to_stop, work.ranks,
            )  # fmt: skip
            micro = self.state.micro or work.stage.batch.rows
            self.feed = Feed(work.train, work.extent, micro, work.objective.weight, self.device, work.ranks)
            self.feed.skip(self.state.skipped_rows)
            self.journal = Journal(
                work.directory, start, work.stage.guards, self.console, work.tensorboard, work.alerts, work.ranks
            )  # fmt: skip
            if start == 0:
                self.journal.write("start", 0, steps=steps, rows=work.extent.rows)
            self._tell_ranks(self.journal.processes)
            if work.changed:
                self.journal.write("changed", start, keys=work.changed)
            work.model.train()
            try:
                with self.console.progress("step", steps, start, work.log_every) as progress:
                    self._go(progress)
            finally:
                self.saver.close()
                self.feed.close()
                self.journal.close()
        return self.state

    def _tell_ranks(self, before: int | None) -> None:
        """How many processes train, and that it is another number than before."""
        size, step = self.work.ranks.size, self.state.step
        if size > 1 or before not in (None, 1):
            self.journal.write("ranks", step, processes=size, parallel="fsdp" if self.work.divided else "ddp")
        if before not in (None, size):
            self.console.say(f"note: from step {step:,} on with {size} processes instead of {before}: equal but for rounding")

    def _go(self, progress: Progress) -> None:
        """Between two steps: evaluate and save where it is time, stop where it is asked; then the next step."""
        self.proof.begin(self.state.step)
        while True:
            self._look_back()
            if self.state.step == self.work.extent.steps or self.state.stop is not None:
                break
            if self._asked_to_stop():
                self._stop_on_request()
            try:
                self._step(progress)
            except Abandoned:  # the update under way is made again on resume
                self._stop_on_request()
        self._flush()
        self._save()
        self._told(self.saver.wait(), must=True)

    def _asked_to_stop(self) -> bool:
        """Whether somebody has asked any rank to stop. All ranks must ask together."""
        if self._asked is None:
            self._asked = int(self.work.ranks.largest([self.work.stopping.asked or 0])[0]) or None
        return self._asked is not None

    def _stop_on_request(self) -> None:
        """Save what is there, and end."""
        self._save()
        self._told(self.saver.wait(), must=True)
        number, step = self._asked or 0, self.state.step
        raise Interrupted(number, f"stopped on request after step {step:,} of {self.work.extent.steps:,}; the state is saved")

    def _restore(self) -> None:
        def refused(path: Path, problem: str) -> None:
            self.console.say(f"warning: {path} is not used: {problem}", style="yellow")

        found = self._agreed(lambda: newest_checkpoint(self.work.directory.checkpoints, refused))
        if found is None:
            return
        path, self.state = found
        self.learner.restore(path, self.state)
        self.work.ranks.wait()  # before old checkpoints are removed
        self._kept = (self.state.step, self.state.evaluated, self.state.examined)
        if remark := self.saver.settle(path, self.state.step, self.state.best_step):
            self.console.say(f"warning: {remark}", style="yellow")
        self.console.say(f"going on from step {self.state.step:,} ({path})")

    def _agreed(self, find: Callable[[], tuple[Path, TrainState] | None]) -> tuple[Path, TrainState] | None:
        """A checkpoint that the first rank finds, for all of them."""
        found = find() if self.work.ranks.first else None
        told = self.work.ranks.told(found and [str(found[0]), asdict(found[1])])
        return told and (Path(told[0]), TrainState(**told[1]))

    def _step(self, progress: Progress) -> None:
        """One update, counted; its events are written when its numbers are at hand."""
        work, step = self.work, self.state.step
        rate = learning_rate(step, work.extent.steps, work.stage.optimizer, work.stage.schedule) * self.state.lr_factor
        watch, largest = step % work.log_every == 0, self.journal.guards.largest_norm(step + 1)
        while True:
            window, waited = self.feed.window(step)
            try:
                update = self.updater(window, rate, waited, watch, largest)
                break
            except OutOfMemory as error:
                self._halve(error)
        self.learner.after_update(step)
        if update.routing is not None:
            update_biases(work.model, update.routing, ~update.overflow)
        self._flush()
        state = self.state
        state.step += 1
        state.tokens += window.tokens
        state.supervised_tokens += window.supervised
        state.by_source = [a + b for a, b in zip(state.by_source, window.by_source, strict=True)]
        self.proof.after(window, state.step)
        self._pending = (update, progress)
        if self.device.type == "cpu":  # nothing is on its way there
            self._flush()

    def _halve(self, error: OutOfMemory) -> None:
        """Go on with half the micro-batch: the window, and with it what is learned, stays the same."""
        micro = self.feed.micro
        if micro == 1 or not self.work.ranks.alone:
            rows = "one row" if micro == 1 else f"one batch of {micro} rows"
            raise FledgeError(
                f"{rows} of {self.work.train.row_length:,} tokens does not fit into memory ({error})",
                where="batch.micro",
                hint="set a smaller batch.micro, machine.checkpointing to full, a shorter data.context, or a smaller model",
            )
        self.feed.micro = self.state.micro = micro // 2
        message = f"out of memory with micro-batches of {micro} rows: going on with {micro // 2}, the batch stays as it was"
        self.journal.alert("warning", message, self.state.step, micro=micro // 2, error=str(error))

    def _flush(self) -> None:
        """Write the events of the last update. On a GPU that is one step later, so that nothing waits for the device."""
        if self._pending is None:
            return
        (update, progress), self._pending, state = self._pending, None, self.state
        norm = float(update.norm)
        clip = self.work.stage.optimizer.clip
        state.clipped += clip is not None and math.isfinite(norm) and norm > clip
        self._record(update, progress)

    def _record(self, update: Update, progress: Progress) -> None:
        state, work, step = self.state, self.work, self.state.step
        values = step_values(update, state, work.train.sources, work.stage.kind != "preference")
        self.journal.write("step", step, **values)
        before, state.seconds = state.seconds, time.monotonic() - self._started
        peak = (work.decision.matmul_peak or 0.0) * work.ranks.size
        resources = resource_values(
            update, state, work.extent.steps, before, self._spent, self.cost, work.train.row_length, peak,
            work.directory.root,
        )  # fmt: skip
        self._spent = {}
        self._say_ready(state.seconds - before)
        self.journal.write("resource", step, **resources)
        self.journal.draw(step, {**values, **resources})
        shown = {"loss": float(update.loss), "perplexity": values.get("train/perplexity") or 0.0, **values, **resources}
        if "rewards/accuracies" in values:
            shown["accuracy"] = values["rewards/accuracies"]
        progress.update(step, step_line(shown))

    def _look_back(self) -> None:
        """After a step, and before the first: do what the guards say, evaluate and save where it is time, and decide whether
        to stop early."""
        state, improved = self.state, False
        last = state.step == self.work.extent.steps
        evaluates = state.step > 0 and (last or state.step % self.every == 0) and state.evaluated < state.step
        examines, saves = self._examines(last), last or state.step % self.save_every == 0
        if evaluates or examines or saves:
            self._flush()
        if self._obey():
            return
        looked = evaluates or examines
        if self.work.validation is not None and evaluates:
            try:
                improved = self._evaluate(self.work.validation)
            except Abandoned:
                return
        if self.work.examine is not None and examines:
            self._examine(self.work.examine)
        if looked and self._obey():
            return
        if saves or improved or state.stop:
            self._save()
        nothing_trained = state.step == 0  # a run that cannot be saved ends here, before it has cost anything
        self._told(self.saver.wait() if nothing_trained else self.saver.finished(), must=nothing_trained)

    def _obey(self) -> bool:
        """Do what the guards found reason for; whether training went back to an earlier step."""
        for verdict in self.journal.found():
            evidence = {**verdict.evidence, "rule": verdict.rule, "action": verdict.action, "since": verdict.since}
            if verdict.rule in BY_ROWS:
                evidence["rows"] = self._suspects(verdict)
            named = f" (worst: {evidence['rows'][0]['where']})" if evidence.get("rows") else ""
            level = "warning" if verdict.action in ("warn", "skip") else "error"
            self.journal.alert(level, verdict.cause + named, verdict.step, "guard", **evidence)
            if verdict.action == "rollback":
                self._roll_back(verdict)
                return True
            if verdict.action == "stop" and verdict.ends == "run":
                if verdict.sound:
                    self._save()
                    self._told(self.saver.wait(), must=True)
                raise FledgeError(
                    verdict.cause + named,
                    where=str(self.work.directory.root),
                    hint=way_out(self.work.directory.checkpoints, verdict),
                )
            if verdict.action == "stop":
                self._stop_early(verdict.cause)
        return False

    def _suspects(self, verdict: Verdict) -> list[dict[str, Any]]:
        """The rows that the update in question read."""
        window = self.feed.window_again(verdict.since - 1)
        return suspects(self.work.model, window, self.work.where, self.device, self.work.ranks)

    def _roll_back(self, verdict: Verdict) -> None:
        """Go back to the last good checkpoint, and on from there without the rows in question or with a lower rate."""
        self._told(self.saver.wait())
        rules, checkpoints = self.work.stage.guards.rollback, self.work.directory.checkpoints
        found = self._agreed(lambda: last_good(checkpoints, verdict.since))
        path, kept = allowed(found, self.state, verdict, rules, checkpoints)
        reached, self.state = self.state.step, gone_back(self.state, kept, verdict, rules, self.feed)
        self.learner.restore(path, kept)
        self.feed.skip(self.state.skipped_rows)
        self._pending, self._spent = None, {}
        self.journal.rewind(self.state.step, self.state.rollbacks)
        message, figures = told(reached, self.state, verdict)
        self.journal.alert("error", message, self.state.step, "guard", **figures)
        self._save(again=True)
        self._told(self.saver.wait())

    def _evaluate(self, data: PackedData) -> bool:
        work, stage, state = self.work, self.work.stage, self.state
        started = time.monotonic()
        with self.learner.averaged():
            measured = validate(
                work.model, data, stage.evaluation.max_rows, self.feed.micro, work.validation_objective, work.token_bytes,
                self._asked_to_stop, work.ranks,
            )  # fmt: skip
        self._spend("evaluate", time.monotonic() - started)
        values = {f"eval/{name}": value for name, value in measured.items()}
        self.journal.write("eval", state.step, **values)
        self.journal.draw(state.step, values)
        loss, state.evaluated = measured["loss"], state.step
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

    def _examines(self, last: bool) -> bool:
        """Whether the regression prompts are due."""
        config, step = self.work.stage.regression, self.state.step
        due = last or (config is not None and config.every is not None and step % config.every == 0)
        return due and step > 0 and self.state.examined < step

    def _examine(self, examine: Callable[[Decoder, int], dict[str, Any]]) -> None:
        """Ask the regression prompts of the model as it would be used. That is up to the first rank."""
        started, step = time.monotonic(), self.state.step
        self.state.examined = step
        with self.learner.averaged():
            model = self.learner.whole()
            measured = examine(model, step) if model is not None and self.work.ranks.first else None
            self.work.ranks.wait()
        if measured is None:
            return
        self._spend("evaluate", time.monotonic() - started)
        self.journal.write("regression", step, **{f"regression/{name}": value for name, value in measured.items()})
        self.journal.draw(step, {f"regression/{name}": measured[name] for name in ("pass_rate", "repetition")})
        self.console.say(
            f"step {step:,}: {measured['passed']} of {measured['cases']} regression prompts pass"
            + "".join(f", {name}: {', '.join(measured[name])}" for name in ("broken", "mended") if measured.get(name))
        )

    def _spend(self, phase: str, seconds: float) -> None:
        """Time between two steps, for the next `resource` event."""
        self._spent[phase] = self._spent.get(phase, 0.0) + seconds

    def _early_stop(self, loss: float) -> None:
        rule, state = self.work.stage.early_stop, self.state
        if rule.target_loss is not None and loss <= rule.target_loss:
            state.stop = f"validation loss {loss:.4f} reached the target {rule.target_loss}"
        elif rule.patience is not None and state.evaluations_without_gain >= rule.patience:
            state.stop = f"validation loss has not improved for {rule.patience} evaluations"
        if state.stop:
            self._stop_early(state.stop)

    def _stop_early(self, reason: str) -> None:
        """End the stage here."""
        state = self.state
        state.stop = reason
        if state.step < self.work.extent.steps:
            self.journal.write("stop", state.step, reason=reason)
            self.console.say(f"stopping early at step {state.step:,}: {reason}", style="yellow")

    def _save(self, again: bool = False) -> None:
        """Begin to write a checkpoint, unless the newest one is of this moment."""
        moment = (self.state.step, self.state.evaluated, self.state.examined)
        if self._kept == moment and not again:
            return
        self._flush()
        started = time.monotonic()
        self._told(self.saver.begin(self.learner.snapshot(self.state)))
        self._kept = moment
        self._spend("save", time.monotonic() - started)

    def _told(self, saves: list[Saved], must: bool = False) -> None:
        """Say what became of saves. One that failed is tried again at the next; where it `must` succeed, CannotSave."""
        for saved in saves:
            if saved.problem is None:
                values = {"path": saved.path.name, "bytes": saved.bytes, "seconds": round(saved.seconds, 3)}
                self.journal.write("checkpoint", saved.step, **values)
                if saved.remark is not None:
                    self.journal.alert("warning", saved.remark, saved.step)
                continue
            self._kept = None
            self.journal.alert("error", saved.problem.what, saved.step)
            if must:
                raise saved.problem

    def _say_ready(self, seconds: float) -> None:
        """What went before the first step, and how long that took itself; once a process."""
        startup = self.work.ready()
        if startup is None:
            return
        startup.parts["first_step"] = seconds
        self.journal.write("ready", self.state.step, **startup.as_dict())
        self.console.say(startup.line())
