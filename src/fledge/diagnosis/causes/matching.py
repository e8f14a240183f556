"""What several causes of settings ask of a case: symptoms that match them, and how sure a figure beyond its band makes them."""

from collections.abc import Iterable

from fledge.diagnosis.case import Case
from fledge.diagnosis.symptoms import FINDERS
from fledge.findings import Confidence


def matching(case: Case, names: Iterable[str]) -> list[str]:
    """The symptoms of these names that are seen as more than information."""
    found = ((name, FINDERS[name](case)) for name in names)
    return [name for name, finding in found if finding is not None and finding.severity != "info"]


def beyond(factor: float, is_matched: bool, *, far: float, some: float, near: float = float("inf")) -> Confidence | None:
    """How sure a figure makes a cause that is `factor` times beyond its band: likely from `far` on, and from `some` on where a
    symptom matches; possible from `some` on, and from `near` on where a symptom matches."""
    if factor >= far or (factor >= some and is_matched):
        return "likely"
    return "possible" if factor >= some or (factor >= near and is_matched) else None


def times(factor: float) -> str:
    """`8 times`, `1.5 times`."""
    return f"{factor:.0f} times" if factor >= 3 else f"{factor:.1f} times"


def inner_update(case: Case, name: str) -> float | None:
    """The largest figure of this name of attention and MLP matrices; None where it is not told."""
    ratios = case.value(f"curve/{name}")
    inner = [value for group, value in ratios.items() if group in ("attention", "mlp")] if isinstance(ratios, dict) else []
    return max(inner) if inner else None
