"""When a trial ends early: at a look, the losses of the same documents are compared with those of the median trial.

Looks are numbered: two while the first seed trains, and one at the end of each seed. The rule is that of the median (Golovin et
al. 2017, Vizier), made safe against noise: a trial ends where it is worse than the median trial at the same look by more than
the documents allow for (paired sign-flip test and interval, 95 %).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fledge.sweep.documents import Losses, compare_documents

FRACTIONS = (0.3, 0.6)  # of the steps of the first seed, at which a running trial is looked at
MIN_TRIALS = 4  # trials that have been looked at before, without which none ends early


@dataclass(frozen=True, kw_only=True)
class Look:
    """A trial at a look: its validation loss, and the file with the losses of its documents."""

    trial: int
    value: float
    file: Path


def end_of_seed(seed: int) -> int:
    """The number of the look at the end of a seed (from 1)."""
    return len(FRACTIONS) + seed


def look_steps(steps: int, interval: int) -> dict[int, int]:
    """The steps of the looks at a running trial, by number: the evaluations nearest to the fractions, before the last step."""
    found = {}
    for number, fraction in enumerate(FRACTIONS, 1):
        step = max(1, round(fraction * steps / interval)) * interval
        if step < steps and step not in found.values():
            found[number] = step
    return found


def median_look(looks: Sequence[Look]) -> Look | None:
    """The look of the median trial, the better one of two in the middle; None if there are too few."""
    if len(looks) < MIN_TRIALS:
        return None
    ordered = sorted(looks, key=lambda look: (look.value, look.trial))
    return ordered[(len(ordered) - 1) // 2]


def why_pruned(looks: Sequence[Look], own: Losses, losses_of: Mapping[int, Losses]) -> str | None:
    """A sentence why a trial ends at a look, or None. `looks`: of earlier trials at the same look; `losses_of`: the losses of
    their documents, by trial."""
    median = median_look(looks)
    if median is None:
        return None
    test = compare_documents(losses_of[median.trial], own)
    if test is None:
        return "none of its documents has a finite loss"
    if not test.is_different or test.difference <= 0:
        return None
    low, high = test.interval
    return (
        f"worse than trial {median.trial}, the median, by {test.difference:.3g} [{low:.3g}, {high:.3g}] nats/token "
        f"on {test.count:,} documents"
    )
