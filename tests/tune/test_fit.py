import math
from collections.abc import Mapping, Sequence

import pytest

from fledge.tune.fit import descend, next_rate, optimum


def bowl(rate: float, best: float = 3e-3) -> float:
    return 2.0 + 0.1 * math.log(rate / best) ** 2


def test_the_lowest_point_of_a_parabola_is_found_between_the_rates_that_were_tried() -> None:
    found = optimum({rate: bowl(rate) for rate in (1e-3, 2e-3, 4e-3, 8e-3)})
    assert found.rate == pytest.approx(3e-3, rel=1e-6) and found.loss == pytest.approx(2.0) and found.is_bracketed
    low, high = found.flat
    assert bowl(low) == pytest.approx(2.02, abs=1e-6) and bowl(high) == pytest.approx(2.02, abs=1e-6)


def test_a_rate_at_the_end_is_not_bracketed_and_diverged_runs_do_not_count_in_the_fit() -> None:
    found = optimum({1e-3: bowl(1e-3), 2e-3: bowl(2e-3)})
    assert found.rate == 2e-3 and not found.is_bracketed
    found = optimum({1e-3: bowl(1e-3), 2e-3: bowl(2e-3), 4e-3: math.inf})
    assert found.rate == 2e-3 and found.is_bracketed and found.flat == (2e-3, 2e-3)


def test_the_search_goes_on_to_the_side_where_the_loss_falls_until_it_rises() -> None:
    losses = {rate: bowl(rate, 0.1) for rate in (1e-3, 2e-3, 4e-3)}
    tried = []
    while (rate := next_rate(losses)) is not None:
        tried.append(rate)
        losses[rate] = bowl(rate, 0.1)
    assert tried == [pytest.approx(4e-3 * 2**n) for n in range(1, 7)]
    assert optimum(losses).rate == pytest.approx(0.1, rel=1e-6)
    assert next_rate({1e-3: math.inf, 2e-3: math.inf}) == 5e-4  # everything diverged: smaller rates are left


@pytest.mark.parametrize(("best", "runs"), [(1.7e-3, 3), (2.3e-3, 3), (3.6e-3, 3), (5.5e-3, 3), (7e-3, 4), (0.1, 6)])
def test_three_rates_are_enough_where_the_best_is_near_the_first_two(best: float, runs: int) -> None:
    losses: dict[float, float] = {}

    def measure(rates: Sequence[float]) -> Mapping[float, float]:
        losses.update((rate, bowl(rate, best)) for rate in rates)
        return losses

    descend(4e-3, 6, measure)
    assert len(losses) == runs
    assert optimum(losses).is_bracketed == (best < 0.1)
    if best < 0.1:
        assert optimum(losses).rate == pytest.approx(best, rel=1e-6)
