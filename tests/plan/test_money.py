"""What hours cost: prices as people write them, cards of one's own, and the ranges of the table."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledge.errors import FledgeError
from fledge.plan.devices import find_device
from fledge.plan.money import Money, Rates, own_hourly, parse_price, rates

cents = st.integers(1, 10**6).map(lambda number: number / 100)
SIGNS = {"": "CNY", "¥": "CNY", "￥": "CNY", "CNY": "CNY", "RMB ": "CNY", "$": "USD", "USD ": "USD", "US$": "USD"}
AFTER = {"": "CNY", "元": "CNY", " USD": "USD", "usd": "USD"}


def test_a_card_of_ones_own_costs_its_wear_and_its_power() -> None:
    """6,000 ¥ over 8,000 h and 350 W at 1 ¥/kWh are 1.1 ¥/h; 768M tokens at 1,800 tokens/s take 118.5 h (not 1.1 h), so the
    run costs 130 ¥ (not 1.43 ¥)."""
    assert own_hourly(6000, 8000, 0.35, 1.0) == pytest.approx(1.1)
    hours = 768e6 / 1800 / 3600
    assert hours == pytest.approx(118.5, abs=0.05)
    own = rates(find_device("RTX 3090")[0], ["own:6000/8000h+0.35kW*1"])
    (cost,) = own.cost(hours)
    assert cost.low == cost.high == pytest.approx(130.37, abs=0.01)
    assert cost.text() == "¥130"


def test_hired_cards_cost_a_range_in_each_currency_of_the_table() -> None:
    device, count = find_device("2xRTX 3090")
    hire = {price.currency: price for price in device.hire}
    hired = rates(device)
    costs = {money.currency: money for money in hired.cost(10, count)}
    assert set(costs) == {"CNY", "USD"}
    for currency, money in costs.items():
        assert (money.low, money.high) == pytest.approx((20 * hire[currency].low, 20 * hire[currency].high))
    assert all(
        "RTX 3090" in rate.origin and price.read in rate.origin for rate, price in zip(hired.rates, device.hire, strict=True)
    )


def test_without_a_known_price_there_is_no_cost() -> None:
    assert rates(find_device("P100")[0]).cost(10) == ()
    assert rates(None) == Rates(())


def test_a_given_price_replaces_the_table() -> None:
    given_prices = rates(find_device("RTX 3090")[0], ["2.5/h", "1-2 USD/h"])
    assert given_prices.cost(100, 2) == (Money("CNY", 500, 500), Money("USD", 200, 400))


@given(cents, st.sampled_from(list(SIGNS)), st.sampled_from(["/h", " / hour", "/小时", "每小时", "／h"]))
def test_a_price_is_read_back_with_its_currency_before_it(price: float, sign: str, per: str) -> None:
    rate = parse_price(f"{sign}{price}{per}")
    assert rate.hourly == Money(SIGNS[sign], price, price)  # type: ignore[arg-type]


@given(cents, cents, st.sampled_from(list(AFTER)), st.sampled_from(["-", " ~ ", " to ", "至"]))
def test_a_range_is_read_back_with_its_currency_after_it(one: float, other: float, sign: str, to: str) -> None:
    low, high = sorted((one, other))
    assert parse_price(f"{low}{to}{high}{sign}/h").hourly == Money(AFTER[sign], low, high)  # type: ignore[arg-type]


@given(
    purchase=cents, life=st.integers(1, 100_000), watts=st.integers(0, 2000), tariff=cents,
    sign=st.sampled_from(["", "¥", "$"]), times=st.sampled_from("*x×"), kilo=st.booleans(),
)  # fmt: skip
def test_a_formula_of_ones_own_card_is_read_back(
    purchase: float, life: int, watts: int, tariff: float, sign: str, times: str, kilo: bool
) -> None:
    power = f"{watts / 1000:.3f}kW" if kilo else f"{watts} W"
    hourly = parse_price(f"own:{sign}{purchase} / {life}h + {power}{times}{tariff}").hourly
    assert hourly.currency == SIGNS[sign]
    assert hourly.low == hourly.high == pytest.approx(own_hourly(purchase, life, watts / 1000, tariff))


def test_power_may_be_left_out_of_the_formula_and_that_is_told() -> None:
    rate = parse_price("own:6,000元/8000h")
    assert rate.hourly.low == pytest.approx(0.75)
    assert "without power" in rate.origin


@given(st.text(alphabet="0123456789.,-/+*x:ownhkWW¥$元USD ", max_size=20))
def test_any_text_is_a_price_above_zero_or_an_error_about_the_option(text: str) -> None:
    try:
        hourly = parse_price(text).hourly
    except FledgeError as error:
        assert error.where == "--price"
        assert error.hint
    else:
        assert 0 < hourly.low <= hourly.high < float("inf")


@pytest.mark.parametrize(
    "text",
    [
        "", "2.5", ".9/h", "2,5/h", "1e5/h", "nan/h", "-1/h", "0/h", "3-2/h", "$2元/h", "2.5/d", "own", "own:6000",
        "own:6000/0h", "own:0/8000h", "own:6000/8000h+0.35kW", "9" * 400 + "/h",
    ],
)  # fmt: skip
def test_a_price_that_cannot_be_read_is_an_error(text: str) -> None:
    with pytest.raises(FledgeError):
        parse_price(text)


def test_two_prices_in_one_currency_are_an_error() -> None:
    with pytest.raises(FledgeError, match="two prices in ¥"):
        rates(None, ["2/h", "¥3/h"])


@pytest.mark.parametrize(
    ("low", "high", "text"),
    [
        (130.4, 130.4, "¥130"),
        (1.2, 3.4, "¥1.20–3.40"),
        (5, 1234, "¥5.00–1,234"),
        (0.0012, 0.0012, "¥0.0012"),
        (0, 0, "¥0.00"),
    ],
)
def test_amounts_are_written_as_people_do(low: float, high: float, text: str) -> None:
    assert Money("CNY", low, high).text() == text
