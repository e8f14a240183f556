"""Planning: from a recipe and its data to steps, batch sizes, learning rate and memory, before training starts."""

from fledge.plan.stage import (
    StagePlan,
    check_settings_have_effect,
    describe_plan,
    plan_stage,
    with_recorded_settings,
    without_warmup,
)

__all__ = [
    "StagePlan",
    "check_settings_have_effect",
    "describe_plan",
    "plan_stage",
    "with_recorded_settings",
    "without_warmup",
]
