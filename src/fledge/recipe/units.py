"""Quantities as people write them: `3 epochs`, `500 steps`, `5%`, `6 GiB`."""

import re
from dataclasses import dataclass
from decimal import Decimal

from fledge.recipe.mistyped import meant_duration

_NUMBER = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9][0-9_]*)(?:\.[0-9]*)?(?:[eE][-+]?[0-9]{1,2})?"  # `1,5` is not a number
_DURATION = re.compile(rf"^\s*({_NUMBER})\s*([kmb]?)\s*(epochs?|steps?|tokens?)\s*$", re.IGNORECASE)
_SCALE = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}


@dataclass(frozen=True)
class Duration:
    """The length of a stage's training: `amount` of `unit` (epochs, steps or tokens)."""

    amount: float
    unit: str

    @classmethod
    def parse(cls, text: str) -> "Duration":
        """Parse `3 epochs`, `0.5 epochs`, `500 steps` or `20M tokens`; a ValueError says what is accepted."""
        match = _DURATION.match(text)
        if not match:
            meant = meant_duration(text)
            ways = f"'{meant}'" if _DURATION.match(meant) else "'3 epochs', '500 steps' or '20M tokens'"
            raise ValueError(f"cannot read the duration '{text}': write {ways}")
        amount = float(Decimal(match[1].replace("_", "").replace(",", "")) * _SCALE[match[2].lower()])
        unit = match[3].lower().rstrip("s") + "s"
        if amount <= 0:
            raise ValueError(f"the duration '{text}' must be more than zero")
        if unit != "epochs" and amount != int(amount):
            raise ValueError(f"the duration '{text}' must be a whole number of {unit}")
        return cls(amount, unit)

    def __str__(self) -> str:
        """A text that parses to an equal duration."""
        return f"{int(self.amount) if self.amount == int(self.amount) else self.amount} {self.unit}"


_SIZE = re.compile(r"^\s*([0-9]+(?:\.[0-9]+)?)\s*([kKmMgG]i?)?B?\s*$")
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


def memory_size(value: object) -> object:
    """Bytes of a text: `6 GiB` -> 6442450944, `500 MB` -> 500000000. Other values are returned unchanged."""
    if not isinstance(value, str):
        return value
    match = _SIZE.match(value)
    if not match:
        raise ValueError(f"cannot read the size '{value}': write '6 GiB' or '500 MB'")
    return int(float(match[1]) * _UNITS[(match[2] or "").lower()])


_TIME = re.compile(r"^\s*([0-9]+(?:\.[0-9]+)?)\s*(s|min|h|d)\s*$")
_SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86400}


def time_span(value: object) -> object:
    """Seconds of a text: `90 min` -> 5400.0, `8 h` -> 28800.0. Other values are returned unchanged."""
    if not isinstance(value, str):
        return value
    match = _TIME.match(value)
    if not match:
        raise ValueError(f"cannot read the time '{value}': write '90 min', '8 h' or '2 d'")
    return float(match[1]) * _SECONDS[match[2]]


def fraction(value: object) -> object:
    """The fraction of a percentage: `5%` -> 0.05. Other values are returned unchanged."""
    if isinstance(value, str) and value.strip().endswith("%"):
        try:
            return float(value.strip()[:-1]) / 100
        except ValueError:
            raise ValueError(f"cannot read the fraction '{value}': write '5%' or 0.05") from None
    return value


def steps_or_fraction(value: object) -> object:
    """For keys that take whole steps or a fraction below 1: like `fraction`, but ValueError for 100% and more."""
    result = fraction(value)
    if isinstance(value, str) and isinstance(result, float) and result >= 1:
        raise ValueError(f"the fraction '{value}' must be below 100%")
    return result
