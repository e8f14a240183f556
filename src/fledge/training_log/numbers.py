"""Numbers as logs write them: thousands separators, units, percentages, not-a-number, ranges."""

import math
import re
from typing import NamedTuple

NUMBER = r"[-+]?(?:\d{1,3}(?:,\d{3})+(?![\d])(?:\.\d+)?|\d+(?:\.\d*)?|\.\d+)(?:[eE][-+]?\d+)?"
SPECIAL = r"[-+]?(?:nan|inf(?:inity)?)(?![\w])|n/a(?!\w)|(?:none|null)(?!\w)|--(?![\w-])"
UNIT = (
    r"(?:%|[nmµμu]s(?![A-Za-z])|s(?:ec(?:onds?)?)?(?![A-Za-z])|min(?![A-Za-z])|h(?![A-Za-z])|[KMGTkmgt]i?[Bb](?![A-Za-z])"
    r"|[kKMBm](?![\w]))"
)
ABSENT = frozenset({"n/a", "none", "null", "--", "-", ""})

FACTORS: dict[str, tuple[str, float]] = {
    "%": ("share", 0.01),
    "ns": ("seconds", 1e-9),
    "us": ("seconds", 1e-6),
    "µs": ("seconds", 1e-6),
    "μs": ("seconds", 1e-6),
    "ms": ("seconds", 1e-3),
    "s": ("seconds", 1.0),
    "sec": ("seconds", 1.0),
    "second": ("seconds", 1.0),
    "seconds": ("seconds", 1.0),
    "min": ("seconds", 60.0),
    "h": ("seconds", 3600.0),
    "kb": ("bytes", 1e3),
    "mb": ("bytes", 1e6),
    "gb": ("bytes", 1e9),
    "tb": ("bytes", 1e12),
    "kib": ("bytes", 2.0**10),
    "mib": ("bytes", 2.0**20),
    "gib": ("bytes", 2.0**30),
    "tib": ("bytes", 2.0**40),
    "m": ("seconds", 60.0),
    "K": ("", 1e3),
    "k": ("", 1e3),
    "M": ("", 1e6),
    "B": ("", 1e9),
}
"""A unit, as written or in lower case → what it measures, and the factor to seconds, bytes, a share or a plain number."""

_TEXT = re.compile(rf"\s*(?P<number>{NUMBER}|{SPECIAL})\s?(?P<unit>{UNIT})?\s*\+?\s*", re.IGNORECASE)


class Quantity(NamedTuple):
    """A number with what its unit measures: `seconds`, `bytes`, `share`, or nothing where no unit was written."""

    value: float
    measures: str


def plain_number(text: str) -> float | None:
    """A number without its unit, with thousands separators, `nan` or `inf`; None for a word that says that there is none."""
    lowered = text.strip().lower()
    if lowered in ABSENT:
        return None
    try:
        return float(lowered.replace(",", ""))
    except ValueError:
        return None


def with_unit(number: str, unit: str | None) -> Quantity | None:
    """The number that two pieces of text mean, in the base unit of what it measures; None where they mean none."""
    value = plain_number(number)
    if value is None:
        return None
    written = (unit or "").strip()
    measures, factor = FACTORS.get(written) or FACTORS.get(written.lower(), ("", 1.0))
    return Quantity(value if factor == 1.0 else value * factor, measures)


def parse_number(text: str) -> Quantity | None:
    """The number that a whole cell or text holds, such as `1,234`, `2.5e-4`, `40.1%`, `0.85GiB`, `nan`; else None."""
    match = _TEXT.fullmatch(text)
    return with_unit(match["number"], match["unit"]) if match else None


def is_whole(value: float) -> bool:
    """Whether a number is finite and has no fraction."""
    return math.isfinite(value) and value == int(value)
