"""Going back to a checkpoint: whether it may be done again, what is different afterwards, and how it is reported."""

from dataclasses import replace
from pathlib import Path

from fledge.checkpoint.checkpoint import latest_checkpoint
from fledge.checkpoint.state import TrainState
from fledge.errors import FledgeError
from fledge.findings import Finding
from fledge.monitor.rules import GuardTrigger
from fledge.recipe.sections.guards import RollbackConfig
from fledge.training.batch_source import DatasetSource

Checkpoint = tuple[Path, TrainState]


def recovery_hint(checkpoints: Path, trigger: GuardTrigger) -> str:
    """What to do about a run that a guard ended."""
    if trigger.state_is_valid:
        return f"the state is saved: {trigger.finding.hint}"
    latest = latest_checkpoint(checkpoints, before=trigger.first_bad_step)
    good = f"step {latest[1].step:,}" if latest else "the beginning"
    return f"the last good state is {good}; {trigger.finding.hint}"


def rollback_target(
    checkpoint: Checkpoint | None, state: TrainState, trigger: GuardTrigger, config: RollbackConfig, checkpoints: Path
) -> Checkpoint:
    """The checkpoint to go back to. FledgeError where there is none, or the stage has been rolled back too often."""
    if checkpoint is not None and state.rollbacks < config.retries:
        return checkpoint
    reason = "there is no whole checkpoint" if checkpoint is None else f"{config.retries} roll-backs did not help"
    raise FledgeError(
        f"{trigger.finding.message}; {reason}",
        where=str(checkpoints.parent),
        hint=recovery_hint(checkpoints, trigger),
    )


def rolled_back_state(
    state: TrainState, saved: TrainState, trigger: GuardTrigger, config: RollbackConfig, source: DatasetSource
) -> TrainState:
    """The `saved` state of a checkpoint as training goes on from it: with a lower learning rate, or without the rows of the
    updates from the first bad one to the one at which the guard triggered."""
    skipped_rows, lr_factor = [list(part) for part in state.skipped_rows], state.lr_factor
    if trigger.rollback_policy == "lower_lr":
        lr_factor *= config.lr_factor
    else:
        rows = [row for step in range(trigger.first_bad_step - 1, trigger.step) for row in source.stream_rows(step)]
        skipped_rows = sorted([*skipped_rows, [rows[0], len(rows)]])
    return replace(saved, skipped_rows=skipped_rows, lr_factor=lr_factor, rollbacks=state.rollbacks + 1, seconds=state.seconds)


def rollback_finding(reached_step: int, state: TrainState, trigger: GuardTrigger) -> Finding:
    """The finding of the `guard` event after a roll-back: from which step to which, and what is different now."""
    change = "without the rows it went wrong with"
    if trigger.rollback_policy == "lower_lr":
        change = f"with {state.lr_factor:g} of the learning rate"
    return replace(
        trigger.finding,
        message=f"{trigger.finding.message}: back from step {reached_step:,} to step {state.step:,}, and on {change}",
        evidence={
            "reached_step": reached_step,
            "rollbacks": state.rollbacks,
            "skipped_rows": state.skipped_rows,
            "lr_factor": state.lr_factor,
        },
    )
