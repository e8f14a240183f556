"""Cards that a plan can be made for without having them: memory, speed, power and prices, from a table with its sources."""

import difflib
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, PositiveFloat, PositiveInt

from fledge.errors import FledgeError

OPTION = "--device"
MAX_COUNT = 4096  # cards; more is a mistake in writing
PRECISIONS = ("fp32", "tf32", "fp16", "bf16")
_TIMES = r"\s*[x×*]\s*"
_COUNT_FIRST = re.compile(rf"([0-9]+){_TIMES}(.+)", re.IGNORECASE)
_COUNT_LAST = re.compile(rf"(.+?){_TIMES}([0-9]+)", re.IGNORECASE)
_MAKERS = re.compile(r"^(nvidia|geforce|tesla|quadro)+")

Currency = Literal["CNY", "USD"]

HIRE_ORIGINS: Mapping[Currency, str] = {
    "CNY": "lowest offers of a price index of platforms in China, and a comparison of platforms of 2025",
    "USD": "price lists and market places of clouds outside China, without a long contract",
}
PURCHASE_ORIGINS: Mapping[Currency, str] = {
    "CNY": "list price at launch",
    "USD": "list price at launch, and where two prices are given also used, discounted or scarce cards",
}


@dataclass(frozen=True)
class PriceRange:
    """The lowest and the highest price that were found, in `currency`, and when they were read, such as `2026-11`."""

    currency: Currency
    low: float
    high: float
    read: str


@dataclass(frozen=True, kw_only=True)
class Device:
    """A card, in SI units: bytes, bytes/s, FLOP/s, W.

    `memory`: bytes as the driver reports them; CUDA itself needs some of them. `peaks`: FLOP/s of dense matrix products by
    precision, sums in fp32; what has no fast products is left out. `capability`: CUDA compute capability. `link`: bytes/s that
    a card sends to the others of its machine, in one direction. `hire`: prices of one card for an hour, `purchase`: of one
    card. `source` names where the figures come from; `unverified` are those that no text at hand confirmed.
    """

    name: str
    aliases: tuple[str, ...]
    memory: int
    bandwidth: float
    peaks: Mapping[str, float]
    capability: tuple[int, int]
    power: float
    link: float
    hire: tuple[PriceRange, ...]
    purchase: tuple[PriceRange, ...]
    source: str
    unverified: tuple[str, ...]

    def supports(self, precision: str) -> bool:
        """Whether the card has matrix products of this precision: fp32, tf32, fp16 or bf16."""
        return precision in self.peaks

    def peak(self, precision: str) -> float:
        """FLOP/s of dense matrix products in `precision`: fp32, tf32, fp16 or bf16, the last two with sums in fp32.

        Raises FledgeError if the card has no such products.
        """
        if precision not in self.peaks:
            raise FledgeError(
                f"{self.name} has no fast {precision} products (compute capability {self.capability[0]}.{self.capability[1]})",
                where="runtime.precision",
                hint=f"set runtime.precision to auto or one of: {', '.join(self.peaks)}",
            )
        return self.peaks[precision]

    def caveat(self) -> str | None:
        """What the reader of a plan should know about the figures; None if all were confirmed."""
        if not self.unverified:
            return None
        return f"{self.name}: not confirmed by a source: {', '.join(self.unverified)}"


class _Row(BaseModel):
    """A part of the table: unknown keys and impossible figures are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class _Card(_Row):
    memory_mib: PositiveInt
    bandwidth: PositiveFloat  # GB/s
    capability: tuple[PositiveInt, Annotated[int, Field(ge=0)]]
    power: PositiveFloat  # W
    link: PositiveFloat  # GB/s


class _Peaks(_Row):
    """TFLOP/s."""

    fp32: PositiveFloat
    tf32: PositiveFloat | None = None
    fp16: PositiveFloat | None = None
    bf16: PositiveFloat | None = None


_Prices = dict[Currency, tuple[PositiveFloat, PositiveFloat, int | str]]


class _Entry(_Row):
    aliases: tuple[str, ...]
    card: _Card
    peak: _Peaks
    hire: _Prices = {}
    purchase: _Prices = {}
    source: Annotated[str, Field(min_length=1)]
    unverified: tuple[Literal["memory_mib", "bandwidth", "power", "link", "fp32", "tf32", "fp16", "bf16", "purchase"], ...] = ()

    def device(self, name: str) -> Device:
        """The entry in SI units."""
        return Device(
            name=name,
            aliases=self.aliases,
            memory=self.card.memory_mib * 2**20,
            bandwidth=self.card.bandwidth * 1e9,
            peaks={key: value * 1e12 for key in PRECISIONS if (value := getattr(self.peak, key)) is not None},
            capability=self.card.capability,
            power=self.card.power,
            link=self.card.link * 1e9,
            hire=_ranges(self.hire),
            purchase=_ranges(self.purchase),
            source=self.source,
            unverified=self.unverified,
        )


class _Table(_Row):
    devices: dict[str, _Entry]


def _ranges(prices: _Prices) -> tuple[PriceRange, ...]:
    return tuple(PriceRange(currency, low, high, str(read)) for currency, (low, high, read) in prices.items())


@cache
def _table() -> _Table:
    text = (resources.files("fledge.plan") / "devices.yaml").read_text(encoding="utf-8")
    return parse_table(text)


def parse_table(text: str) -> _Table:
    """The table of a YAML text, checked: unknown keys, figures that are not above zero, prices whose lowest is above the
    highest, and names that stand for two cards are a ValueError."""
    table = _Table.model_validate(yaml.safe_load(text))
    owners: dict[str, str] = {}
    for name, entry in table.devices.items():
        for spelling in (name, *entry.aliases):
            if owners.setdefault(_folded(spelling), name) != name:
                raise ValueError(f"'{spelling}' stands for {owners[_folded(spelling)]} and for {name}")
        for prices in (entry.hire, entry.purchase):
            if any(low > high for low, high, _ in prices.values()):
                raise ValueError(f"{name}: the lowest price is above the highest")
    return table


@cache
def read_devices() -> Mapping[str, Device]:
    """All cards of the table by name, in the order of the table: from old to new, and from small to large within one kind."""
    return {name: entry.device(name) for name, entry in _table().devices.items()}


def _folded(text: str) -> str:
    """A name without case, width, blanks, hyphens and the names of makers and product lines."""
    letters = "".join(letter for letter in unicodedata.normalize("NFKC", text).casefold() if letter.isalnum())
    return _MAKERS.sub("", letters)


@cache
def _by_spelling() -> Mapping[str, Device]:
    return {_folded(text): device for device in read_devices().values() for text in (device.name, *device.aliases)}


def find_device(text: str) -> tuple[Device, int]:
    """The card and the number of cards that a text such as `T4`, `rtx 3090`, `2xA100` or `T4 × 2` names.

    Case, blanks, hyphens and the words NVIDIA, GeForce, Tesla and Quadro do not matter. A short name of several variants, such
    as A100, means the one with the least memory and the slowest products; the name of the device that is returned tells which.
    Raises FledgeError for a name that is not in the table, with those that are close to it, and for a count of 0 or above 4096.
    """
    plain = unicodedata.normalize("NFKC", text).strip()
    known = _by_spelling()
    if device := known.get(_folded(plain)):
        return device, 1
    first, last = _COUNT_FIRST.fullmatch(plain), _COUNT_LAST.fullmatch(plain)
    readings = [(first[2], first[1])] if first else []
    readings += [(last[1], last[2])] if last else []
    for name, digits in readings:
        if device := known.get(_folded(name)):
            return device, _count(digits, text)
    raise _unknown(text, first[2] if first else plain)


def _count(digits: str, text: str) -> int:
    count = int(digits) if len(digits) <= len(str(MAX_COUNT)) else MAX_COUNT + 1
    if not 1 <= count <= MAX_COUNT:
        raise FledgeError(
            f"cannot plan for {digits} cards: '{text}'", where=OPTION, hint=f"write a number from 1 to {MAX_COUNT}, as in 2xT4"
        )
    return count


def _unknown(text: str, name: str) -> FledgeError:
    """The error for a name that is not in the table: with the variants that begin like it, else with close names."""
    folded, known = _folded(name), _by_spelling()
    begins = {device.name for spelling, device in known.items() if len(folded) >= 2 and spelling.startswith(folded)}
    close = [known[spelling].name for spelling in difflib.get_close_matches(folded, known, 5, 0.6)]
    names = [device for device in read_devices() if device in begins] or list(dict.fromkeys(close))
    hint = f"did you mean {' or '.join(names)}?" if names else f"the cards in the table are: {', '.join(read_devices())}"
    return FledgeError(f"there is no card '{text}' in the table", where=OPTION, hint=hint)
