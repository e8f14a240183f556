"""What hours of computing cost: on cards that are hired, from the table or a price that is given, or on cards of one's own."""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

from fledge.errors import FledgeError
from fledge.plan.devices import HIRE_ORIGINS, Currency, Device

OPTION = "--price"
WAYS = (
    "write what one card costs in an hour, such as 2.5/h, '¥1.5-2.5/h' or '1.9 USD/h', or for a card of your own "
    "'own:6000/8000h+0.35kW*1': purchase / hours of its life + power * price of a kWh"
)
_NUMBER = r"(?:[0-9]{1,3}(?:,[0-9]{3}){1,3}|[0-9]{1,12})(?:\.[0-9]{1,12})?"
_CURRENCIES: dict[str, Currency] = {
    "": "CNY", "¥": "CNY", "元": "CNY", "cny": "CNY", "rmb": "CNY", "$": "USD", "usd": "USD", "us$": "USD",
}  # fmt: skip
_SIGNS = {"CNY": "¥", "USD": "$"}
_MONEY = "|".join(sorted(map(re.escape, filter(None, _CURRENCIES)), key=len, reverse=True))
_PER_HOUR = r"(?:/|每|per)(?:h|hour|hr|小时|时)"
_HIRED = re.compile(rf"({_MONEY})?({_NUMBER})(?:(?:-|~|to|至)({_NUMBER}))?({_MONEY})?{_PER_HOUR}")
_OWN = re.compile(
    rf"own:({_MONEY})?(?P<purchase>{_NUMBER})({_MONEY})?/(?P<life>{_NUMBER})(?:h|小时)"
    rf"(?:\+(?P<power>{_NUMBER})(?P<unit>kw|w)[*x×](?P<tariff>{_NUMBER}))?"
)


@dataclass(frozen=True)
class Money:
    """An amount between `low` and `high`, equal if it is known exactly, in a currency."""

    currency: Currency
    low: float
    high: float

    def text(self) -> str:
        """`¥130`, `$1.20–3.40`."""
        low, high = _amount(self.low), _amount(self.high)
        return _SIGNS[self.currency] + (low if low == high else f"{low}–{high}")


@dataclass(frozen=True)
class Rate:
    """What one card costs in an hour, and in words where the figure comes from."""

    hourly: Money
    origin: str


@dataclass(frozen=True)
class Rates:
    """What one card costs in an hour, in every currency in which a price is known; empty if none is."""

    rates: tuple[Rate, ...]

    def cost(self, hours: float, count: int = 1) -> tuple[Money, ...]:
        """The cost of `hours` on `count` cards, by currency."""
        return tuple(times(rate.hourly, hours * count) for rate in self.rates)


def times(money: Money, factor: float) -> Money:
    """An amount multiplied by a factor that is not negative."""
    return Money(money.currency, money.low * factor, money.high * factor)


def own_hourly(purchase: float, life_hours: float, kilowatts: float = 0.0, tariff: float = 0.0) -> float:
    """The cost of an hour on a card of one's own: purchase ÷ life_hours + kilowatts × tariff.

    `purchase`: price of the card; `life_hours`: hours that it will be used in all; `tariff`: price of a kWh, in the currency of
    the purchase. Straight-line depreciation: the card is worth nothing at its end, and interest, cooling and the rest of the
    computer are not counted.
    """
    return purchase / life_hours + kilowatts * tariff


def rates(device: Device | None, prices: Sequence[str] = ()) -> Rates:
    """The rates that the option `prices` gives, else those of the table for hiring the device; of none if there is no device.

    Raises FledgeError if a price cannot be read, or if two are in the same currency.
    """
    if not prices:
        return Rates(() if device is None else tuple(_hired(device)))
    given = tuple(parse_price(text) for text in prices)
    currencies = [rate.hourly.currency for rate in given]
    for currency in set(currencies):
        if currencies.count(currency) > 1:
            raise FledgeError(
                f"two prices in {_SIGNS[currency]}", where=OPTION, hint="give one for each currency, or a range: '¥1.5-2.5/h'"
            )
    return Rates(given)


def _hired(device: Device) -> list[Rate]:
    return [
        Rate(
            Money(price.currency, price.low, price.high),
            f"hire of one {device.name}, {price.read}: {HIRE_ORIGINS[price.currency]}",
        )
        for price in device.hire
    ]


def parse_price(text: str) -> Rate:
    """The rate that a text names, for one card: hired, such as `2.5/h`, `¥1.5-2.5/h`, `$1.9/h`, `1.9 USD/h`, or one's own, such
    as `own:6000/8000h+0.35kW*1`.

    A price without a currency is in ¥. Raises FledgeError for a text that is neither, and for prices that are not above zero.
    """
    plain = re.sub(r"\s+", "", unicodedata.normalize("NFKC", text)).lower()
    if match := _HIRED.fullmatch(plain):
        return _given_hire(match, text)
    if match := _OWN.fullmatch(plain):
        return _given_own(match, text)
    raise FledgeError(f"cannot read the price '{text}'", where=OPTION, hint=WAYS)


def _given_hire(match: re.Match[str], text: str) -> Rate:
    before, first, last, after = match.groups()
    low = _number(first)
    high = low if last is None else _number(last)
    if low <= 0:
        raise FledgeError(f"the price '{text}' is not above zero", where=OPTION, hint=WAYS)
    if high < low:
        raise FledgeError(f"the range '{text}' ends below its start", where=OPTION, hint=f"write {last}-{first}/h")
    return Rate(Money(_currency(before, after, text), low, high), f"hire of one card: '{text}'")


def _given_own(match: re.Match[str], text: str) -> Rate:
    purchase, life = _number(match["purchase"]), _number(match["life"])
    if purchase <= 0 or life <= 0:
        raise FledgeError(f"purchase and life must be above zero: '{text}'", where=OPTION, hint=WAYS)
    power = 0.0 if match["power"] is None else _number(match["power"]) / (1 if match["unit"] == "kw" else 1000)
    tariff = 0.0 if match["tariff"] is None else _number(match["tariff"])
    hourly = own_hourly(purchase, life, power, tariff)
    counted = "purchase and power" if match["power"] else "purchase without power"
    return Rate(Money(_currency(match[1], match[3], text), hourly, hourly), f"a card of your own, {counted}: '{text}'")


def _currency(before: str | None, after: str | None, text: str) -> Currency:
    """The currency that stands before or after the number; an error if these are two."""
    signs: set[Currency] = {_CURRENCIES[sign] for sign in (before, after) if sign}
    if len(signs) > 1:
        raise FledgeError(f"two currencies in the price '{text}'", where=OPTION, hint=WAYS)
    return signs.pop() if signs else _CURRENCIES[""]


def _number(text: str) -> float:
    return float(text.replace(",", ""))


def _amount(value: float) -> str:
    """A number as people write money: two decimals below 10, whole from there on; two digits of what is below half a cent."""
    if 0 < value < 0.005:
        return f"{value:.2g}"
    return f"{value:,.2f}" if value < 9.995 else f"{value:,.0f}"
