"""Findings about the data of a stage, of the kind that guards and other checks share."""

from typing import Any

from fledge.findings import Finding, Severity


def data_finding(
    *,
    check: str,
    severity: Severity,
    message: str,
    source: str = "",
    where: str = "",
    hint: str = "",
    patch: dict[str, Any] | None = None,
) -> Finding:
    """A finding about the data of a stage; `source` is the name of the source that it is about, `where` the FILE:LINE of the
    first row concerned."""
    evidence = {"source": source} if source else {}
    return Finding(check=check, severity=severity, message=message, where=where, hint=hint, evidence=evidence, patch=patch)
