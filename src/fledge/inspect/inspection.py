"""The inspection of one stage: its statistics and findings, for the terminal, for JSON and for the page."""

from dataclasses import dataclass
from typing import Any

from fledge.data.analysis.statistics import StageStatistics
from fledge.findings import Finding


@dataclass(frozen=True)
class StageInspection:
    """The statistics of one stage, with the findings of all checks."""

    statistics: StageStatistics
    findings: tuple[Finding, ...]

    def as_dict(self) -> dict[str, Any]:
        """The inspection as JSON values."""
        return {**self.statistics.as_dict(), "findings": [finding.as_dict() for finding in self.findings]}
