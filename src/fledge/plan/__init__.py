"""From a recipe and its data to what will happen, before it happens."""

from fledge.plan.stage import StagePlan, plan_stage

__all__ = ["StagePlan", "plan_stage"]
