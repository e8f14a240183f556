"""Findings: what a check says about the data of a stage."""

from dataclasses import asdict, dataclass
from typing import Any, Literal

Level = Literal["error", "warning"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """What one check found. `level`: error (training would be meaningless) or warning. `where`: FILE:LINE of the first row
    concerned. `hint`: what to do."""

    check: str
    level: Level
    message: str
    source: str = ""
    where: str = ""
    hint: str = ""

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)
