"""The schemes of a stage in words."""

from collections.abc import Iterator, Mapping
from typing import Any

from fledge.doctor.examination import Examination
from fledge.doctor.lines import Line
from fledge.doctor.scheme_cost import Cost
from fledge.doctor.schemes import Scheme, SchemeStep, schemes
from fledge.doctor.sparkline import number
from fledge.doctor.synonyms import in_dialect
from fledge.findings import Finding

DESCRIPTIONS = {
    "A": "scheme A, aggressive: all changes at once",
    "B": "scheme B, conservative: half of the way, and only what is likely",
    "C": "scheme C, stepwise: one change after another; each one stays only if it helps",
}


def scheme_lines(examination: Examination) -> Iterator[Line]:
    """The lines of the schemes of a stage; a sentence where there are none."""
    found = schemes(examination)
    name = examination.stage or examination.case.log.source
    if not found:
        yield Line(f"{name}: nothing was found that settings cure, so there are no schemes")
        yield Line("")
        return
    for scheme in found:
        yield Line(f"{name}: {DESCRIPTIONS[scheme.letter]}")
        for place, step in enumerate(scheme.steps, 1):
            yield from _step(examination, scheme, step, place)
        for effect in scheme.effects:
            yield Line(f"expected: {effect}", 3)
        for key, why in scheme.left_out.items():
            yield Line(f"left out: {key}: {why}", 3)
        yield Line(f"cost: {cost_text(scheme.cost)}", 3)
        yield Line("")


def _step(examination: Examination, scheme: Scheme, step: SchemeStep, place: int) -> Iterator[Line]:
    mark = f"{place}. " if len(scheme.steps) > 1 else "→ "
    for words in step.words:
        yield Line(words, 3, mark)
        mark = " " * len(mark)
    for text in _options(examination, step.patch):
        yield Line(text, 3, mark, verbatim=True)
        mark = " " * len(mark)
    if step.look and place < len(scheme.steps) + 1:
        yield Line(step.look, 3 + len(mark))


def _options(examination: Examination, patch: Mapping[str, Any]) -> list[str]:
    if not patch:
        return []
    if examination.target.is_run:
        return [Finding(check="", severity="info", message="", patch=patch).overrides()]
    return in_dialect(patch, examination.case)


def cost_text(cost: Cost) -> str:
    """`2,000 updates, 4.1M tokens, 12 min of training; memory as before`."""
    parts = [f"{number(cost.updates)} updates"] if cost.updates else []
    parts += [f"{number(cost.tokens)} tokens"] if cost.tokens else []
    parts += [f"{_time(cost.seconds)} of training"] if cost.seconds else []
    said = ", ".join(parts) or "not known"
    return f"{said}; memory {cost.memory}"


def _time(seconds: float) -> str:
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
