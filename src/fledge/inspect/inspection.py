"""What a look at one stage gives: shown on the terminal, as JSON and as a page."""

from dataclasses import dataclass
from typing import Any

from fledge.data.analysis.findings import Finding
from fledge.data.analysis.statistics import StageStatistics


@dataclass(frozen=True)
class StageInspection:
    """One stage with its numbers and what was found in them."""

    statistics: StageStatistics
    findings: tuple[Finding, ...]

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {**self.statistics.as_dict(), "findings": [finding.as_dict() for finding in self.findings]}
