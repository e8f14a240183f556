"""What a preference loss must be where the policy is its own reference, and how strongly its beta may act."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from fledge.diagnosis.case import Case
from fledge.diagnosis.causes.signs import as_number, number, other_setting
from fledge.diagnosis.thresholds import threshold

LN2 = math.log(2)


@dataclass(frozen=True)
class PreferenceLoss:
    """One loss of preferences.

    `at_zero`: its value where all margins are 0, as a function of beta, which is None where it is not known; it returns None
    where more must be known. None: there is no reference, and margins are not 0 at first. `beta_of`: what beta multiplies, sums
    or means of log-probabilities; empty: another kind of number. `slope`: its slope by a nat of margin there, in units of beta;
    None where that is no constant.
    """

    at_zero: Callable[[float | None], float | None] | None
    beta_of: str = ""
    slope: float | None = None


LOSSES: Mapping[str, PreferenceLoss] = {
    "sigmoid": PreferenceLoss(lambda beta: LN2, "sums", -0.5),
    "robust": PreferenceLoss(lambda beta: LN2, "sums", -0.5),
    "sigmoid_norm": PreferenceLoss(lambda beta: LN2, "means"),
    "hinge": PreferenceLoss(lambda beta: 1.0, "sums", -1.0),
    "ipo": PreferenceLoss(lambda beta: (0.5 / beta) ** 2 if beta else None),
    "simpo": PreferenceLoss(None, "means"),
    "orpo": PreferenceLoss(None),
    "kto": PreferenceLoss(lambda beta: None, "sums"),  # half of the mean weight of the labels
}
"""The losses by name; formulas in docs/semantics.md."""
LOSS_OF_KIND: Mapping[str | None, str] = {"kto": "kto"}
"""The loss of a kind of stage that has only one."""


def loss_of(case: Case) -> PreferenceLoss | None:
    """The loss of the settings; that of DPO where none is named; None for one that is not known here."""
    return LOSSES.get(case.settings.loss_type or LOSS_OF_KIND.get(case.kind, "sigmoid"))


def is_mixed(case: Case) -> bool:
    """Whether a cross-entropy loss of the chosen answers is added on purpose."""
    return bool(as_number(other_setting(case, "sft_loss_weight", "rpo_alpha", "pref_ftx")))


def loss_at_zero(case: Case) -> float | None:
    """The loss of a policy against itself, as measured code or the table says; None where it is not known."""
    expected = number(case, "probe/reference_loss_expected")
    if expected is not None:
        return expected
    loss, beta = loss_of(case), case.settings.beta
    if loss is None or loss.at_zero is None or is_mixed(case):
        return None
    return loss.at_zero(beta)


def first_point(case: Case, name: str) -> tuple[float, float] | None:
    """Step and value of the first point of a figure, if it was logged in the first steps of a run."""
    series = case.log.get(name)
    if series is None or series.steps[0] > threshold("preferences", "first_steps"):
        return None
    return float(series.steps[0]), float(series.values[0])


def acting_beta(case: Case) -> tuple[float, str] | None:
    """The beta that acts, and where it was read: by the slope of the trainer's own loss, else by the settings."""
    loss, slope = loss_of(case), number(case, "probe/preference_loss_slope")
    margin = number(case, "probe/reference_margin")  # at another margin than 0 the slope is another one
    at_zero = margin is not None and abs(margin) < threshold("preferences", "reference_margin")
    if loss is not None and loss.slope and slope is not None and slope <= 0 and at_zero:
        return slope / loss.slope, "the slope of the trainer's loss"
    return None if case.settings.beta is None else (case.settings.beta, "the settings")
