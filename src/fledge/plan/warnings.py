"""The error of a stage that cannot be trained, and the name of the check of a plan."""

from fledge.errors import FledgeError
from fledge.findings import Finding

PLAN = "plan"  # the name of the findings of a plan among the checks of the data


class PlanError(FledgeError):
    """Settings of a stage with which it cannot be trained. `others`: what else is doubtful about its plan."""

    def __init__(self, what: str, *, where: str, hint: str | None, others: list[Finding]) -> None:
        super().__init__(what, where=where, hint=hint)
        self.others = others
