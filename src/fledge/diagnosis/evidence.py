"""Evidence as JSON values, and the findings of symptoms."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from fledge.findings import Finding, Severity


def seen(message: str, *, severity: Severity = "warning", hint: str = "", evidence: Mapping[str, Any] | None = None) -> Finding:
    """The finding of a symptom: it is seen, so it is certain, whatever its cause. `diagnose` sets the name of the check."""
    return Finding(check="", severity=severity, message=message, hint=hint, evidence=evidence or {}, confidence="certain")


def named(finding: Finding, name: str) -> Finding:
    """The finding under the name of its check, with evidence and patch as JSON values."""
    patch = None if not finding.patch else _plain(finding.patch)
    return replace(finding, check=name, evidence=plain(finding.evidence), patch=patch)


def plain(evidence: Mapping[str, Any]) -> dict[str, Any]:
    """Evidence as JSON values: numbers of numpy become numbers of Python with six digits; figures that are None or no finite
    numbers are left out."""
    values = {str(name): _plain(value) for name, value in evidence.items()}
    return {name: value for name, value in values.items() if value is not None}


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return plain(value)
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    if isinstance(value, bool | str | int) or value is None:
        return value
    number = float(value)
    return float(f"{number:.6g}") if math.isfinite(number) else None


def rounded(value: float, digits: int = 1) -> float:
    """A number with so many significant digits, as one would write it into a recipe."""
    return float(f"{value:.{digits}g}")
