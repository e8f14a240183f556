"""The recipe critic: settings that work, and from which nothing useful can come, named before anything is trained."""

from fledge.plan.critic.critic import CHECKS, Check, plan_findings, plan_warnings
from fledge.plan.critic.planned_stage import PlannedStage, cpu_has_bf16, gpu_capability

__all__ = ["CHECKS", "Check", "PlannedStage", "cpu_has_bf16", "gpu_capability", "plan_findings", "plan_warnings"]
