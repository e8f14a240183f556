"""Numbers as people read them."""

import math
from collections.abc import Callable

SCALES = ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k"))
BINARY_UNITS = ("B", "KiB", "MiB", "GiB", "TiB")


def odd(value: float) -> str | None:
    """The spelling of a value that is no finite number."""
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    return None


def signed(spelled: str) -> str:
    return spelled.replace("-", "−", 1) if spelled.startswith("-") else spelled


def whole(value: float) -> str:
    return odd(value) or signed(f"{value:,.0f}" if value == int(value) else f"{value:,.2f}")


def compact(value: float) -> str:
    """1,234 · 56.7 k · 1.23 M: three figures once past ten thousand."""
    if odd(value) or abs(value) < 10_000:
        return whole(value)
    for scale, letter in SCALES:
        if abs(value) >= scale * 0.9995:
            return f"{three(value / scale)} {letter}"
    return whole(value)


def three(value: float) -> str:
    """Three significant figures, never in exponent form below a million."""
    strange = odd(value)
    if strange:
        return strange
    size = abs(value)
    if size >= 1e6 or 0 < size < 1e-3:
        return signed(f"{value:.2e}")
    digits = 0 if size >= 100 else 1 if size >= 10 else 2 if size >= 0.1 else 4
    return signed(f"{value:,.{digits}f}")


def loss(value: float) -> str:
    return odd(value) or signed(f"{value:.3f}")


def percent(share: float) -> str:
    strange = odd(share)
    return strange or f"{share * 100:.1f}"


def duration(seconds: float) -> str:
    strange = odd(seconds)
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
    if odd(count):
        return f"{odd(count)} B"
    place = 0
    while abs(count) >= 1024 and place < len(BINARY_UNITS) - 1:
        count /= 1024
        place += 1
    return f"{three(count) if place else whole(count)} {BINARY_UNITS[place]}"


def spelled(format_: Callable[[float], str], value: float | None) -> str | None:
    return None if value is None else format_(value)
