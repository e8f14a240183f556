"""Going back to a checkpoint: whether it may be done again, what is different afterwards, and what is said of it."""

from dataclasses import replace
from pathlib import Path

from fledge.checkpoint.checkpoint import latest_checkpoint
from fledge.checkpoint.state import TrainState
from fledge.errors import FledgeError
from fledge.monitor.guards import GuardTrigger
from fledge.recipe.sections.guards import RollbackConfig
from fledge.train.batch_loader import BatchLoader

Found = tuple[Path, TrainState]


def recovery_hint(checkpoints: Path, verdict: GuardTrigger) -> str:
    """What to do about a run that a guard ended."""
    if verdict.state_is_valid:
        return "the state is saved: make room, then go on with the same command"
    kept = latest_checkpoint(checkpoints, before=verdict.first_bad_step)
    good = f"step {kept[1].step:,}" if kept else "the beginning"
    return (
        f"the last good state is {good}; lower optimizer.learning_rate, lengthen schedule.warmup, or mend the rows that are "
        "named"
    )


def rollback_target(
    found: Found | None, state: TrainState, verdict: GuardTrigger, rules: RollbackConfig, checkpoints: Path
) -> Found:
    """The checkpoint to go back to. FledgeError where there is none, or it has been done too often."""
    if found is not None and state.rollbacks < rules.retries:
        return found
    why = "there is no whole checkpoint" if found is None else f"{rules.retries} roll-backs did not help"
    raise FledgeError(f"{verdict.cause}; {why}", where=str(checkpoints.parent), hint=recovery_hint(checkpoints, verdict))


def rolled_back_state(
    state: TrainState, kept: TrainState, verdict: GuardTrigger, rules: RollbackConfig, feed: BatchLoader
) -> TrainState:
    """The state of a checkpoint, as training goes on from it: without the rows in question, or with a lower rate."""
    skipped, factor = [list(part) for part in state.skipped_rows], state.lr_factor
    if verdict.rollback_policy == "lower_lr":
        factor *= rules.lr_factor
    else:  # of the updates from the first bad one to the verdict
        rows = [row for step in range(verdict.first_bad_step - 1, verdict.step) for row in feed.rows(step)]
        skipped = sorted([*skipped, [rows[0], len(rows)]])
    return replace(kept, skipped_rows=skipped, lr_factor=factor, rollbacks=state.rollbacks + 1, seconds=state.seconds)


def rollback_message(reached: int, state: TrainState, verdict: GuardTrigger) -> tuple[str, dict[str, object]]:
    """The message and the figures of the `guard` event."""
    how = "without the rows it went wrong with"
    if verdict.rollback_policy == "lower_lr":
        how = f"with {state.lr_factor:g} of the learning rate"
    figures: dict[str, object] = {
        "rule": verdict.rule,
        "action": "rollback",
        "since": verdict.first_bad_step,
        "reached": reached,
        "number": state.rollbacks,
        "skipped_rows": state.skipped_rows,
        "lr_factor": state.lr_factor,
    }
    return f"{verdict.cause}: back from step {reached:,} to step {state.step:,}, and on {how}", figures
