"""Shorter runs of a stage, each with a complete schedule of its own."""

from typing import Any

from fledge.plan import StagePlan
from fledge.tune.runs import ShortRuns


def of_length(runs: ShortRuns, plan: StagePlan, steps: int) -> dict[str, Any]:
    """The values of a run of another length: warm-up and minimum rate keep their proportions to `plan`, which is that of the
    whole stage, and the run is evaluated at its end."""
    prefix = runs.prefix
    has_own_end = runs.stage.schedule.final_div_factor is not None
    return {
        **({} if has_own_end else {f"{prefix}.schedule.min_lr": min_rate(plan)}),
        f"{prefix}.duration": f"{steps} steps",
        f"{prefix}.schedule.warmup": plan.warmup_share,
        f"{prefix}.evaluation.every_steps": steps,
        f"{prefix}.select_checkpoint": "last",
    }


def min_rate(plan: StagePlan) -> str:
    """The minimum rate of a plan as a share of its peak."""
    return f"{100 * plan.min_learning_rate / plan.learning_rate:.6g}%"
