"""From a case to what is said about it: figures, symptoms and causes, and the causes ordered with the root first."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

from fledge.diagnosis.case import Case
from fledge.diagnosis.cause import Cause, Diagnoses, Diagnosis, Sign, Symptom
from fledge.diagnosis.causes import CAUSES
from fledge.diagnosis.curves import curve_figures
from fledge.diagnosis.evidence import named
from fledge.diagnosis.expectations import plan_figures
from fledge.diagnosis.measures import MEASURES
from fledge.diagnosis.symptoms import SYMPTOMS
from fledge.findings import Finding

CONFIDENCE_ORDER = {"certain": 0, "likely": 1, "possible": 2, None: 3}
Found = dict[str, tuple[Cause, Sign]]


def diagnose(case: Case, *, causes: Sequence[Cause] = CAUSES, symptoms: Sequence[Symptom] = SYMPTOMS) -> Diagnoses:
    """All that can be said about a case. Its figures of curves and plan are computed first and added to it; those of data and
    probes are taken as they are. A case without evidence yields nothing."""
    add_own_figures(case)
    seen = {one.name: named(finding, one.name) for one in symptoms if (finding := one.find(case)) is not None}
    found: Found = {}
    missing: dict[str, list[str]] = {}
    for cause in causes:
        if not may_be(cause, case):
            continue
        sign, wanted = _look(cause, case)
        if sign is not None:
            found[cause.name] = cause, replace(sign, finding=named(sign.finding, cause.name))
        else:
            for figure in wanted:
                missing.setdefault(figure, []).append(cause.name)
    roots, left = _ordered(found, seen)
    return Diagnoses(found=roots, unexplained=left, missing={name: tuple(missing[name]) for name in sorted(missing)})


def add_own_figures(case: Case) -> None:
    """Compute the figures of the log alone and of the plan, and add them to the case."""
    case.add("curves", curve_figures(case.log))
    case.add("plan", plan_figures(case))
    case.wanted.clear()


def may_be(cause: Cause, case: Case) -> bool:
    """Whether a cause is possible in a stage of this kind; where the kind is not known, all are."""
    return not cause.kinds or case.kind is None or case.kind in cause.kinds


def _look(cause: Cause, case: Case) -> tuple[Sign | None, list[str]]:
    """The sign of a cause, and the figures that were not there when it was looked for: of data, of probes, and series."""
    before, case.wanted = case.wanted, set()
    sign = cause.find(case)
    asked, case.wanted = case.wanted, before | case.wanted
    wanted: dict[str, None] = {}
    for name in (*cause.needs, *sorted(asked)):
        if name in case.figures or case.log.get(name) is not None:
            continue
        if name in MEASURES or name in cause.needs:
            wanted[name] = None
    return sign, list(wanted)


def _key(cause: Cause, sign: Sign) -> tuple[bool, bool, bool, int, float, int]:
    """What is said first: warnings before information, what is at least likely before guesses, causes before mere effects, then
    the surer, the stronger, the one nearer the root."""
    finding, order = sign.finding, CONFIDENCE_ORDER[sign.finding.confidence]
    is_guess = order >= CONFIDENCE_ORDER["possible"]
    return finding.severity == "info", is_guess, cause.is_effect, order, -round(sign.strength, 1), cause.rank


def _closure(found: Found) -> dict[str, set[str]]:
    """For each cause that was found, everything that follows from it, over other causes that were found."""
    reach = {name: set(cause.explains) for name, (cause, _) in found.items()}
    for _ in reach:
        for name, names in reach.items():
            reach[name] = names.union(*(reach[other] for other in names if other in reach)) - {name}
    return reach


def _ordered(found: Found, seen: Mapping[str, Finding]) -> tuple[tuple[Diagnosis, ...], tuple[Finding, ...]]:
    """The roots with what follows from them, and the symptoms that follow from nothing."""
    reach = _closure(found)
    order = sorted(found, key=lambda name: _key(*found[name]))
    parents = {name: _parent(name, order, reach, found) for name in order}
    roots = [name for name in order if parents[name] is None]
    under: dict[str, list[Finding]] = {name: [] for name in roots}
    for name in order:
        if parents[name] is not None:
            under[_root(name, parents)].append(found[name][1].finding)
    left = []
    for name, finding in seen.items():
        root = next((_root(one, parents) for one in order if name in reach[one] and _may_cover(found[one][1], finding)), None)
        (left if root is None else under[root]).append(finding)
    diagnoses = [
        Diagnosis(cause=name, category=found[name][0].category, sign=found[name][1], consequences=tuple(under[name]))
        for name in roots
    ]
    return tuple(diagnoses), tuple(left)


def _may_cover(sign: Sign, symptom: Finding) -> bool:
    """Whether a cause is told as the one of a symptom: not if it is mere information and the symptom is more."""
    return sign.finding.severity != "info" or symptom.severity == "info"


def _parent(name: str, order: Sequence[str], reach: Mapping[str, set[str]], found: Found) -> str | None:
    """The first other cause that explains this one, and is no mere guess where this one is none; None for a root. Of two that
    explain each other, the first in order is the root."""
    sign = found[name][1]
    for place, other in enumerate(order):
        is_mutual = other in reach[name]
        if other == name or name not in reach[other] or (is_mutual and order.index(name) < place):
            continue
        is_guess = found[other][1].finding.confidence == "possible" and sign.finding.confidence != "possible"
        if not is_guess and _may_cover(found[other][1], sign.finding):
            return other
    return None


def _root(name: str, parents: Mapping[str, str | None]) -> str:
    """The root above a cause."""
    passed = {name}
    while (parent := parents[name]) is not None and parent not in passed:
        passed.add(parent)
        name = parent
    return name
