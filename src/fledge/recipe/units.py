"""Quantities as a person writes them: `3 epochs`, `500 steps`, `5%`, `6 GiB`."""

import re
from dataclasses import dataclass
from decimal import Decimal

_NUMBER = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9][0-9_]*)(?:\.[0-9]*)?(?:[eE][-+]?[0-9]{1,2})?"  # `1,5` is not a number
_LENGTH = re.compile(rf"^\s*({_NUMBER})\s*([kKmMbB]?)\s*(epochs?|steps?|tokens?)\s*$")
_SCALE = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9}


@dataclass(frozen=True)
class Length:
    """How long a stage trains: `amount` of `unit` (epochs, steps or tokens)."""

    amount: float
    unit: str

    @classmethod
    def parse(cls, text: str) -> "Length":
        """Read `3 epochs`, `0.5 epochs`, `500 steps` or `20M tokens`; ValueError says what is accepted."""
        match = _LENGTH.match(text)
        if not match:
            raise ValueError(f"cannot read the length '{text}': write '3 epochs', '500 steps' or '20M tokens'")
        amount = float(Decimal(match[1].replace("_", "").replace(",", "")) * _SCALE[match[2].lower()])
        unit = match[3].rstrip("s") + "s"
        if amount <= 0:
            raise ValueError(f"the length '{text}' must be more than zero")
        if unit != "epochs" and amount != int(amount):
            raise ValueError(f"the length '{text}' must be a whole number of {unit}")
        return cls(amount, unit)

    def __str__(self) -> str:
        """A text that parses back to the same value."""
        return f"{int(self.amount) if self.amount == int(self.amount) else self.amount} {self.unit}"


_SIZE = re.compile(r"^\s*([0-9]+(?:\.[0-9]+)?)\s*([kKmMgG]i?)?B?\s*$")
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}


def memory_size(value: object) -> object:
    """`6 GiB` -> 6442450944, `500 MB` -> 500000000; everything else stays as it is."""
    if not isinstance(value, str):
        return value
    match = _SIZE.match(value)
    if not match:
        raise ValueError(f"cannot read the size '{value}': write '6 GiB' or '500 MB'")
    return int(float(match[1]) * _UNITS[(match[2] or "").lower()])


_TIME = re.compile(r"^\s*([0-9]+(?:\.[0-9]+)?)\s*(s|min|h|d)\s*$")
_SECONDS = {"s": 1, "min": 60, "h": 3600, "d": 86400}


def time_span(value: object) -> object:
    """`90 min` -> 5400.0 seconds, `8 h` -> 28800.0; everything else stays as it is."""
    if not isinstance(value, str):
        return value
    match = _TIME.match(value)
    if not match:
        raise ValueError(f"cannot read the time '{value}': write '90 min', '8 h' or '2 d'")
    return float(match[1]) * _SECONDS[match[2]]


def share(value: object) -> object:
    """`5%` -> 0.05; everything else stays as it is."""
    if isinstance(value, str) and value.strip().endswith("%"):
        try:
            return float(value.strip()[:-1]) / 100
        except ValueError:
            raise ValueError(f"cannot read the share '{value}': write '5%' or 0.05") from None
    return value


def steps_or_share(value: object) -> object:
    """For fields that take steps (whole) or a share (below 1): `100%` must not become one step."""
    read = share(value)
    if isinstance(value, str) and isinstance(read, float) and read >= 1:
        raise ValueError(f"the share '{value}' must be below 100%")
    return read
