"""Shorter runs of a stage, each with a complete schedule of its own."""

from typing import Any

from fledge.plan import StagePlan
from fledge.plan.horizon import pinned_batch
from fledge.tune.runs import ShortRuns

MOST_EPOCHS = 4  # repeated so often, data is about as good as new (Muennighoff et al. 2023); beyond, a shorter run says little


def of_length(runs: ShortRuns, plan: StagePlan, steps: int) -> dict[str, Any]:
    """The values of a run of another length: the warm-ups of rate and batch and the minimum rate keep their proportions to
    `plan`, which is that of the whole stage, an update has as many rows, and the run is evaluated at its end."""
    prefix = runs.prefix
    has_own_end = runs.stage.schedule.final_div_factor is not None
    return {
        **({} if has_own_end else {f"{prefix}.schedule.min_lr": min_rate(plan)}),
        **duration_in_steps(runs, plan, steps),
        **shares_of_warmup(runs, plan),
        f"{prefix}.evaluation.every_steps": steps,
        f"{prefix}.select_checkpoint": "last",
    }


def duration_in_steps(runs: ShortRuns, plan: StagePlan, steps: int) -> dict[str, Any]:
    """A duration of so many steps, whose updates have the rows of a plan."""
    pinned = pinned_batch(runs.stage.batch, plan.effective_batch_rows)
    batch = {f"{runs.prefix}.batch.{key}": value for key, value in pinned.items()}
    return {f"{runs.prefix}.duration": f"{steps} steps", **batch}


def shares_of_warmup(runs: ShortRuns, plan: StagePlan) -> dict[str, Any]:
    """The warm-ups of a plan as shares of its length, whatever they are in the recipe."""
    values = {f"{runs.prefix}.schedule.warmup": plan.warmup_share}
    if plan.batch_warmup_steps:
        values[f"{runs.prefix}.batch.warmup.ramp_steps"] = plan.batch_warmup_steps / plan.steps
    return values


def kept_min_rate(runs: ShortRuns, plan: StagePlan) -> dict[str, Any]:
    """The minimum rate as a share of a peak that is about to change, if the recipe has it as a number."""
    minimum = runs.stage.schedule.min_lr
    return {f"{runs.prefix}.schedule.min_lr": min_rate(plan)} if isinstance(minimum, float) and minimum else {}


def min_rate(plan: StagePlan) -> str:
    """The minimum rate of a plan as a share of its peak."""
    return f"{100 * plan.min_learning_rate / plan.learning_rate:.6g}%"
