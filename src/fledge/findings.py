"""The findings of checks: of the data before a run, and of the events while a stage trains."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Severity = Literal["info", "warning", "error"]
Confidence = Literal["certain", "likely", "possible"]
"""How sure a check is. certain: it follows from the figures; likely: it was so in published or own trials of such settings;
possible: it depends on the data and the purpose."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One problem that a check found: message, location, and hint.

    `evidence`: the figures behind the message, as JSON values. `patch`: a change of the recipe that would help, as dotted keys
    and their new values; None if no such change is known. `confidence`: how sure the check is; None: it does not say.
    """

    check: str
    severity: Severity
    message: str
    where: str = ""
    hint: str = ""
    evidence: Mapping[str, Any] = field(default_factory=dict)
    patch: Mapping[str, Any] | None = None
    confidence: Confidence | None = None

    def as_dict(self) -> dict[str, Any]:
        """The finding as JSON values; `confidence` is there where the check says how sure it is."""
        return {
            "check": self.check,
            "severity": self.severity,
            "message": self.message,
            "where": self.where,
            "hint": self.hint,
            "evidence": dict(self.evidence),
            "patch": None if self.patch is None else dict(self.patch),
            **({} if self.confidence is None else {"confidence": self.confidence}),
        }

    def overrides(self) -> str:
        """The patch as options of the command, such as `--stages.sft.data.max_seq_len 512`; empty without a patch."""
        return " ".join(f"--{key} {json.dumps(value, ensure_ascii=False)}" for key, value in (self.patch or {}).items())
