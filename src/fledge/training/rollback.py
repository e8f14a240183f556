"""Rollback to a checkpoint: the checkpoint to return to, the state to continue with, and the report."""

from dataclasses import replace
from pathlib import Path

from fledge.checkpoint.find import latest_checkpoint
from fledge.checkpoint.state import TrainState
from fledge.errors import FledgeError
from fledge.findings import Finding
from fledge.monitor.rules import GuardTrigger
from fledge.recipe.sections.guards import RollbackConfig
from fledge.training.batch_source import BatchSource

Checkpoint = tuple[Path, TrainState]


def recovery_hint(checkpoints: Path, trigger: GuardTrigger) -> str:
    """The hint for a run that a guard ended: the last good state, and the hint of the finding."""
    if trigger.state_is_valid:
        return f"the state is saved: {trigger.finding.hint}"
    try:
        latest = latest_checkpoint(checkpoints, before=trigger.first_bad_step)
        good = f"step {latest[1].step:,}" if latest else "the beginning"
    except FledgeError as error:  # the trigger is the error to report
        good = f"in {checkpoints}, which cannot be read now ({error.what})"
    return f"the last good state is {good}; {trigger.finding.hint}"


def rollback_target(
    checkpoint: Checkpoint | None, state: TrainState, trigger: GuardTrigger, config: RollbackConfig, checkpoints: Path
) -> Checkpoint:
    """The checkpoint to return to. Raises FledgeError if there is none, or after `config.retries` rollbacks of the stage."""
    if checkpoint is not None and state.rollbacks < config.retries:
        return checkpoint
    reason = "there is no valid checkpoint" if checkpoint is None else f"{config.retries} rollbacks did not help"
    raise FledgeError(
        f"{trigger.finding.message}; {reason}",
        where=str(checkpoints.parent),
        hint=recovery_hint(checkpoints, trigger),
    )


def rolled_back_state(
    state: TrainState, saved: TrainState, trigger: GuardTrigger, config: RollbackConfig, source: BatchSource
) -> TrainState:
    """The state to continue with from a checkpoint's `saved` state: with a lower learning rate, or without the rows of the
    updates from the first bad update to the update at which the guard triggered."""
    skipped_rows, lr_factor = [list(run) for run in state.skipped_rows], state.lr_factor
    if trigger.rollback_policy == "lower_lr":
        lr_factor *= config.lr_factor
    else:
        rows = [row for step in range(trigger.first_bad_step - 1, trigger.step) for row in source.stream_rows(step)]
        skipped_rows = sorted([*skipped_rows, [rows[0], len(rows)]])
    return replace(saved, skipped_rows=skipped_rows, lr_factor=lr_factor, rollbacks=state.rollbacks + 1, seconds=state.seconds)


def rollback_finding(reached_step: int, state: TrainState, trigger: GuardTrigger) -> Finding:
    """The finding of the `guard` event after a rollback; its message names both steps and the change."""
    change = "skipping the rows of these updates"
    if trigger.rollback_policy == "lower_lr":
        change = f"with {state.lr_factor:g} times the learning rate"
    return replace(
        trigger.finding,
        message=f"{trigger.finding.message}: rolled back from step {reached_step:,} to step {state.step:,}, now {change}",
        evidence={
            "reached_step": reached_step,
            "rollbacks": state.rollbacks,
            "skipped_rows": state.skipped_rows,
            "lr_factor": state.lr_factor,
        },
    )
