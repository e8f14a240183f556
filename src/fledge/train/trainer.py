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

from fledge.autotune.autotune import ComputeConfig
from fledge.checkpoint.async_save import AsyncCheckpointer, SaveResult
from fledge.checkpoint.checkpoint import TrainState, WriteModel, latest_before, latest_checkpoint
from fledge.data import PackedDataset
from fledge.distributed.context import DistributedContext
from fledge.errors import FledgeError
from fledge.model.protocol import LanguageModel
from fledge.monitor.guards import GuardTrigger
from fledge.monitor.run_logger import RunLogger
from fledge.objective import CausalLMObjective, DPOObjective
from fledge.plan.horizon import TrainingHorizon
from fledge.plan.lr_schedule import learning_rate
from fledge.recipe.schema import PreferenceStage, PretrainStage, SftStage
from fledge.run import Console, StageDirectory
from fledge.run.alerts import Alerts
from fledge.run.console import Progress, step_line
from fledge.run.startup import StartupTimer
from fledge.run.stopping import Interrupted, SignalHandler
from fledge.train.bad_rows import highest_loss_rows
from fledge.train.batch_loader import BatchLoader
from fledge.train.metrics import step_metrics, system_metrics
from fledge.train.rank_consistency import RankConsistencyCheck
from fledge.train.rollback import recovery_hint, rollback_message, rollback_target, rolled_back_state
from fledge.train.train_step import OutOfMemory, StepOutput, StopRequested, TrainStep
from fledge.train.trainable import TrainableModel
from fledge.train.validation import validate

RULES_CAUSED_BY_ROWS = ("non_finite", "grad_spike", "loss_spike")  # rules whose cause may lie in the rows of one update
EVALUATIONS = 10  # of a stage, where the recipe does not say
Objective = CausalLMObjective | DPOObjective


@dataclass(frozen=True)
class TrainContext:
    """All that a stage's loop needs."""

    stage: PretrainStage | SftStage | PreferenceStage
    model: LanguageModel
    objective: Objective
    train: PackedDataset
    validation: PackedDataset | None
    validation_objective: DPOObjective | None
    extent: TrainingHorizon
    decision: ComputeConfig
    directory: StageDirectory
    write_model: WriteModel
    stopping: SignalHandler
    seed: int
    log_every: int
    tensorboard: bool
    locate_example: Callable[[int], str]  # FILE:LINE of a training example
    alerts: Alerts | None = None
    run_prompt_tests: Callable[[LanguageModel, int], dict[str, Any]] | None = None  # asks prompts after so many steps
    token_bytes: Tensor | None = None  # [V], for bits per byte
    startup_report: Callable[[], StartupTimer | None] = lambda: (
        None
    )  # where the time before the first step went, if it is to be told
    recipe_changes: dict[str, list[Any]] = field(default_factory=dict)  # keys of the recipe: what a resumed run had and has
    ranks: DistributedContext = field(default_factory=DistributedContext)
    is_sharded: bool = False  # the model among the ranks


class Trainer:
    """Trains one stage, from the newest checkpoint if there is one.

    Every rank runs it. What it does next follows from its state, from the events, which the first rank tells, and from what
    the ranks have agreed on, so all do the same.
    """

    def __init__(self, work: TrainContext, console: Console) -> None:
        self.work, self.console = work, console
        self.device = torch.device(work.decision.device)
        self.cost = work.model.cost
        precision, ranks, divided = work.decision.precision, work.ranks, work.is_sharded
        self.learner = TrainableModel(work.model, work.stage, work.extent.steps, self.device, precision, ranks, divided)
        self.saver = AsyncCheckpointer(
            work.directory.checkpoints, work.stage.checkpoint.keep_last, work.write_model, ranks, divided
        )
        self.proof = RankConsistencyCheck(ranks, work.model)
        self._asked: int | None = None  # the signal that all ranks know of
        self.state = TrainState(by_source=[0] * len(work.train.sources))
        self.every = work.stage.evaluation.every_steps or max(1, math.ceil(work.extent.steps / EVALUATIONS))
        self.save_every = work.stage.checkpoint.every_steps or self.every
        self._kept: tuple[int, int, int] | None = None  # step, evaluated and examined step of the newest checkpoint
        self._pending: tuple[StepOutput, Progress] | None = None
        self._spent: dict[str, float] = {}
        self._started = time.monotonic()

    def run(self) -> TrainState:
        """Train to the end of the stage; returns its last state. Raises Interrupted after a polite signal."""
        work = self.work
        with work.stopping.deferred():
            self._restore()
            steps, start = work.extent.steps, self.state.step
            self._started = time.monotonic() - self.state.seconds
            self.updater = TrainStep(
                work.model,
                work.objective,
                self.learner.optimizers,
                work.stage.optimizer.max_grad_norm,
                work.seed,
                self.learner.scale,
                self._asked_to_stop,
                work.ranks,
            )
            micro = self.state.micro_batch_size or work.stage.batch.micro_batch_rows
            self.feed = BatchLoader(work.train, work.extent, micro, work.objective.normalizer, self.device, work.ranks)
            self.feed.skip(self.state.skipped_rows)
            self.journal = RunLogger(
                work.directory, start, work.stage.guards, self.console, work.tensorboard, work.alerts, work.ranks
            )  # fmt: skip
            if start == 0:
                self.journal.write("start", 0, steps=steps, rows=work.extent.rows)
            self._tell_ranks(self.journal.processes)
            if work.recipe_changes:
                self.journal.write("recipe_changed", start, keys=work.recipe_changes)
            work.model.train()
            try:
                with self.console.progress("step", steps, start, work.log_every) as progress:
                    self._train_loop(progress)
            finally:
                self.saver.close()
                self.feed.close()
                self.journal.close()
        return self.state

    def _tell_ranks(self, before: int | None) -> None:
        """How many processes train, and that it is another number than before."""
        size, step = self.work.ranks.world_size, self.state.step
        if size > 1 or before not in (None, 1):
            self.journal.write("world_size", step, world_size=size, parallelism="fsdp" if self.work.is_sharded else "ddp")
        if before not in (None, size):
            self.console.log(f"note: from step {step:,} on with {size} processes instead of {before}: equal but for rounding")

    def _train_loop(self, progress: Progress) -> None:
        """Between two steps: evaluate and save where it is time, stop where it is asked; then the next step."""
        self.proof.begin(self.state.step)
        while True:
            self._after_step()
            if self.state.step == self.work.extent.steps or self.state.stop_reason is not None:
                break
            if self._asked_to_stop():
                self._stop_on_request()
            try:
                self._step(progress)
            except StopRequested:  # the update under way is made again on resume
                self._stop_on_request()
        self._flush()
        self._save()
        self._report_saves(self.saver.wait(), must=True)

    def _asked_to_stop(self) -> bool:
        """Whether somebody has asked any rank to stop. All ranks must ask together."""
        if self._asked is None:
            self._asked = int(self.work.ranks.all_reduce_max([self.work.stopping.requested or 0])[0]) or None
        return self._asked is not None

    def _stop_on_request(self) -> None:
        """Save what is there, and end."""
        self._save()
        self._report_saves(self.saver.wait(), must=True)
        number, step = self._asked or 0, self.state.step
        raise Interrupted(number, f"stopped on request after step {step:,} of {self.work.extent.steps:,}; the state is saved")

    def _restore(self) -> None:
        def refused(path: Path, problem: str) -> None:
            self.console.log(f"warning: {path} is not used: {problem}", style="yellow")

        found = self._broadcast_checkpoint(lambda: latest_checkpoint(self.work.directory.checkpoints, refused))
        if found is None:
            return
        path, self.state = found
        self.learner.restore(path, self.state)
        self.work.ranks.barrier()  # before old checkpoints are removed
        self._kept = (self.state.step, self.state.last_eval_step, self.state.last_prompt_test_step)
        if remark := self.saver.update_links_and_prune(path, self.state.step, self.state.best_step):
            self.console.log(f"warning: {remark}", style="yellow")
        self.console.log(f"going on from step {self.state.step:,} ({path})")

    def _broadcast_checkpoint(self, find: Callable[[], tuple[Path, TrainState] | None]) -> tuple[Path, TrainState] | None:
        """A checkpoint that the first rank finds, for all of them."""
        found = find() if self.work.ranks.is_main_process else None
        told = self.work.ranks.broadcast_object(found and [str(found[0]), asdict(found[1])])
        return told and (Path(told[0]), TrainState(**told[1]))

    def _step(self, progress: Progress) -> None:
        """One update, counted; its events are written when its numbers are at hand."""
        work, step = self.work, self.state.step
        rate = learning_rate(step, work.extent.steps, work.stage.optimizer, work.stage.schedule) * self.state.lr_factor
        watch, largest = step % work.log_every == 0, self.journal.guards.skip_above_grad_norm(step + 1)
        while True:
            window, waited = self.feed.window(step)
            try:
                update = self.updater(window, rate, waited, watch, largest)
                break
            except OutOfMemory as error:
                self._halve_micro_batch(error)
        self.learner.update_ema(step)
        if update.routing is not None:
            work.model.update_router_biases(update.routing, ~update.overflow)
        self._flush()
        state = self.state
        state.step += 1
        state.tokens += window.tokens
        state.target_tokens += window.supervised
        state.by_source = [a + b for a, b in zip(state.by_source, window.by_source, strict=True)]
        self.proof.after(window, state.step)
        self._pending = (update, progress)
        if self.device.type == "cpu":  # nothing is on its way there
            self._flush()

    def _halve_micro_batch(self, error: OutOfMemory) -> None:
        """Go on with half the micro-batch: the window, and with it what is learned, stays the same."""
        micro = self.feed.micro
        if micro == 1 or not self.work.ranks.alone:
            rows = "one row" if micro == 1 else f"one batch of {micro} rows"
            raise FledgeError(
                f"{rows} of {self.work.train.row_length:,} tokens does not fit into memory ({error})",
                where="batch.micro_batch_size",
                hint="set a smaller batch.micro_batch_size, runtime.activation_checkpointing to full, a shorter "
                "data.max_seq_len, or a smaller model",
            )
        self.feed.micro = self.state.micro_batch_size = micro // 2
        message = f"out of memory with micro-batches of {micro} rows: going on with {micro // 2}, the batch stays as it was"
        self.journal.alert("warning", message, self.state.step, micro_batch_size=micro // 2, error=str(error))

    def _flush(self) -> None:
        """Write the events of the last update. On a GPU that is one step later, so that nothing waits for the device."""
        if self._pending is None:
            return
        (update, progress), self._pending, state = self._pending, None, self.state
        norm = float(update.norm)
        clip = self.work.stage.optimizer.max_grad_norm
        state.clipped_steps += clip is not None and math.isfinite(norm) and norm > clip
        self._record(update, progress)

    def _record(self, update: StepOutput, progress: Progress) -> None:
        state, work, step = self.state, self.work, self.state.step
        values = step_metrics(update, state, work.train.sources, work.stage.kind != "preference")
        self.journal.write("step", step, **values)
        before, state.seconds = state.seconds, time.monotonic() - self._started
        peak = (work.decision.matmul_peak or 0.0) * work.ranks.world_size
        resources = system_metrics(
            update, state, work.extent.steps, before, self._spent, self.cost, work.train.row_length, peak,
            work.directory.root,
        )  # fmt: skip
        self._spent = {}
        self._log_startup(state.seconds - before)
        self.journal.write("system", step, **resources)
        self.journal.log_scalars(step, {**values, **resources})
        shown = {"loss": float(update.loss), "perplexity": values.get("train/perplexity") or 0.0, **values, **resources}
        if "train/rewards/accuracies" in values:
            shown["accuracy"] = values["train/rewards/accuracies"]
        progress.update(step, step_line(shown))

    def _after_step(self) -> None:
        """After a step, and before the first: do what the guards say, evaluate and save where it is time, and decide whether
        to stop early."""
        state, improved = self.state, False
        last = state.step == self.work.extent.steps
        evaluates = state.step > 0 and (last or state.step % self.every == 0) and state.last_eval_step < state.step
        examines, saves = self._prompt_tests_due(last), last or state.step % self.save_every == 0
        if evaluates or examines or saves:
            self._flush()
        if self._apply_guard_actions():
            return
        looked = evaluates or examines
        if self.work.validation is not None and evaluates:
            try:
                improved = self._evaluate(self.work.validation)
            except StopRequested:
                return
        if self.work.run_prompt_tests is not None and examines:
            self._run_prompt_tests(self.work.run_prompt_tests)
        if looked and self._apply_guard_actions():
            return
        if saves or improved or state.stop_reason:
            self._save()
        nothing_trained = state.step == 0  # a run that cannot be saved ends here, before it has cost anything
        self._report_saves(self.saver.wait() if nothing_trained else self.saver.poll(), must=nothing_trained)

    def _apply_guard_actions(self) -> bool:
        """Do what the guards found reason for; whether training went back to an earlier step."""
        for verdict in self.journal.check_guards():
            evidence = {**verdict.evidence, "rule": verdict.rule, "action": verdict.action, "since": verdict.first_bad_step}
            if verdict.rule in RULES_CAUSED_BY_ROWS:
                evidence["rows"] = self._suspects(verdict)
            named = f" (worst: {evidence['rows'][0]['where']})" if evidence.get("rows") else ""
            level = "warning" if verdict.action in ("warn", "skip") else "error"
            self.journal.alert(level, verdict.cause + named, verdict.step, "guard", **evidence)
            if verdict.action == "rollback":
                self._roll_back(verdict)
                return True
            if verdict.action == "stop" and verdict.stop_scope == "run":
                if verdict.state_is_valid:
                    self._save()
                    self._report_saves(self.saver.wait(), must=True)
                raise FledgeError(
                    verdict.cause + named,
                    where=str(self.work.directory.root),
                    hint=recovery_hint(self.work.directory.checkpoints, verdict),
                )
            if verdict.action == "stop":
                self._finish_stage(verdict.cause)
        return False

    def _suspects(self, verdict: GuardTrigger) -> list[dict[str, Any]]:
        """The rows that the update in question read."""
        window = self.feed.rebuild(verdict.first_bad_step - 1)
        return highest_loss_rows(self.work.model, window, self.work.locate_example, self.device, self.work.ranks)

    def _roll_back(self, verdict: GuardTrigger) -> None:
        """Go back to the last good checkpoint, and on from there without the rows in question or with a lower rate."""
        self._report_saves(self.saver.wait())
        rules, checkpoints = self.work.stage.guards.rollback, self.work.directory.checkpoints
        found = self._broadcast_checkpoint(lambda: latest_before(checkpoints, verdict.first_bad_step))
        path, kept = rollback_target(found, self.state, verdict, rules, checkpoints)
        reached, self.state = self.state.step, rolled_back_state(self.state, kept, verdict, rules, self.feed)
        self.learner.restore(path, kept)
        self.feed.skip(self.state.skipped_rows)
        self._pending, self._spent = None, {}
        self.journal.rewind(self.state.step, self.state.rollbacks)
        message, figures = rollback_message(reached, self.state, verdict)
        self.journal.alert("error", message, self.state.step, "guard", **figures)
        self._save(again=True)
        self._report_saves(self.saver.wait())

    def _evaluate(self, data: PackedDataset) -> bool:
        work, stage, state = self.work, self.work.stage, self.state
        started = time.monotonic()
        with self.learner.averaged():
            measured = validate(
                work.model,
                data,
                stage.evaluation.max_packed_rows,
                self.feed.micro,
                work.validation_objective,
                work.token_bytes,
                self._asked_to_stop,
                work.ranks,
            )
        self._record_phase("evaluate", time.monotonic() - started)
        values = {f"eval/{name}": value for name, value in measured.items()}
        self.journal.write("eval", state.step, **values)
        self.journal.log_scalars(state.step, values)
        loss, state.last_eval_step = measured["loss"], state.step
        improved = state.best_loss is None or loss < state.best_loss - stage.early_stopping.threshold
        if improved:
            state.best_loss, state.best_step, state.evals_since_best = loss, state.step, 0
        else:
            state.evals_since_best += 1
        self._check_early_stopping(loss)
        self.console.log(
            f"step {state.step:,}: validation loss {loss:.4f}, perplexity {measured['perplexity']:.4g}, "
            f"token accuracy {measured['token_accuracy']:.1%}"
            + (f", pairs right {measured['rewards/accuracies']:.1%}" if "pairs" in measured else "")
        )
        return improved

    def _prompt_tests_due(self, last: bool) -> bool:
        """Whether the regression prompts are due."""
        config, step = self.work.stage.prompt_tests, self.state.step
        due = last or (config is not None and config.every_steps is not None and step % config.every_steps == 0)
        return due and step > 0 and self.state.last_prompt_test_step < step

    def _run_prompt_tests(self, examine: Callable[[LanguageModel, int], dict[str, Any]]) -> None:
        """Ask the regression prompts of the model as it would be used. That is up to the first rank."""
        started, step = time.monotonic(), self.state.step
        self.state.last_prompt_test_step = step
        with self.learner.averaged():
            model = self.learner.full_model()
            measured = examine(model, step) if model is not None and self.work.ranks.is_main_process else None
            self.work.ranks.barrier()
        if measured is None:
            return
        self._record_phase("evaluate", time.monotonic() - started)
        self.journal.write("prompt_tests", step, **{f"prompt_tests/{name}": value for name, value in measured.items()})
        self.journal.log_scalars(step, {f"prompt_tests/{name}": measured[name] for name in ("pass_rate", "repetition")})
        self.console.log(
            f"step {step:,}: {measured['passed']} of {measured['cases']} regression prompts pass"
            + "".join(f", {name}: {', '.join(measured[name])}" for name in ("broken", "mended") if measured.get(name))
        )

    def _record_phase(self, phase: str, seconds: float) -> None:
        """Time between two steps, for the next `resource` event."""
        self._spent[phase] = self._spent.get(phase, 0.0) + seconds

    def _check_early_stopping(self, loss: float) -> None:
        rule, state = self.work.stage.early_stopping, self.state
        if rule.target_loss is not None and loss <= rule.target_loss:
            state.stop_reason = f"validation loss {loss:.4f} reached the target {rule.target_loss}"
        elif rule.patience is not None and state.evals_since_best >= rule.patience:
            state.stop_reason = f"validation loss has not improved for {rule.patience} evaluations"
        if state.stop_reason:
            self._finish_stage(state.stop_reason)

    def _finish_stage(self, reason: str) -> None:
        """End the stage here."""
        state = self.state
        state.stop_reason = reason
        if state.step < self.work.extent.steps:
            self.journal.write("stop", state.step, reason=reason)
            self.console.log(f"stopping early at step {state.step:,}: {reason}", style="yellow")

    def _save(self, again: bool = False) -> None:
        """Begin to write a checkpoint, unless the newest one is of this moment."""
        moment = (self.state.step, self.state.last_eval_step, self.state.last_prompt_test_step)
        if self._kept == moment and not again:
            return
        self._flush()
        started = time.monotonic()
        self._report_saves(self.saver.save_async(self.learner.snapshot(self.state)))
        self._kept = moment
        self._record_phase("save", time.monotonic() - started)

    def _report_saves(self, saves: list[SaveResult], must: bool = False) -> None:
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

    def _log_startup(self, seconds: float) -> None:
        """What went before the first step, and how long that took itself; once a process."""
        startup = self.work.startup_report()
        if startup is None:
            return
        startup.phases["first_step"] = seconds
        self.journal.write("startup", self.state.step, **startup.as_dict())
        self.console.log(startup.line())
