"""From a recipe and its data to what will happen, before it happens."""

from fledge.plan.stage import StagePlan, check_settings_have_effect, plan_stage, with_recorded_settings

__all__ = ["StagePlan", "check_settings_have_effect", "plan_stage", "with_recorded_settings"]
