"""Answers that repeat themselves: n-grams that come again, and loops at the end."""

from collections import Counter
from collections.abc import Iterable

from fledge.evaluate.metrics.units import ngrams, split_units

NGRAM = 4  # units whose repetition is counted
MIN_ROUNDS = 3  # of a loop: what is said twice may be meant
LOOP_UNITS = 1000  # at the end of a text, in which a loop is looked for


def repetition(text: str, n: int = NGRAM) -> float:
    """Share of repeated n-grams of units (rep-n: 1 − distinct ÷ all, Welleck et al. 2020); 0 if there are fewer than two
    n-grams."""
    found = ngrams(split_units(text), n)
    total = sum(found.values())
    return 1 - len(found) / total if total > 1 else 0.0


def distinct(texts: Iterable[str], n: int) -> float | None:
    """Distinct n-grams ÷ all n-grams of all texts together (distinct-n, Li et al. 2016); None if there is no n-gram.

    Of many texts it falls with their number, because a language has its frequent words: compare sets of equal size."""
    found: Counter[tuple[str, ...]] = Counter()
    for text in texts:
        found += ngrams(split_units(text), n)
    return len(found) / found.total() if found else None


def loop_at_end(text: str) -> int:
    """Units of the loop that a text ends in: a block that is there at least three times in a row, the last time perhaps not
    whole; 0 without one. Of the last 1,000 units."""
    units = split_units(text)[-LOOP_UNITS:]
    longest = 0
    for period in range(1, len(units) // MIN_ROUNDS + 1):
        same = 0  # units at the end that equal the unit one period before
        while same < len(units) - period and units[-1 - same] == units[-1 - same - period]:
            same += 1
        if same >= (MIN_ROUNDS - 1) * period:
            longest = max(longest, same + period)
    return longest
