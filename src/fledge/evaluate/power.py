"""How large a difference a number of paired items can show, and how many items a difference needs."""

import math
from collections.abc import Callable
from functools import lru_cache
from statistics import NormalDist

import numpy as np

from fledge.evaluate.statistics import LEVEL, binomial_probabilities

POWER = 0.8  # probability of showing a difference that is there
EXACT_ITEMS = 2000  # of which the power of McNemar's test is summed up; the normal distribution is near enough for more
MAX_ITEMS = 10_000_000  # that are proposed
NORMAL = NormalDist()
Z = NORMAL.inv_cdf(1 - LEVEL / 2)


def mcnemar_power(n: int, difference: float, discordance: float) -> float:
    """The probability that McNemar's exact test shows a true difference of two rates with n items.

    `discordance`: the expected share of items that are right for one model alone, at least |difference| (Connor 1987). The sum
    over all numbers of such items up to 2,000 items, a normal approximation for more.
    """
    size = abs(difference)
    share = min(1.0, max(discordance, size))
    if share == 0:
        return 0.0
    if n > EXACT_ITEMS:
        spread = math.sqrt(max(share - size**2, 1e-12))
        return NORMAL.cdf((size * math.sqrt(n) - Z * math.sqrt(share)) / spread)
    win = (1 + size / share) / 2  # of an item that only one is right in
    counts = binomial_probabilities(n, share)
    likely = np.nonzero(counts > 1e-9)[0]
    return float(sum(counts[m] * _rejects(int(m), win) for m in likely))


def _rejects(discordant: int, win: float) -> float:
    """The probability that McNemar's test says there is a difference, given the number of unequal pairs."""
    most = _critical(discordant)
    if most < 0:
        return 0.0
    wins = binomial_probabilities(discordant, win)
    return float(wins[: most + 1].sum() + wins[discordant - most :].sum())


@lru_cache(maxsize=4096)
def _critical(discordant: int) -> int:
    """The largest number of wins of the loser at which the p-value is still at most LEVEL; −1 if there is none."""
    tails = np.cumsum(binomial_probabilities(discordant, 0.5))
    return int((2 * tails[: discordant // 2 + 1] <= LEVEL).sum()) - 1


def _t_quantile(degrees: int) -> float:
    """The 97.5 % quantile of Student's t (Abramowitz and Stegun 26.7.5), within 1 % from five degrees of freedom on."""
    z, v = Z, float(degrees)
    return (
        z
        + (z**3 + z) / (4 * v)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * v**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * v**3)
    )


def sign_flip_power(n: int, difference: float, spread: float) -> float:
    """The probability that the sign-flip test shows a true mean difference with n items whose differences have the standard
    deviation `spread`: that of Student's test, to which it is close (Abramowitz and Stegun 26.7.10)."""
    if n < SMALLEST or difference == 0:
        return 0.0
    if spread == 0:
        return 1.0
    degrees, shift = n - 1, abs(difference) * math.sqrt(n) / spread
    t = _t_quantile(degrees)
    return 1 - NORMAL.cdf((t * (1 - 1 / (4 * degrees)) - shift) / math.sqrt(1 + t * t / (2 * degrees)))


SMALLEST = 6  # items: the two most extreme of 2**5 signs have a probability of 0.0625, above LEVEL


def detectable_rate_difference(n: int, discordance: float) -> float | None:
    """The smallest difference of two rates that n items show with a probability of 80 %; None if they can show none.

    `discordance`: the share of items that are right for one model alone. A difference cannot be larger than this share, so for
    larger differences all such items are taken to speak for one model.
    """
    return _smallest(lambda difference: mcnemar_power(n, difference, discordance), 1.0)


def detectable_mean_difference(n: int, spread: float) -> float | None:
    """The smallest mean difference that n items show with a probability of 80 %; None if they can show none. `spread`: the
    standard deviation of the differences."""
    if n < SMALLEST:
        return None
    if spread == 0:
        return 0.0
    return _smallest(lambda difference: sign_flip_power(n, difference, spread), 20 * spread)


def _smallest(power: Callable[[float], float], largest: float) -> float | None:
    if power(largest) < POWER:
        return None
    low, high = 0.0, largest
    for _ in range(20):
        middle = (low + high) / 2
        low, high = (low, middle) if power(middle) >= POWER else (middle, high)
    return high


def items_for_rates(difference: float, discordance: float) -> int | None:
    """The number of items that show a difference of two rates with a probability of 80 %; None above ten million."""
    return _fewest(lambda n: mcnemar_power(n, difference, discordance))


def items_for_means(difference: float, spread: float) -> int | None:
    """The number of items that show a mean difference with a probability of 80 %; None above ten million."""
    return _fewest(lambda n: sign_flip_power(n, difference, spread))


def _fewest(power: Callable[[int], float]) -> int | None:
    low, high = SMALLEST - 1, SMALLEST
    while power(high) < POWER:
        low, high = high, high * 2
        if high > MAX_ITEMS:
            return None
    while high - low > max(1, low // 200):  # the power of an exact test is no smooth function: half a percent is near enough
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle) >= POWER else (middle, high)
    return high
