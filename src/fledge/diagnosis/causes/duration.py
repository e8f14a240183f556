"""Causes in how long a stage trains, and in how often it reads its rows."""

import math

from fledge.diagnosis.case import Case
from fledge.diagnosis.cause import Cause, Sign
from fledge.diagnosis.causes.matching import matching
from fledge.diagnosis.causes.signs import patch, sign, span
from fledge.diagnosis.facts import end_of_loss
from fledge.diagnosis.thresholds import threshold
from fledge.findings import Confidence

SHORT, LONG, REPEATED = "trained too short", "too many epochs", "repeated data learned by heart"
SAME_ORDER = "same order in every epoch"
HIGH = ("high level", "slow learning")


def _limit(name: str) -> float:
    return threshold("duration", name)


def short(case: Case) -> Sign | None:
    """A model that has hardly learned more than frequencies of tokens when training ends, and was still learning. Where neither
    the frequencies were counted nor fresh weights are known, the level may be that of the text, or of the start model."""
    steps, per_parameter = case.value("curve/last_step"), case.value("plan/tokens_per_parameter")
    late, level, z = case.value("curve/late_fall"), case.value("curve/last_loss"), case.value("curve/late_z")
    if late is None or not level or z is None or not steps or not case.value("plan/is_done"):
        return None
    falls = end_of_loss(case) == "falls" and late >= _limit("falls_share") * level
    symptoms = matching(case, HIGH)
    is_starved = per_parameter is not None and per_parameter < _limit("tokens_per_parameter")
    is_high = (case.value("plan/last_loss_share") or 0.0) >= _limit("starved_share")
    if not falls or not (symptoms or (is_starved and is_high)):
        return None
    known = f"{per_parameter:.2g} tokens for each parameter" if per_parameter is not None else f"{steps:,.0f} updates"
    epochs = case.value("plan/epochs")
    longer = f"{math.ceil(4 * epochs)} epochs" if epochs else f"{round(4 * steps)} steps"
    return sign(
        SHORT,
        "likely" if "high level" in symptoms or (symptoms and case.value("plan/is_fresh")) else "possible",
        f"after {known} the loss is {level:.3f} and was still falling, by {late:.3f} over the last half: the model knows "
        "little more than which tokens are frequent, and such models repeat their input or themselves",
        hint="train for several times as many tokens before other settings are changed: more data where there is some, else "
        "more epochs, while the validation loss falls",
        proof="train on for as long again: the loss keeps falling",
        evidence={"tokens_per_parameter": per_parameter, "updates": steps, "last_loss": level, "late_fall": late, "late_z": z},
        severity="warning",
        patch=patch(case, duration=longer),
        alternatives={
            "learning rate too low": "the band of rates for this size and batch",
            "batch too large": "grad_noise/scale",
        },
        steps=span(case.log.get("train/loss")),
    )  # fmt: skip


def long(case: Case) -> Sign | None:
    """A validation loss that rises while the training loss falls, over rows that are read again and again."""
    rise, lowest = case.value("curve/validation_rise"), case.value("curve/lowest_validation")
    if rise is None or not lowest or not matching(case, ("validation rises",)):
        return None
    epochs, best = case.value("plan/epochs"), case.value("curve/lowest_validation_epoch")
    first, last = case.value("curve/first_gap"), case.value("curve/last_gap")
    grows = first is not None and last is not None and last - first >= 0.5 * rise
    is_read_again = epochs is None or epochs > _limit("read_again")
    if not is_read_again or case.value("curve/rise") is None or matching(case, ("divergence", "not a number")):
        return None
    if case.value("curve/rise") > 0.5 * rise and not grows:
        return None  # the training loss rises too: this is no learning by heart
    share = rise / lowest
    is_clear = grows and share >= _limit("rise_likely")
    sure = "certain" if share >= _limit("rise_certain") and grows and epochs else "likely" if is_clear else "possible"
    best_step = case.value("curve/lowest_validation_step")
    read = f"after {best:.1f} of {epochs:.1f} epochs" if best is not None and epochs else f"at step {best_step:,.0f}"
    kept = max(1, math.ceil(best)) if best is not None else None
    return sign(
        LONG,
        sure,
        f"the validation loss was lowest {read} ({lowest:.4f}) and has risen by {rise:.4f} ({share:.0%}) since, while the "
        "training loss went on falling: rows are learned by heart",
        hint=f"stop at about step {best_step:,.0f} or keep its checkpoint; or use more data, or more dropout and weight decay",
        proof="compare the checkpoints of the lowest validation loss and of the end on rows that neither has seen",
        evidence={"lowest": lowest, "lowest_step": best_step, "lowest_epoch": best, "epochs": epochs, "rise": rise,
                  "first_gap": first, "last_gap": last},
        severity="warning",
        patch=patch(case, duration=f"{kept} epochs" if kept else None, early_stopping__patience=3)
        if kept and epochs and kept < epochs else patch(case, early_stopping__patience=3),
        alternatives={"duplicated data": "data/duplicate_share", "learning rate too high": "the band of rates"},
        steps=(float(best_step), float(case.value("curve/last_validation_step"))),
    )  # fmt: skip


def repeated(case: Case) -> Sign | None:
    """Rows that are known by heart when they are read again: the training loss steps down at the borders of epochs, or falls on
    while the validation loss hardly does."""
    if matching(case, ("validation rises", "divergence", "not a number")):
        return None
    found = _at_borders(case) or _apart(case)
    if found is None:
        return None
    sure, said = found
    return sign(
        REPEATED,
        sure,
        f"{said}: rows are learned by heart",
        hint="use fewer epochs or more data, and look for rows that stand in the data several times",
        proof="compare the loss of rows that were read and of rows that were not",
        evidence={"drop": case.value("curve/border_drop"), "share": case.value("curve/border_drop_share"),
                  "z": case.value("curve/border_z"), "gap": case.value("curve/last_gap"), "epochs": case.value("plan/epochs"),
                  "training_fall_late": case.value("curve/training_fall_late"),
                  "validation_fall_late": case.value("curve/validation_fall_late"), "steps": case.value("curve/border_steps")},
        severity="warning" if _is_wide(case) else "info",
        alternatives={"duplicated data": "data/duplicate_share", LONG: "the validation loss over the epochs"},
        steps=span(case.log.get("train/loss")),
    )  # fmt: skip


def _is_wide(case: Case) -> bool:
    """Whether the validation loss is far above the training loss at the end, and much of what the training loss has fallen did
    not reach it. In deliberate epochs that pay, the gap is wide and most of the fall reaches the validation loss too."""
    gap, level, first = case.value("curve/last_gap"), case.value("curve/last_validation"), case.value("curve/first_loss")
    if gap is None or not level or first is None or gap < _limit("gap_share") * level:
        return False
    return gap >= _limit("not_carried_share") * (first - (level - gap))


def _at_borders(case: Case) -> tuple[Confidence, str] | None:
    """Steps down of the training loss at the borders of epochs."""
    share, z, count = (case.value(f"curve/{name}") for name in ("border_drop_share", "border_z", "borders"))
    if share is None or z is None or not count or share < _limit("drop_share") or z < _limit("drop_z"):
        return None
    pattern = case.value("curve/epoch_pattern")
    if pattern is None or pattern >= _limit("pattern"):
        return None  # the same order each time: the step is one of the order, not of memory
    falls = case.value("curve/validation_rise_evaluations") == 0
    sure = "likely" if _is_wide(case) and not falls and share >= _limit("drop_likely") else "possible"
    drop = case.value("curve/border_drop")
    return sure, f"at the borders of epochs the training loss falls at once by {drop:.3f} ({share:.0%}), and hardly within them"


def _apart(case: Case) -> tuple[Confidence, str] | None:
    """Over many epochs, a training loss that goes on falling where the validation loss does not follow."""
    training, validation = case.value("curve/training_fall_late"), case.value("curve/validation_fall_late")
    epochs, gap, first = case.value("plan/epochs"), case.value("curve/last_gap"), case.value("curve/first_gap")
    if training is None or validation is None or gap is None or first is None or not epochs or not _is_wide(case):
        return None
    is_read_often = epochs >= _limit("epochs_by_heart")
    if not is_read_often or training < _limit("late_fall_share") * gap or validation > _limit("followed_share") * training:
        return None
    sure: Confidence = "likely" if gap - first >= _limit("gap_growth") * gap else "possible"
    said = (
        f"over the later half of the log the training loss fell by {training:.3f} and the validation loss by {validation:.3f}, "
        f"after {epochs:.1f} epochs they are {gap:.3f} apart"
    )
    return sure, said


def same_order(case: Case) -> Sign | None:
    """Epochs whose losses have the same bends: the rows were not shuffled between them."""
    pattern, z = case.value("curve/epoch_pattern"), case.value("curve/epoch_pattern_z")
    if pattern is None or z is None or pattern < _limit("pattern") or z < _limit("pattern_z"):
        return None
    slow = case.value("curve/autocorrelation") or 0.0
    is_sorted = slow >= _limit("autocorrelation")
    measured = case.value("data/order_z")
    if measured is not None and not is_sorted:
        return None
    sorting = f", and neighbouring steps are alike (correlation {slow:.2f}), so they are probably sorted" if is_sorted else ""
    return sign(
        SAME_ORDER,
        "likely" if z >= _limit("pattern_z_likely") else "possible",
        f"the loss has the same bends in each epoch (correlation {pattern:.2f}): the rows come in the same order{sorting}",
        hint="shuffle the rows anew in each epoch",
        proof="train the same steps with shuffled rows: the pattern is gone",
        evidence={"correlation": pattern, "z": z, "autocorrelation": slow},
        severity="warning" if is_sorted else "info",
        alternatives={"not shuffled": "data/order_correlation"},
        steps=span(case.log.get("train/loss")),
    )


CAUSES = (
    Cause(name=SHORT, category="duration", find=short, rank=46, setting=True,
          needs=("data/unigram_entropy", "data/bigram_entropy"), explains=frozenset({*HIGH, "not learning"})),
    Cause(name=LONG, category="duration", find=long, rank=37, setting=True, needs=("eval/loss",),
          explains=frozenset({"validation rises", "train-validation gap", "sawtooth", "loss near zero", "forgetting",
                              REPEATED})),
    Cause(name=REPEATED, category="data", find=repeated, rank=48, needs=("train/epoch", "data/duplicate_share"),
          explains=frozenset({"sawtooth", "train-validation gap", "loss near zero"})),
    Cause(name=SAME_ORDER, category="data", find=same_order, rank=47, needs=("train/epoch", "data/order_z"),
          explains=frozenset({"oscillation", "sawtooth", "loss spikes"})),
)  # fmt: skip
"""The causes in the duration."""
