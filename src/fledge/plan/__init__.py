"""From a recipe and its data to what will happen, before it happens."""

from fledge.plan.stage import StagePlan, as_begun, plan_stage, refuse_without_effect

__all__ = ["StagePlan", "as_begun", "plan_stage", "refuse_without_effect"]
