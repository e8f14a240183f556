"""Causes of bad training, and what is found about them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from fledge.diagnosis.case import Case
from fledge.findings import Finding

Category = Literal[
    "data", "targets", "template", "learning rate", "batch", "duration", "precision", "model", "preferences", "rewards",
    "processes", "evaluation", "answers", "machine",
]  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class Sign:
    """What speaks for a cause: a finding with evidence and confidence, and how strongly.

    `strength` in [0, 1] orders causes: 1 where the evidence decides. `alternatives`: name of another cause that the same
    figures allow → the figure or probe that would decide between them. `proof`: how to prove it, in a sentence. `steps`: the
    steps that the evidence was read from.
    """

    finding: Finding
    strength: float
    alternatives: Mapping[str, str] = field(default_factory=dict)
    proof: str = ""
    steps: tuple[float, float] | None = None


@dataclass(frozen=True, kw_only=True)
class Cause:
    """One thing that goes wrong. An entry of a table.

    `find` reads a case and returns the sign of this cause, or None. `kinds`: of stage, where it can be; empty: of all.
    `explains`: names of symptoms and of other causes that follow from it, and are shown under it. `needs`: names of figures
    without which it cannot be found. `setting`: whether it is cured by settings, so that schemes make sense. `rank`: of causes
    of like strength, the one with the lower number comes first: nearer the root. `is_effect`: whether it is what another cause
    does, told as a cause where none is known, such as a log that ends with an error: it stands behind every other cause that
    is at least likely.
    """

    name: str
    category: Category
    find: Callable[[Case], Sign | None]
    kinds: frozenset[str] = frozenset()
    explains: frozenset[str] = frozenset()
    needs: tuple[str, ...] = ()
    setting: bool = False
    rank: int = 50
    is_effect: bool = False


@dataclass(frozen=True, kw_only=True)
class Symptom:
    """Something that can be seen, whatever its cause: `find` returns a finding or None."""

    name: str
    find: Callable[[Case], Finding | None]


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """A cause that was found, with what follows from it."""

    cause: str
    category: Category
    sign: Sign
    consequences: tuple[Finding, ...] = ()

    def as_dict(self) -> dict[str, Any]:
        """The diagnosis as JSON values: the keys of a finding, and more."""
        return {
            **self.sign.finding.as_dict(),
            "cause": self.cause,
            "category": self.category,
            "strength": round(self.sign.strength, 3),
            "alternatives": dict(self.sign.alternatives),
            "proof": self.sign.proof,
            "steps": self.sign.steps,
            "consequences": [finding.as_dict() for finding in self.consequences],
        }


@dataclass(frozen=True, kw_only=True)
class Diagnoses:
    """All that is said about a case.

    `found`: the causes, the root first. `unexplained`: symptoms that no cause explains: the doctor cannot tell. `missing`:
    figure that was not measured → causes that need it.
    """

    found: tuple[Diagnosis, ...]
    unexplained: tuple[Finding, ...]
    missing: Mapping[str, tuple[str, ...]]

    @property
    def is_healthy(self) -> bool:
        """Whether nothing is wrong: no cause that is at least likely, and no symptom, beyond information. A symptom counts also
        where its cause is only possible."""
        shown = [finding for one in self.found for finding in (one.sign.finding, *one.consequences)]
        return not any(
            finding.severity != "info" and finding.confidence in ("certain", "likely")
            for finding in (*shown, *self.unexplained)
        )
