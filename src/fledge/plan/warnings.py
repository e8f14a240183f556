"""The error of a stage that cannot be trained, and the names of the critic that other rooms read."""

from fledge.errors import FledgeError
from fledge.findings import Finding
from fledge.plan.critic import PlannedStage, gpu_capability, plan_findings, plan_warnings
from fledge.plan.critic.rates import RELATIVE_RATES

__all__ = ["PLAN", "RELATIVE_RATES", "PlanError", "PlannedStage", "gpu_capability", "plan_findings", "plan_warnings"]

PLAN = "plan"  # the name of the findings of a plan among the checks of the data


class PlanError(FledgeError):
    """Settings of a stage with which it cannot be trained. `others`: what else is doubtful about its plan."""

    def __init__(self, what: str, *, where: str, hint: str | None, others: list[Finding]) -> None:
        super().__init__(what, where=where, hint=hint)
        self.others = others
