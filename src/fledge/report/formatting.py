"""Numbers as text for people: thousands separators, three significant figures, units."""

import math
from collections.abc import Callable

SCALES = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))
BINARY_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def non_finite(value: float) -> str | None:
    """`NaN`, `∞` or `−∞` for a value that is not finite, else None."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return None


def with_minus_sign(digits: str) -> str:
    """The digits with a typographic minus sign instead of a leading hyphen."""
    return digits.replace("-", "−", 1) if digits.startswith("-") else digits


def whole(value: float) -> str:
    """All digits with thousands separators, and two decimals when the value is not an integer: `12,345`."""
    return non_finite(value) or with_minus_sign(f"{value:,.0f}" if value == int(value) else f"{value:,.2f}")


def compact(value: float) -> str:
    """All digits below ten thousand, then three significant figures with a scale: `1,234`, `56.7 k`, `1.23 M`."""
    if non_finite(value) or abs(value) < 10_000:
        return whole(value)
    for scale, letter in SCALES:
        if abs(value) >= scale * 0.9995:
            return f"{three_figures(value / scale)} {letter}"
    return whole(value)


def three_figures(value: float) -> str:
    """Three significant figures; an exponent only from a million upward and below a thousandth."""
    strange = non_finite(value)
    if strange:
        return strange
    size = abs(value)
    if size >= 1e6 or 0 < size < 1e-3:
        return with_minus_sign(f"{value:.2e}")
    digits = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 0.1 else 4
    return with_minus_sign(f"{value:,.{digits}f}")


def loss(value: float) -> str:
    """A loss with three decimals."""
    return non_finite(value) or with_minus_sign(f"{value:.3f}")


def percent(share: float) -> str:
    """A fraction as a percentage with one decimal, without the sign `%`."""
    strange = non_finite(share)
    return strange or f"{share * 100:.1f}"


def duration(seconds: float) -> str:
    """Seconds as `4.2 s`, `2 min 05 s` or `1 h 02 min`."""
    strange = non_finite(seconds)
    if strange:
        return f"{strange} s"
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes:02d} min"


def size(count: float) -> str:
    """Bytes with a binary unit: `1.50 GiB`."""
    if non_finite(count):
        return f"{non_finite(count)} B"
    unit = 0
    while abs(count) >= 1024 and unit < len(BINARY_UNITS) - 1:
        count /= 1024
        unit += 1
    return f"{three_figures(count) if unit else whole(count)} {BINARY_UNITS[unit]}"


def format_or_none(format_: Callable[[float], str], value: float | None) -> str | None:
    """The formatted value, or None when there is no value."""
    return None if value is None else format_(value)
