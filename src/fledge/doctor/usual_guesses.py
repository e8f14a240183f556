"""What people change first when a loss is too high, and what the figures of the run say about each of these guesses."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

from fledge.diagnosis import Case, Diagnosis
from fledge.diagnosis.facts import TOKEN_KINDS, end_of_loss, facts_of
from fledge.diagnosis.rate_bands import rate_band
from fledge.doctor.examination import Examination
from fledge.doctor.sparkline import number
from fledge.plan.bands import UPDATES_OF_EPOCH

Verdict = Literal["supported", "refuted", "not supported", "cannot tell"]
WARMUPS = 3.0  # of its own length, after which a warm-up cannot be what holds the loss
USUAL_WARMUP = (0.01, 0.1)  # share of all updates in published recipes
NOISE_SCALES = (0.1, 3.0)  # batch ÷ gradient noise scale, between which a batch is neither wasteful nor noisy
SURE = 2.0  # standard errors
USEFUL_FALL = 0.01  # of the loss: what a proof asks for
SMALL = 8  # rows of an update: fewer are never too many
GUESSED = frozenset({"learning rate", "batch", "duration"})


@dataclass(frozen=True)
class Guess:
    """A change that is usually tried, what the figures say about it, and which figures these are."""

    change: str
    verdict: Verdict
    reason: str

    def as_dict(self) -> dict[str, Any]:
        """The guess as JSON values."""
        return asdict(self)


def usual_guesses(examination: Examination) -> list[Guess]:
    """The verdict on each usual guess. Empty where nothing is wrong with the level of the loss, or where it is likely to
    come from something that such settings do not cure."""
    case, found = examination.case, examination.diagnoses
    if case.kind not in TOKEN_KINDS or case.log.get("train/loss") is None:
        return []
    is_known = any(_is_sure(one) for one in found.found)
    if (is_known and examination.trainer is None) or (examination.is_healthy and not _loss_is_high(case)):
        return []
    return [rule(examination) for rule in GUESSES]


def _is_sure(found: Diagnosis) -> bool:
    """Whether a finding leaves no room for guesses: it is certain, or likely and nothing that the guesses are about."""
    confidence = found.sign.finding.confidence
    return confidence == "certain" or (confidence == "likely" and found.category not in GUESSED)


def _loss_is_high(case: Case) -> bool:
    """Whether a foreign log, whose data nobody knows, ends at a level above which questions are asked: a perplexity of 20."""
    losses = case.log.get("train/loss")
    return not case.log.stage and losses is not None and case.settings.initial == "trained" and losses.values[-1] > 3.0


def _ignored(examination: Examination, name: str) -> str | None:
    """Why the published code of the trainer does not use a setting; None if nothing of the kind is known."""
    return None if examination.trainer is None else examination.trainer.without_effect.get(name)


def _rate(examination: Examination) -> Guess:
    change, case = "a higher learning rate", examination.case
    facts = facts_of(case)
    for_adamw = replace(case.settings, optimizer="adamw")
    band = rate_band(Case(log=replace(case.log, settings=for_adamw), figures=case.figures), facts)
    rate = case.value("plan/peak_lr") or case.settings.learning_rate
    beside = ""
    if band is not None and rate:
        place = "below" if rate < band.low else "above" if rate > band.high else "inside"
        beside = f"{number(rate)} is {place} the usual {number(band.low)} to {number(band.high)} ({band.source})"
    if why := _ignored(examination, "learning_rate"):
        reason = f"{why}, so that another number changes nothing"
        return Guess(change, "refuted", f"{reason}; with AdamW, {beside}" if beside else reason)
    if not beside or band is None or not rate:
        return Guess(change, "cannot tell", "the rate, the width of the model or the number of updates is not known")
    if rate < band.low or rate > band.high:
        return Guess(change, "supported" if rate < band.low else "refuted", beside)
    if not band.is_own:
        return Guess(change, "cannot tell", f"{beside}, which is wide: the method and the kind of the run are not known")
    return Guess(change, "not supported", beside)


def _warmup(examination: Examination) -> Guess:
    change, settings = "a longer warm-up", examination.case.settings
    if why := _ignored(examination, "warmup_steps"):
        return Guess(change, "refuted", why)
    warmup, steps = settings.warmup_steps, settings.steps
    last = examination.case.value("curve/last_step") or _last_step(examination.case)
    if warmup is None or last is None:
        return Guess(change, "cannot tell", "the length of the warm-up is not known")
    share = f", {warmup / steps:.1%} of {number(steps)}" if steps else ""
    said = f"it ended after {number(warmup)} updates{share}, and the log goes to {number(last)}"
    if last < WARMUPS * max(warmup, 1.0):
        return Guess(change, "cannot tell", f"the log is hardly longer than the warm-up: {said}")
    peak = examination.case.value("curve/early_grad_peak")
    if peak is not None and peak > WARMUPS:
        return Guess(change, "supported", f"the gradient of the first updates was {peak:.1f} times the later one; {said}")
    usual = f"published recipes use {USUAL_WARMUP[0]:.0%} to {USUAL_WARMUP[1]:.0%}"
    return Guess(change, "not supported", f"a warm-up guards the first updates: {said}; {usual}")


def _batch(examination: Examination) -> Guess:
    change, case = "a smaller batch", examination.case
    ratio, facts = case.value("plan/batch_per_noise_scale"), facts_of(case)
    if ratio is not None:
        verdict: Verdict = "supported" if ratio > NOISE_SCALES[1] else "not supported"
        return Guess(change, verdict, f"an update reads {ratio:.2g} times the gradient noise scale")
    updates = facts.updates_per_epoch
    if updates is None:
        return Guess(change, "cannot tell", "neither the updates of an epoch nor the gradient noise scale is known")
    low, high = UPDATES_OF_EPOCH
    rows, each = case.settings.batch_rows, f"{number(round(updates))} updates"
    size = f"{number(rows)} rows are {each} an epoch" if rows else f"an epoch has {each}"
    if updates < low and (rows is None or rows > SMALL):
        return Guess(change, "supported", f"{size}, fewer than the usual {number(low)} to {number(high)}")
    place = "inside" if low <= updates <= high else "outside of"
    noise = "a larger batch makes gradients less noisy, and the noise scale would decide"
    return Guess(change, "not supported", f"{size}, {place} the usual {number(low)} to {number(high)}; {noise}")


def _epochs(examination: Examination) -> Guess:
    change, case = "more epochs", examination.case
    z, fall = case.value("curve/late_z"), case.value("curve/late_fall")
    if z is None:
        points = len(case.log.get("train/loss") or ())
        return Guess(
            change, "cannot tell",
            f"{points} points of the loss do not say whether it still falls: log it at every update, and the loss before the "
            "first",
        )  # fmt: skip
    if case.value("curve/validation_rise") and (case.value("curve/validation_rise_evaluations") or 0) >= 2:
        return Guess(change, "refuted", "the validation loss rises already")
    state = end_of_loss(case)
    if state == "falls":
        return Guess(change, "supported", f"the loss still falls: by {fall:.3g} nats in the last half of the log (z {z:.1f})")
    hidden, level = SURE * (case.value("curve/level_error") or 0.0), case.value("curve/last_loss")
    if state == "stands still" and level and hidden > USEFUL_FALL * level:
        return Guess(
            change, "not supported",
            f"the loss stands still in the last half of the log (z {z:.1f}), but its noise hides a fall of less than "
            f"{hidden:.2g} nats",
        )  # fmt: skip
    return Guess(
        change, "refuted", f"the loss {state} in the last half of the log (z {z:.1f}): more of the same changes nothing"
    )


def _last_step(case: Case) -> float | None:
    losses = case.log.get("train/loss")
    return None if losses is None else float(losses.steps[-1])


GUESSES: tuple[Callable[[Examination], Guess], ...] = (_rate, _warmup, _batch, _epochs)
