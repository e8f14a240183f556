"""The Trainer, which trains one stage of any kind.

Everything random is a function of (seed, step, micro-batch), and the position in the data is a function of the step, so a run
resumed from any checkpoint gives exactly the results of an uninterrupted run.
"""

from dataclasses import replace
from typing import Any

import torch

from fledge.checkpoint.async_save import AsyncCheckpointer
from fledge.checkpoint.find import STATE_FILE
from fledge.checkpoint.state import TrainState
from fledge.errors import FledgeError
from fledge.findings import Finding
from fledge.monitor.remedies import MEND_ROWS
from fledge.monitor.rules import GuardTrigger
from fledge.monitor.run_logger import RunLogger
from fledge.plan.evaluation import evaluation_interval
from fledge.plan.lr_schedule import learning_rate
from fledge.run import Console
from fledge.run.console import Progress
from fledge.run.events import set_events_aside
from fledge.run.stopping import Interrupted
from fledge.training.bad_rows import highest_loss_rows
from fledge.training.batch_loader import BatchLoader
from fledge.training.batch_source import StepBatch
from fledge.training.context import TrainContext
from fledge.training.divergence import has_risen, loss_now
from fledge.training.hooks import Checkpointing, HookContext
from fledge.training.moved_rows import moved_rows
from fledge.training.rank_consistency import RankConsistencyCheck
from fledge.training.rollback import recovery_hint, rollback_finding, rollback_target, rolled_back_state
from fledge.training.step_recorder import StepRecorder
from fledge.training.stop_poll import StopPoll
from fledge.training.train_step import OutOfMemory, StepOutput, StopRequested, TrainStep
from fledge.training.trainable import TrainableModel

CHECKS_CAUSED_BY_ROWS = ("non_finite", "grad_spike", "loss_spike")  # guards whose cause may lie in the rows of one update


class Trainer:
    """Trains one stage, from its newest checkpoint if there is one.

    Every rank runs a Trainer. All decisions follow from the state, from the events, which the main process broadcasts, and from
    values reduced over the ranks, so all ranks take equal decisions.
    """

    def __init__(self, context: TrainContext, console: Console) -> None:
        self.context, self.console = context, console
        stage, ranks, self.total_steps = context.stage, context.ranks, context.horizon.steps
        self.device = torch.device(context.compute.device)
        self.state = TrainState(by_source=[0] * len(context.data.sources))
        self.trainable = TrainableModel(
            context.model,
            stage,
            self.total_steps,
            self.device,
            context.compute.precision,
            ranks=ranks,
            is_sharded=context.is_sharded,
        )
        checkpointer = AsyncCheckpointer(
            context.log.directory.checkpoints,
            stage.checkpoint.keep_last,
            context.write_model,
            ranks=ranks,
            sharded=context.is_sharded,
            keep_first=stage.keeps_reference_model,
        )
        save_interval = stage.checkpoint.every_steps or evaluation_interval(stage, self.total_steps)
        self.checkpointing = Checkpointing(checkpointer, save_interval, self.total_steps)
        self.rank_check = RankConsistencyCheck(ranks, context.model)
        self.stop_poll = StopPoll(ranks, lambda: context.stopping.requested)

    # -- the loop ---------------------------------------------------------------------------------------------------

    def run(self) -> TrainState:
        """Train to the end of the stage; returns the last state. Raises Interrupted after a signal, when the state is saved."""
        with self.context.stopping.deferred():
            self._restore()
            every_steps = self.context.log.config.every_steps
            with self.console.progress("step", self.total_steps, self.state.step, every_steps) as progress:
                self.start(progress)
                try:
                    self.context.on_start()
                    self._train_loop()
                finally:
                    self.close()
        return self.state

    def _train_loop(self) -> None:
        self.rank_check.check_start(self.state.step)
        while True:
            self._between_steps()
            if self.state.step == self.total_steps or self.state.stop_reason is not None:
                break
            if self.stop_poll():
                self._stop()
            try:
                self.step()
            except StopRequested:  # the update is computed again when the run is resumed
                self._stop()
        self.rank_check.finish()
        self._save_and_wait()

    def _between_steps(self) -> None:
        """Apply the guards' actions on the step, run the hooks that are due, apply the guards' actions on the hooks' events,
        and save if a checkpoint is due."""
        due = [hook for hook in self.context.hooks if hook.due(self.state)]
        if due or self.checkpointing.due(self.state):
            self.recorder.flush(self.state)
        if self._apply_guard_actions():
            return
        try:
            for hook in due:
                hook.run(self._hook_context())
        except StopRequested:  # the hook runs when the run is resumed
            return
        if due and self._apply_guard_actions():
            return
        self._look()
        if self.checkpointing.due(self.state):
            self._save()
        if self.state.step == 0:  # a run that cannot be saved ends before the first step
            self.checkpointing.wait(self._hook_context(), must_succeed=True)
        else:
            self.checkpointing.poll(self._hook_context())

    def step(self) -> None:
        """Perform one update and count it in the state. Its events are written when its figures are known."""
        batch, output = self._update()
        self.trainable.update_ema(self.state.step)
        if output.router_stats is not None:
            self.context.model.update_router_biases(output.router_stats, ~output.is_skipped)
        self.recorder.flush(self.state)
        state = self.state
        state.step += 1
        state.tokens += batch.num_tokens
        state.target_tokens += batch.num_target_tokens
        state.by_source = [a + b for a, b in zip(state.by_source, batch.by_source, strict=True)]
        self.rank_check.check_step(batch, state.step)
        self.recorder.submit(output, state)

    def _update(self) -> tuple[StepBatch, StepOutput]:
        """Train on the batch of this step, with smaller micro-batches if it does not fit into memory."""
        stage, step = self.context.stage, self.state.step
        lr = learning_rate(step, self.total_steps, stage.optimizer, stage.schedule) * self.state.lr_factor
        log_details = step % self.context.log.config.every_steps == 0
        skip_above_grad_norm = self.logger.guards.skip_above_grad_norm(step + 1)
        while True:
            batch, data_seconds = self.loader.batch(step)
            try:
                return batch, self.train_step(batch, lr, data_seconds, log_details, skip_above_grad_norm)
            except OutOfMemory as error:
                self._halve_micro_batch(error)

    def _halve_micro_batch(self, error: OutOfMemory) -> None:
        """Halve the micro-batch. The rows of the update do not change, so its result is equal up to rounding."""
        size = self.source.micro_batch_size
        if size == 1 or self.context.ranks.is_distributed:
            rows = "one row" if size == 1 else f"one batch of {size} rows"
            raise FledgeError(
                f"{rows} of {self.context.data.packed_length:,} tokens does not fit into memory ({error})",
                where="batch.micro_batch_size",
                hint="set a smaller batch.micro_batch_size, runtime.activation_checkpointing to full, a shorter "
                "data.max_seq_len, or a smaller model",
            )
        half = size // 2
        self.source.micro_batch_size = self.state.micro_batch_size = half
        self.loader.drop_prefetched()
        message = f"out of memory with micro-batches of {size} rows: continuing with {half}; the batch size does not change"
        evidence = {"micro_batch_size": half, "error": str(error)}
        finding = Finding(check="out_of_memory", severity="warning", message=message, evidence=evidence)
        self.logger.report(finding, self.state.step)

    # -- starting and ending ----------------------------------------------------------------------------------------

    def _restore(self) -> None:
        """Restore the newest checkpoint, if there is one."""
        checkpoint = self.checkpointing.latest(self.console)
        if checkpoint is None:
            self._set_events_aside()
            return
        path, self.state = checkpoint
        if len(self.state.by_source) != len(self.context.data.sources):
            what = (
                f"damaged: by_source has {len(self.state.by_source):,} numbers for {len(self.context.data.sources):,} sources"
            )
            raise FledgeError(what, where=str(path / STATE_FILE))
        self.trainable.restore(path, self.state)
        self.context.ranks.barrier()  # before older checkpoints are removed
        if remark := self.checkpointing.resumed(path, self.state):
            self.console.log(f"warning: {remark}", style="yellow")
        self.console.log(f"resuming from step {self.state.step:,} ({path})")

    def _set_events_aside(self) -> None:
        """Keep the events of a stage whose checkpoints were taken away, so that it starts over."""
        events = self.context.log.directory.events
        if self.context.ranks.is_main_process and (earlier := set_events_aside(events)) is not None:
            self.console.log(
                f"warning: no checkpoint is here: starting over; the events so far are in {earlier}", style="yellow"
            )

    def start(self, progress: Progress) -> None:
        """Build the train step, the batch loader and the logger for the current state, and write the events of the start or of
        the resumption."""
        context, state, ranks = self.context, self.state, self.context.ranks
        self.train_step = TrainStep(
            context.model,
            context.objective,
            self.trainable.optimizers,
            max_grad_norm=context.stage.optimizer.max_grad_norm,
            seed=context.seed,
            grad_scaler=self.trainable.grad_scaler,
            stop_requested=self.stop_poll,
            ranks=ranks,
        )
        micro_batch_size = state.micro_batch_size or context.stage.batch.micro_batch_rows
        self.source = context.make_source(context, micro_batch_size, self.stop_poll)
        self.source.skipped_rows = state.skipped_rows
        self.source.restore(self.trainable.source_tensors)
        self.loader = BatchLoader(self.source, self.total_steps, self.device, ranks)
        self.logger = RunLogger(context.log, state.step, context.stage, self.console, ranks=ranks, rollbacks=state.rollbacks)
        self.recorder = StepRecorder(context, self.logger, self.console, progress, state.seconds)
        if state.step == 0:
            self.logger.write("start", 0, steps=self.total_steps, rows=context.horizon.rows)
        self._write_world_size(self.logger.world_size_before)
        if (changes := context.log.recipe_changes) and self.logger.write_changes(state.step, changes):
            self._report_moved_rows(changes)
        if state.step > self.total_steps and state.stop_reason is None:
            self._hook_context().finish_stage(f"its duration was shortened to {self.total_steps:,} steps when more were done")
        context.model.train()

    def _report_moved_rows(self, changes: dict[str, list[Any]]) -> None:
        """Report rows that have no turn, or two, because the duration has changed."""
        context, step = self.context, self.state.step
        key = f"stages.{context.log.directory.root.name}.duration"
        if key not in changes or not 0 < step <= self.total_steps:
            return
        finding = moved_rows(step, changes[key][0], context.stage.batch, context.data, context.horizon)
        if finding is not None:
            self.logger.report(replace(finding, where=key), step)

    def _write_world_size(self, before: int | None) -> None:
        """Write the `world_size` event, and a console note if the number of processes has changed."""
        size, step = self.context.ranks.world_size, self.state.step
        if size > 1 or before not in (None, 1):
            parallelism = "fsdp" if self.context.is_sharded else "ddp"
            self.logger.write("world_size", step, world_size=size, parallelism=parallelism)
        if before not in (None, size):
            note = f"note: from step {step:,} on, {size} processes train instead of {before}; results are equal up to rounding"
            self.console.log(note)

    def close(self) -> None:
        """Finish the writing of checkpoint and events, and end the threads."""
        self.checkpointing.close()
        self.loader.close()
        self.logger.close()

    def _stop(self) -> None:
        """Save the state and end the run. The guards see the last update first, as they would if training went on."""
        self.recorder.flush(self.state)
        self._apply_guard_actions()
        self._save_and_wait(on_request=True)
        step, total = self.state.step, self.total_steps
        message = f"stopped on request after step {step:,} of {total:,}; the state is saved"
        raise Interrupted(self.stop_poll.signal or 0, message)

    # -- hooks and checkpoints --------------------------------------------------------------------------------------

    def _hook_context(self) -> HookContext:
        return HookContext(
            state=self.state,
            total_steps=self.total_steps,
            micro_batch_size=self.source.micro_batch_size,
            trainable=self.trainable,
            logger=self.logger,
            console=self.console,
            ranks=self.context.ranks,
            stop_requested=self.stop_poll,
            add_seconds=self.recorder.add_seconds,
        )

    def _look(self, is_last: bool = False) -> None:
        """Let the doctor look at the events so far, on the main process: nothing waits for it, and nothing that is learned
        depends on it. `is_last`: whether the run ends now."""
        doctor, state = self.context.doctor, self.state
        if doctor is None or not self.context.ranks.is_main_process:
            return
        is_last |= state.step == self.total_steps or state.stop_reason is not None
        rebuild = self.loader.rebuild if self.source.prefetchable else None
        if seconds := doctor.look(state.step, self.logger, rebuild, is_last=is_last):
            self.recorder.add_seconds("doctor", seconds)

    def _save(self) -> None:
        self.recorder.flush(self.state)
        self.trainable.source_tensors = self.source.tensors(self.state.step)
        self.checkpointing.run(self._hook_context())

    def _save_and_wait(self, on_request: bool = False) -> None:
        """Save, and wait until the checkpoint is complete. Raises CheckpointError if it cannot be written.

        `on_request`: the run has to stop at a step at which no checkpoint is due."""
        self.state.saved_on_request = on_request
        self._save()
        self.checkpointing.wait(self._hook_context(), must_succeed=True)

    # -- guards -----------------------------------------------------------------------------------------------------

    def _apply_guard_actions(self) -> bool:
        """Report the triggers of the guards and apply their actions; returns whether training went back to an earlier step.
        Raises FledgeError if a guard ends the run."""
        for trigger in self.logger.check_guards():
            if trigger.reference and not self._is_confirmed(trigger):
                continue
            finding = self._with_suspected_rows(trigger)
            self.logger.report(finding, trigger.step, "guard", **_action_fields(trigger))
            if trigger.action == "rollback":
                self._roll_back(trigger)
                return True
            if trigger.action == "stop" and trigger.stop_scope == "run":
                self._look(is_last=True)
                if trigger.state_is_valid:
                    self._save_and_wait(on_request=True)
                log = self.context.log.directory
                hint = recovery_hint(log.checkpoints, trigger)
                raise FledgeError(finding.message, where=str(log.root), hint=hint)
            if trigger.action == "stop":
                self._hook_context().finish_stage(trigger.finding.message)
        return False

    def _is_confirmed(self, trigger: GuardTrigger) -> bool:
        """Whether the current weights are worse than the earlier ones on the rows of earlier updates, as they are taken to be
        where these cannot be built again. Writes the `guard_check` event, which the guards read."""
        if not self.source.prefetchable:
            return True
        context, steps = self.context, [step for step, _ in trigger.reference]
        then = [loss for _, loss in trigger.reference]
        now = [
            loss_now(context.model, context.objective, self.loader.rebuild(step - 1), self.device, context.ranks)
            for step in steps
        ]
        confirmed = has_risen(then, now, context.stage.guards.divergence.min_increase)
        values = {"steps": steps, "losses_then": then, "losses_now": now}
        self.logger.write("guard_check", trigger.step, check=trigger.finding.check, confirmed=confirmed, **values)
        return confirmed

    def _with_suspected_rows(self, trigger: GuardTrigger) -> Finding:
        """The finding of a guard; if rows may be the cause, with the rows of the first bad update that have the highest
        losses."""
        finding, context = trigger.finding, self.context
        if finding.check not in CHECKS_CAUSED_BY_ROWS or not self.source.prefetchable:
            return finding
        batch = self.loader.rebuild(trigger.first_bad_step - 1)
        rows = highest_loss_rows(context.model, context.objective, batch, context.locate_example, self.device, context.ranks)
        location = rows[0]["where"] if rows else ""
        if not location:
            return finding
        message, hint = f"{finding.message} (highest loss: {location})", f"{finding.hint}, {MEND_ROWS}"
        return replace(finding, message=message, where=location, hint=hint, evidence={**finding.evidence, "rows": rows})

    def _roll_back(self, trigger: GuardTrigger) -> None:
        """Restore the last good checkpoint, and continue without the suspected rows or with a lower learning rate."""
        self.checkpointing.wait(self._hook_context())
        config, log = self.context.stage.guards.rollback, self.context.log.directory
        checkpoint = self.checkpointing.latest_before(trigger.first_bad_step)
        path, saved = rollback_target(checkpoint, self.state, trigger, config, log.checkpoints)
        reached_step, self.state = self.state.step, rolled_back_state(self.state, saved, trigger, config, self.source)
        self.trainable.restore(path, saved)
        self.source.skipped_rows = self.state.skipped_rows
        are_same_rows = [list(run) for run in saved.skipped_rows] == [list(run) for run in self.state.skipped_rows]
        self.source.restore(self.trainable.source_tensors if are_same_rows else {})  # else the rows of each step are others
        self.loader.drop_prefetched()
        self.recorder.discard()
        self.logger.rewind(self.state.step, self.state.rollbacks)
        finding = rollback_finding(reached_step, self.state, trigger)
        self.logger.report(finding, self.state.step, "guard", **_action_fields(trigger))
        self.trainable.source_tensors = self.source.tensors(self.state.step)
        self.checkpointing.save(self._hook_context())
        self.checkpointing.wait(self._hook_context())


def _action_fields(trigger: GuardTrigger) -> dict[str, Any]:
    """The fields of a `guard` event besides the finding."""
    return {"action": trigger.action, "first_bad_step": trigger.first_bad_step}
