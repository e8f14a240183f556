"""What can be seen in a log, whatever its cause. A symptom that no cause explains is told as such."""

from collections.abc import Callable
from typing import Any

from fledge.diagnosis.case import Case
from fledge.diagnosis.cause import Symptom
from fledge.diagnosis.evidence import seen
from fledge.diagnosis.facts import TOKEN_KINDS, end_of_loss
from fledge.diagnosis.symptoms_of_answers import ANSWER_FINDERS
from fledge.diagnosis.thresholds import threshold
from fledge.findings import Finding


def _limit(name: str) -> float:
    return threshold("symptoms", name)


def is_long_enough(case: Case) -> bool:
    """Whether a level can be judged: the run is done, or has so many updates and so much of its way behind it that the level
    will hardly change its kind."""
    if case.log.step_unit == "epoch":
        return (case.value("curve/points") or 0) >= _limit("fewest_epochs")
    steps, progress = case.value("curve/last_step") or 0.0, case.value("plan/progress")
    if case.value("plan/is_done"):
        return steps >= _limit("fewest_steps_done")
    return steps >= _limit("fewest_steps") and (progress is None or progress >= _limit("progress"))


def _figures(case: Case, *names: str) -> dict[str, Any]:
    return {name.partition("/")[2]: case.value(name) for name in names}


def _not_learning(case: Case) -> Finding | None:
    """A loss that is, at its lowest, where it was at first."""
    fall, z, head = case.value("curve/fall"), case.value("curve/fall_z"), case.value("curve/head_loss")
    if fall is None or not head or not is_long_enough(case) or case.value("curve/loss_at_ln2") is not None:
        return None
    is_sure = z >= _limit("not_learning_z") or end_of_loss(case) == "falls"
    if fall > max(_limit("not_learning_share") * head, 0.0) and is_sure:
        return None
    first = case.value("plan/first_loss_share")
    starts_high = case.value("plan/is_fresh") is True or (first is not None and first >= _limit("starts_high"))
    return seen(
        f"the training loss hardly falls: it is {head:.3f} at first and {case.value('curve/last_loss'):.3f} at the end, and "
        f"was never lower than {case.value('curve/lowest_loss'):.3f}",
        severity="warning" if starts_high or case.value("curve/loss_constant") is not None else "info",
        evidence=_figures(case, "curve/head_loss", "curve/last_loss", "curve/lowest_loss", "curve/fall", "curve/fall_z"),
    )


def _constant(case: Case) -> Finding | None:
    value = case.value("curve/loss_constant")
    if value is None or not case.value("curve/loss_is_level"):
        return None
    return seen(
        f"the training loss is {value:.6g} at every step: nothing that is trained changes it",
        severity="error",
        evidence={"loss": value, "points": case.value("curve/points")},
    )


def _near_zero(case: Case) -> Finding | None:
    """A loss of targets that falls to nearly nothing, which language does not allow."""
    last, head = case.value("curve/last_loss"), case.value("curve/head_loss")
    if last is None or head is None or case.value("plan/log_vocabulary") is None:
        return None
    epochs = case.value("plan/epochs")
    few_readings = epochs is None or epochs <= _limit("zero_epochs")
    if last > _limit("zero_loss") or not few_readings or (case.value("curve/lowest_validation") is None and epochs is None):
        return None
    return seen(
        f"the training loss falls to {last:.4f} nats/token, which text cannot have unless it is known by heart",
        evidence=_figures(case, "curve/last_loss", "plan/epochs"),
    )


def _high_level(case: Case) -> Finding | None:
    """A level that the frequencies of tokens alone would reach."""
    last, share = case.value("curve/last_loss"), case.value("plan/last_loss_share")
    over_unigram, over_bigram = case.value("plan/over_unigram"), case.value("plan/over_bigram")
    if last is None or not is_long_enough(case):
        return None
    evidence = _figures(case, "curve/last_loss", "plan/log_vocabulary", "plan/over_unigram", "plan/over_bigram")
    if over_unigram is not None and over_unigram > -_limit("unigram_margin"):
        known = f"the frequencies of the tokens alone reach {last - over_unigram:.3f}"
    elif over_bigram is not None and over_bigram > _limit("bigram_margin") and _should_know_pairs(case):
        known = f"a table of pairs of tokens reaches {last - over_bigram:.3f}"
    elif over_unigram is None and share is not None and share >= _limit("high_share"):
        uniform = case.value("plan/log_vocabulary")
        known = f"a uniform guess has {uniform:.3f}, frequencies of tokens alone two thirds to four fifths of it"
    else:
        return None
    return seen(f"the training loss is still {last:.3f} nats/token; {known}", evidence=evidence)


def _should_know_pairs(case: Case) -> bool:
    """Whether a model from fresh weights had so many updates that it should beat a table of pairs of tokens."""
    return bool(case.value("plan/is_fresh")) and (case.value("curve/last_step") or 0.0) >= _limit("bigram_steps")


def _slow(case: Case) -> Finding | None:
    """A loss that is still high and still falls. After few updates that is no fault by itself, but in a run from fresh weights,
    which falls fast at first."""
    share = case.value("plan/last_loss_share")
    if share is None or share < _limit("slow_share") or end_of_loss(case) != "falls" or not is_long_enough(case):
        return None
    is_soon = (case.value("curve/last_step") or 0.0) < _limit("fewest_steps") and not case.value("plan/is_fresh")
    return seen(
        f"the training loss falls slowly: after {case.value('curve/last_step'):,.0f} updates it is {share:.0%} of that of a "
        "uniform guess, and still falls",
        severity="info" if is_soon else "warning",
        evidence=_figures(case, "curve/last_loss", "curve/late_fall", "curve/late_z", "plan/log_vocabulary"),
    )


def _plateau(case: Case) -> Finding | None:
    """A loss that has stood still for most of the run, while the rate was still high."""
    share, level = case.value("curve/plateau_from"), case.value("curve/plateau_level")
    if share is None or level is None or not is_long_enough(case) or case.value("curve/loss_constant") is not None:
        return None
    if share > _limit("plateau_share") or end_of_loss(case) in ("falls", "rises"):
        return None
    return seen(
        f"the training loss stands at about {level:.3f} from {share:.0%} of the run on",
        severity="info",
        evidence=_figures(case, "curve/plateau_from", "curve/plateau_level", "curve/late_z"),
    )


def _spikes(case: Case) -> Finding | None:
    count, largest = case.value("curve/spikes"), case.value("curve/largest_spike")
    if not count or largest is None:
        return None
    back = f"took {largest['points']:,} points to come back" if largest["recovered"] else "did not come back"
    return seen(
        f"the training loss jumped {count} time{'s' if count > 1 else ''}: at step {largest['step']:,.0f} it rose by "
        f"{largest['size']:.2f} from {largest['level']:.2f} and {back}",
        evidence={"spikes": count, "largest": largest, "single_points": case.value("curve/outliers")},
    )


def _divergence(case: Case) -> Finding | None:
    """A loss that ends far above its lowest level."""
    rise, lowest, z = case.value("curve/rise"), case.value("curve/lowest_loss"), case.value("curve/rise_z")
    if rise is None or lowest is None or z < _limit("divergence_z"):
        return None
    if rise < max(_limit("divergence_share") * lowest, _limit("divergence_nats")):
        return None
    return seen(
        f"training diverged: the loss is {case.value('curve/last_loss'):.3f} at the end, and was {lowest:.3f} around step "
        f"{case.value('curve/lowest_step'):,.0f}",
        severity="error",
        evidence=_figures(case, "curve/last_loss", "curve/lowest_loss", "curve/lowest_step", "curve/rise_z"),
    )


def _not_finite(case: Case) -> Finding | None:
    """Losses that are no numbers; gradients that are none, if they are many: an overflow of fp16 now and then is usual."""
    for name, what in (("loss", "training loss"), ("grad_norm", "gradient norm")):
        share = case.value(f"curve/{name}_not_finite") or 0.0
        lasts = bool(case.value(f"curve/{name}_not_finite_at_end"))
        if share <= 0 or not (lasts or share >= _limit(f"{name}_not_finite")):
            continue
        first = case.value(f"curve/{name}_not_finite_from")
        return seen(
            f"the {what} is no finite number in {share:.1%} of the steps, first at step {first:,.0f}"
            + (", and stays so to the end" if lasts else ""),
            severity="error",
            evidence={"share": share, "first_step": first, "lasts": lasts},
        )
    return None


def _oscillation(case: Case) -> Finding | None:
    """A loss that goes up and down more slowly than the noise of single points."""
    swing, expected, level = case.value("curve/swing"), case.value("curve/swing_expected"), case.value("curve/last_loss")
    if not swing or not level or level <= 0 or expected is None:
        return None
    if swing < _limit("swing_ratio") * expected or swing < _limit("swing_share") * level:
        return None
    return seen(
        f"the training loss swings by about {swing:.3f} around its trend, more than its noise explains ({expected:.3f})",
        evidence={"swing": swing, "expected": expected, "level": level},
    )


def _validation_rises(case: Case) -> Finding | None:
    """A validation loss that has risen since its lowest value, beyond its own jitter."""
    rise, lowest = case.value("curve/validation_rise"), case.value("curve/lowest_validation")
    jitter, later = case.value("curve/validation_jitter") or 0.0, case.value("curve/validation_rise_evaluations")
    if rise is None or lowest is None or later is None or lowest <= 0:
        return None
    of_tokens = case.kind in TOKEN_KINDS  # a loss of whole answers differs more between samples
    share = _limit("validation_share") if of_tokens else _limit("validation_share_of_answers")
    enough = rise >= max(share * lowest, _limit("validation_jitters") * jitter)
    if not enough or (later < _limit("validation_evaluations") and rise < 3 * share * lowest):
        return None
    return seen(
        f"the validation loss rises: from {lowest:.4f} at step {case.value('curve/lowest_validation_step'):,.0f} to "
        f"{lowest + rise:.4f} at step {case.value('curve/last_validation_step'):,.0f}",
        evidence=_figures(
            case, "curve/lowest_validation", "curve/lowest_validation_step", "curve/last_validation", "curve/validation_jitter"
        ),
    )


def _gap(case: Case) -> Finding | None:
    """A validation loss far above the training loss, and further than at first."""
    first, last, level = (case.value(f"curve/{name}") for name in ("first_gap", "last_gap", "last_validation"))
    if first is None or last is None or not level or level <= 0 or case.kind not in TOKEN_KINDS:
        return None
    grown = last - first
    if last < _limit("gap_share") * level or grown < _limit("gap_growth") * level:
        return None
    return seen(
        f"the validation loss is {last:.3f} above the training loss at the end, {first:+.3f} at first",
        severity="warning" if _validation_rises(case) is not None else "info",
        evidence={"first_gap": first, "last_gap": last, "last_validation": level},
    )


def _sawtooth(case: Case) -> Finding | None:
    share, z, count = (case.value(f"curve/border_{name}") for name in ("drop_share", "z", "steps"))
    if share is None or z is None or share < _limit("sawtooth_share") or z < _limit("sawtooth_z"):
        return None
    return seen(
        f"the training loss falls by {case.value('curve/border_drop'):.3f} ({share:.0%}) at the borders of epochs, and not "
        "between them: rows that are read again are known by heart",
        severity="info" if share < _limit("sawtooth_warns") else "warning",
        evidence={"drop": case.value("curve/border_drop"), "share": share, "z": z, "steps": count},
    )


def _vanishing(case: Case) -> Finding | None:
    zero, norm = case.value("curve/grad_norm_zero_share"), case.value("curve/grad_norm")
    if norm is None or zero is None:
        return None
    if zero < _limit("zero_gradients") and norm >= _limit("vanishing"):
        return None
    says = f"is 0 in {zero:.0%} of the steps" if zero >= _limit("zero_gradients") else f"is only {norm:.2g}"
    return seen(f"the gradient norm {says}", severity="error", evidence={"zero_share": zero, "median": norm})


def _exploding(case: Case) -> Finding | None:
    growth, largest, usual = (case.value(f"curve/{name}") for name in ("grad_norm_growth", "grad_norm_max", "grad_norm"))
    if growth is None or growth < _limit("exploding_growth"):
        return None
    return seen(
        f"the gradient norm grew {growth:,.0f}-fold: its largest value is {largest:,.3g}, the usual one {usual:,.3g}",
        evidence={"growth": growth, "largest": largest, "median": usual},
    )


def _slow_steps(case: Case) -> Finding | None:
    ratio = case.value("curve/slow_down")
    if ratio is None or ratio < _limit("slow_down") or (case.value("curve/slow_trend") or 0.0) < _limit("slow_trend"):
        return None
    return seen(f"updates take {ratio:.1f} times as long at the end as at the beginning", evidence={"slow_down": ratio})


FINDERS: dict[str, Callable[[Case], Finding | None]] = {
    "not a number": _not_finite,
    "divergence": _divergence,
    "loss constant": _constant,
    "vanishing gradient": _vanishing,
    "exploding gradient": _exploding,
    "not learning": _not_learning,
    "high level": _high_level,
    "slow learning": _slow,
    "loss near zero": _near_zero,
    "loss spikes": _spikes,
    "oscillation": _oscillation,
    "validation rises": _validation_rises,
    "train-validation gap": _gap,
    "sawtooth": _sawtooth,
    "plateau": _plateau,
    "slow training": _slow_steps,
    **ANSWER_FINDERS,
}
SYMPTOMS = tuple(Symptom(name=name, find=find) for name, find in FINDERS.items())
"""All symptoms, those of the loss first, the gravest first."""
