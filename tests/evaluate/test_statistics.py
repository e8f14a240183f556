"""Paired tests and their intervals, against scipy and by simulation."""

import numpy as np
import pytest

from fledge.evaluate.power import (
    detectable_mean_difference,
    detectable_rate_difference,
    items_for_means,
    items_for_rates,
    mcnemar_power,
    sign_flip_power,
)
from fledge.evaluate.statistics import (
    binomial_probabilities,
    bootstrap_difference_interval,
    clopper_pearson_interval,
    mcnemar_interval,
    mcnemar_p_value,
    paired_test,
    sign_flip_p_value,
)

TRIALS = 200


def binary_models(rng: np.random.Generator, n: int, rate: float, gain: float) -> tuple[np.ndarray, np.ndarray]:
    """Answers of two models to n items, right with probability `rate` and `rate` + `gain`; half of what could differ does."""
    both = rng.random(n)
    second = np.where(rng.random(n) < 0.5, both, rng.random(n))
    return (both < rate).astype(float), (second < rate + gain).astype(float)


class TestAgainstScipy:
    """Equal figures to scipy's, which is installed for development only."""

    @pytest.fixture(autouse=True)
    def scipy_stats(self):
        self.stats = pytest.importorskip("scipy.stats")

    @pytest.mark.parametrize(("only_first", "only_second"), [(0, 0), (0, 6), (3, 9), (40, 60), (700, 800), (5000, 5200)])
    def test_mcnemar(self, only_first, only_second):
        n = only_first + only_second
        expected = self.stats.binomtest(only_first, n, 0.5).pvalue if n else 1.0
        assert mcnemar_p_value(only_first, only_second) == pytest.approx(expected, rel=1e-9)

    @pytest.mark.parametrize(("n", "p"), [(1, 0.5), (30, 0.01), (2000, 0.999), (300, 0.0), (300, 1.0)])
    def test_binomial_probabilities(self, n, p):
        assert binomial_probabilities(n, p) == pytest.approx(self.stats.binom.pmf(np.arange(n + 1), n, p), abs=1e-11)

    @pytest.mark.parametrize(("k", "n"), [(0, 1), (0, 20), (7, 20), (20, 20), (500, 1000)])
    def test_clopper_pearson(self, k, n):
        expected = self.stats.binomtest(k, n).proportion_ci(0.95, "exact")
        assert clopper_pearson_interval(k, n) == pytest.approx((expected.low, expected.high), abs=1e-9)

    def test_sign_flip_of_few_items_is_exact(self):
        differences = np.random.default_rng(1).normal(0.5, 1.0, 10)
        expected = self.stats.permutation_test(
            (differences,), np.mean, permutation_type="samples", n_resamples=np.inf, alternative="two-sided"
        ).pvalue
        assert sign_flip_p_value(differences) == pytest.approx(expected, abs=1e-12)

    def test_sign_flip_of_many_items_is_near_student(self):
        differences = np.random.default_rng(2).normal(0.2, 1.0, 120)
        assert sign_flip_p_value(differences) == pytest.approx(self.stats.ttest_1samp(differences, 0).pvalue, abs=0.006)

    def test_bootstrap_interval_is_near_scipys(self):
        differences = np.random.default_rng(3).exponential(1.0, 200) - 0.8
        expected = self.stats.bootstrap((differences,), np.mean, n_resamples=20_000, method="percentile", rng=5)
        low, high = bootstrap_difference_interval(differences)
        assert (low, high) == pytest.approx(tuple(expected.confidence_interval), abs=0.02)

    @pytest.mark.parametrize(("n", "difference"), [(8, 1.2), (40, 0.5), (400, 0.1)])
    def test_power_of_student(self, n, difference):
        shift, t = difference * n**0.5, self.stats.t.ppf(0.975, n - 1)
        expected = self.stats.nct.sf(t, n - 1, shift)
        assert sign_flip_power(n, difference, 1.0) == pytest.approx(expected, abs=0.02)


class TestEqualModels:
    """No difference is found between equally good models in at least 94 % of trials."""

    @pytest.mark.parametrize("n", [8, 30, 200, 1000])
    @pytest.mark.parametrize("rate", [0.02, 0.5, 0.97])
    def test_binary(self, n, rate):
        rng = np.random.default_rng([n, int(rate * 100)])
        found = sum(paired_test(*binary_models(rng, n, rate, 0.0)).is_different for _ in range(TRIALS))
        assert found <= 0.06 * TRIALS

    @pytest.mark.parametrize("kind", ["normal", "heavy", "rates near 0"])
    def test_numbers(self, kind):
        rng = np.random.default_rng(len(kind))
        draw = {
            "normal": lambda n: rng.normal(2.0, 1.0, n),
            "heavy": lambda n: rng.standard_t(3, n),
            "rates near 0": lambda n: np.where(rng.random(n) < 0.1, rng.random(n), 0.0),
        }[kind]
        found = [paired_test(draw(n), draw(n)).is_different for n in (6, 12, 60, 200) for _ in range(TRIALS)]
        assert np.mean(found) <= 0.06

    def test_a_model_and_itself(self):
        values = np.random.default_rng(0).random(50)
        same = paired_test(values, values)
        assert same.p_value == 1.0
        assert not same.is_different

    @pytest.mark.parametrize(("n", "rate", "gain"), [(40, 0.5, 0.2), (40, 0.05, 0.0), (300, 0.9, 0.05), (300, 0.3, -0.1)])
    def test_interval_holds_the_true_difference(self, n, rate, gain):
        rng = np.random.default_rng([n, int(rate * 100)])
        tests = [paired_test(*binary_models(rng, n, rate, gain)) for _ in range(400)]
        assert sum(one.interval[0] <= gain <= one.interval[1] for one in tests) >= 0.94 * len(tests)


class TestBetterModels:
    """A truly better model is found as often as the power that was computed before says, within three standard errors."""

    @pytest.mark.parametrize(("n", "rate", "gain"), [(60, 0.3, 0.25), (200, 0.5, 0.15), (800, 0.8, 0.05), (200, 0.02, 0.06)])
    def test_binary(self, n, rate, gain):
        rng = np.random.default_rng(n)
        many = binary_models(np.random.default_rng(0), 1_000_000, rate, gain)
        power = mcnemar_power(n, gain, float((many[0] != many[1]).mean()))
        found = sum(paired_test(*binary_models(rng, n, rate, gain)).is_different for _ in range(TRIALS))
        assert found / TRIALS == pytest.approx(power, abs=3 * (power * (1 - power) / TRIALS) ** 0.5)

    @pytest.mark.parametrize(("n", "gain"), [(10, 1.0), (40, 0.4), (300, 0.15)])
    def test_numbers(self, n, gain):
        rng = np.random.default_rng(n)
        power = sign_flip_power(n, gain, 1.0)
        found = sum(paired_test(np.zeros(n), rng.normal(gain, 1.0, n)).is_different for _ in range(TRIALS))
        assert found / TRIALS == pytest.approx(power, abs=3 * (power * (1 - power) / TRIALS) ** 0.5)


def test_the_interval_leaves_0_out_exactly_where_the_test_says_so():
    for only_first in range(0, 12):
        for only_second in range(0, 30, 3):
            low, high = mcnemar_interval(only_first, only_second, 60)
            assert (mcnemar_p_value(only_first, only_second) <= 0.05) == (not low <= 0 <= high)


def test_what_so_many_items_show_is_what_so_many_items_are_needed_for():
    detectable = detectable_rate_difference(300, 0.2)
    assert detectable is not None
    assert mcnemar_power(300, detectable, 0.2) == pytest.approx(0.8, abs=0.01)
    assert items_for_rates(detectable, 0.2) == pytest.approx(300, rel=0.03)
    detectable = detectable_mean_difference(50, 2.0)
    assert detectable is not None
    assert items_for_means(detectable, 2.0) == pytest.approx(50, abs=1)


def test_the_power_of_many_items_goes_on_from_that_of_few():
    assert mcnemar_power(2001, 0.03, 0.2) == pytest.approx(mcnemar_power(2000, 0.03, 0.2), abs=0.03)


def test_five_items_show_nothing():
    assert detectable_rate_difference(5, 0.5) is None
    assert detectable_mean_difference(5, 1.0) is None
    assert mcnemar_p_value(0, 5) > 0.05
    assert sign_flip_p_value(np.arange(1.0, 6.0)) > 0.05


@pytest.mark.parametrize("values", [([], []), ([1.0], [1.0, 2.0]), ([float("nan")], [1.0])])
def test_values_that_are_no_pairs_are_refused(values):
    with pytest.raises(ValueError, match="paired values"):
        paired_test(*map(np.array, values))
