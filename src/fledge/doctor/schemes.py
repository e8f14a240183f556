"""Three ways to act on findings that settings cure: all at once, half of the way, or one change after another.

All numbers come from the findings, which computed them from this run's own figures; nothing is promised about the loss.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from math import sqrt
from typing import Any

from fledge.diagnosis import Case, Diagnosis
from fledge.diagnosis.causes import CAUSES
from fledge.diagnosis.causes.batch import is_counted_in_updates, micro_batches
from fledge.diagnosis.facts import facts_of
from fledge.doctor.examination import Examination
from fledge.doctor.scheme_cost import ACCUMULATION, CONTEXT, MICRO, PER_STEP, Cost, batch_factor, cost_of
from fledge.doctor.sparkline import number
from fledge.doctor.synonyms import stage_key
from fledge.doctor.taken import taken_by_recipe
from fledge.recipe.units import Duration

LOOK_SHARE, LEAST_LOOK = 0.1, 50  # of the stage, and updates at least, after which a change is looked at
MUCH_HIGHER = 3.0  # times a rate before, from which the aggressive scheme warms up longer too
LONGER_WARMUP = 0.05
RATE, WARMUP, DURATION = "optimizer.learning_rate", "schedule.warmup", "duration"
OF_LENGTH = (DURATION, "early_stopping", "select_checkpoint")
CLEANING, BATCH = "data.clean.", "batch."
BY_VALIDATION = (*OF_LENGTH, CLEANING)  # beginnings of keys whose change the training loss does not show
ROUNDING = 1.1  # a rate that was rounded is at most so much outside of its band
SURE = ("certain", "likely")


@dataclass(frozen=True, kw_only=True)
class SchemeStep:
    """One change. `patch`: dotted keys of the recipe → new values. `words`: what to change where no key says it. `look`: what
    to look at before the next one."""

    patch: Mapping[str, Any]
    words: tuple[str, ...] = ()
    look: str = ""

    def as_dict(self) -> dict[str, Any]:
        """The step as JSON values."""
        return {"patch": dict(self.patch), "words": list(self.words), "look": self.look}


@dataclass(frozen=True, kw_only=True)
class Scheme:
    """A way to act. `letter`, `name`: A aggressive, B conservative, C stepwise. `effects`: sentences on what is expected, with
    the figures that they rest on. `cost`: of a stage with all changes. `left_out`: key → why the recipe of the run does not
    take its change."""

    letter: str
    name: str
    steps: tuple[SchemeStep, ...]
    effects: tuple[str, ...]
    cost: Cost
    left_out: Mapping[str, str] = field(default_factory=dict)

    @property
    def patch(self) -> dict[str, Any]:
        """All changes together."""
        return {key: value for step in self.steps for key, value in step.patch.items()}

    def as_dict(self) -> dict[str, Any]:
        """The scheme as JSON values."""
        return {
            "letter": self.letter,
            "name": self.name,
            "steps": [step.as_dict() for step in self.steps],
            "patch": self.patch,
            "effects": list(self.effects),
            "cost": self.cost.as_dict(),
            "left_out": dict(self.left_out),
        }


def schemes(examination: Examination) -> list[Scheme]:
    """The three schemes for the findings of a stage that settings cure, or for those changes of settings that the published
    code of its trainer needs. Empty where there is nothing of the kind."""
    trainer, case = examination.trainer, examination.case
    if trainer is not None and trainer.without_effect:
        return [_in_words(case, letter, steps) for letter, steps in trainer.schemes(case.settings).items()]
    cured = [found for found in examination.diagnoses.found if _is_cured(found)]
    if not cured:
        return []
    full, left_out = taken_by_recipe(examination, _as_long(examination, _merged(cured)))
    sure = _as_long(examination, _merged([one for one in cured if one.sign.finding.confidence in SURE] or cured[:1]))
    likely = [key for key in full if key in sure] or list(full)[:1]
    conservative = {key: halfway(case, stage_key(key), full[key]) for key in likely}
    made = {
        "A": (SchemeStep(patch=_with_warmup(case, full)),),
        "B": (SchemeStep(patch=conservative),),
        "C": tuple(_steps(case, full)),
    }
    return [_scheme(case, letter, steps, left_out) for letter, steps in made.items() if any(step.patch for step in steps)]


def proof_steps(examination: Examination, *, stepwise: bool) -> tuple[Diagnosis, list[Mapping[str, Any]]] | None:
    """What is to be proved of a stage: the root finding with a patch that the recipe takes, and this patch, or with `stepwise`
    those of scheme C. None where nothing has such a patch."""
    taken = ((one, taken_by_recipe(examination, one.sign.finding.patch or {})[0]) for one in examination.diagnoses.found)
    diagnosis, patch = next(((one, patch) for one, patch in taken if patch), (None, {}))
    if diagnosis is None:
        return None
    if stepwise:
        steps = next((scheme.steps for scheme in schemes(examination) if scheme.letter == "C"), ())
        if patches := [step.patch for step in steps if step.patch]:
            return diagnosis, patches
    return diagnosis, [patch]


NAMES = {"A": "aggressive", "B": "conservative", "C": "stepwise"}


def _is_cured(diagnosis: Diagnosis) -> bool:
    cause = next((one for one in CAUSES if one.name == diagnosis.cause), None)
    return cause is not None and cause.setting and bool(diagnosis.sign.finding.patch)


def _merged(found: list[Diagnosis]) -> dict[str, Any]:
    """All patches together; where two change one key, that of the cause nearer the root holds."""
    merged: dict[str, Any] = {}
    for one in found:
        for key, value in (one.sign.finding.patch or {}).items():
            merged.setdefault(key, value)
    return merged


def _as_long(examination: Examination, patch: Mapping[str, Any]) -> dict[str, Any]:
    """The patch; where it drops rows of a stage that is counted in epochs, with as many updates as the stage had."""
    run, case = examination.target.run, examination.case
    steps, cleaning = facts_of(case).whole_steps, [key for key in patch if stage_key(key).startswith(CLEANING)]
    if run is None or not steps or not cleaning or any(stage_key(key) == DURATION for key in patch):
        return dict(patch)
    from fledge.recipe import load_recipe

    stage = load_recipe([str(run / "recipe.yaml")]).stages[examination.stage]
    if Duration.parse(stage.duration).unit != "epochs":
        return dict(patch)
    return {**patch, f"stages.{examination.stage}.{DURATION}": f"{round(steps)} steps"}


def _with_warmup(case: Case, patch: Mapping[str, Any]) -> dict[str, Any]:
    """The patch, with a longer warm-up where it raises the rate a lot."""
    key = next((key for key in patch if stage_key(key) == RATE), None)
    before, settings = case.settings.learning_rate, case.settings
    is_short = not settings.warmup_steps or not settings.steps or settings.warmup_steps / settings.steps < LONGER_WARMUP
    rate = patch[key] if key is not None else None
    if key is None or not before or not isinstance(rate, float | int) or rate < MUCH_HIGHER * before or not is_short:
        return dict(patch)
    return {key.replace(RATE, WARMUP): LONGER_WARMUP, **patch}


def current(case: Case, key: str) -> float | None:
    """The value that a key of the stage has in this run; None: not known, or no number."""
    settings = case.settings
    share = settings.warmup_steps / settings.steps if settings.warmup_steps is not None and settings.steps else None
    accumulation = float(micro_batches(case)) if case.log.stage else settings.accumulation_steps
    values = {
        RATE: case.value("plan/peak_lr") or settings.learning_rate,
        WARMUP: share,
        "schedule.min_lr": settings.min_learning_rate,
        "optimizer.weight_decay": settings.weight_decay,
        "optimizer.max_grad_norm": settings.max_grad_norm,
        MICRO: settings.micro_batch_rows,
        ACCUMULATION: accumulation,
        PER_STEP: settings.batch_tokens,
        "beta": settings.beta,
        "adapter.r": settings.adapter_rank,
        CONTEXT: settings.context,
    }
    return values.get(key)


def halfway(case: Case, key: str, target: Any) -> Any:
    """Half of the way to a new value, on a logarithmic scale; the new value itself where there is no way, such as for words."""
    if key == DURATION and isinstance(target, str):
        return _shorter_way(case, target)
    before = current(case, key)
    if isinstance(target, bool) or not isinstance(target, float | int) or not before or before <= 0 or target <= 0:
        return target
    middle = sqrt(before * target)
    if key == RATE:
        return _inside(case, middle)
    return max(1, round(middle)) if isinstance(target, int) else float(f"{middle:.2g}")


def _inside(case: Case, rate: float) -> float:
    """A rate with two digits, moved to the nearer end of its band where it is outside."""
    low, high = case.value("plan/rate_low"), case.value("plan/rate_high")
    if high and rate > high:
        return float(f"{0.9 * high:.2g}")
    return float(f"{1.1 * low if low and rate < low else rate:.2g}")


def _shorter_way(case: Case, target: str) -> str:
    duration = Duration.parse(target)
    facts = facts_of(case)
    before = {"epochs": case.settings.epochs, "steps": facts.whole_steps, "tokens": facts.tokens}[duration.unit]
    if not before:
        return target
    amount = sqrt(before * duration.amount)
    return str(Duration(float(f"{amount:.2g}") if duration.unit == "epochs" else float(round(amount)), duration.unit))


def _steps(case: Case, patch: Mapping[str, Any]) -> Iterator[SchemeStep]:
    """One change after another: keys of the batch belong together, and to the length of rows where that changes too; and how
    long rows are read belongs to what drops some of them, and to a batch of a stage that counts updates."""
    groups: dict[str, dict[str, Any]] = {}
    begins = [begin for begin in (CLEANING, BATCH) if any(stage_key(key).startswith(begin) for key in patch)]
    of_length = next((one for one in begins if one == CLEANING or is_counted_in_updates(case)), DURATION)
    for key, value in patch.items():
        own = stage_key(key)
        of_batch = own == CONTEXT and BATCH in begins
        together = BATCH if of_batch else next((begin for begin in begins if own.startswith(begin)), own)
        groups.setdefault(of_length if own == DURATION else together, {})[key] = value
    for values in groups.values():
        yield SchemeStep(patch=values, look=_look_at_validation(case, list(values)) or _look(case))


def _look_at_validation(case: Case, keys: list[str]) -> str | None:
    """What to look at for changes of the rows, of how long a stage trains, and of which checkpoint goes on; None for others."""
    lowest, step = case.value("curve/lowest_validation"), case.value("curve/lowest_validation_step")
    if lowest is None or step is None or not all(stage_key(key).startswith(BY_VALIDATION) for key in keys):
        return None
    return (
        f"compare the validation loss of the model that goes on with the lowest one of this log, {lowest:.3f} at step "
        f"{number(step)}"
    )


def _look(case: Case) -> str:
    """After how many updates to look at what, from the log's own level and noise there."""
    losses, facts = case.log.get("train/loss"), facts_of(case)
    if losses is None or not facts.whole_steps:
        return "train as long as before and compare the loss with this log at the same step; only then change the next thing"
    at = min(float(losses.steps[-1]), max(LEAST_LOOK, LOOK_SHARE * facts.whole_steps))
    before = losses.between(at * 0.8, at)
    noise = case.value("curve/loss_noise")
    if not len(before):
        return f"compare the loss at step {number(round(at))} with this log; only then change the next thing"
    level = float(before.values.mean())
    sure = f" by more than {number(3 * float(noise) / sqrt(len(before)))}" if noise else ""
    return (
        f"look at step {number(round(at))}: the loss was {level:.3f} there and must be lower{sure}; if so, keep the change "
        "and go "
        "on, else take it back and change the next thing"
    )


def _scheme(case: Case, letter: str, steps: tuple[SchemeStep, ...], left_out: Mapping[str, str]) -> Scheme:
    patch = {key: value for step in steps for key, value in step.patch.items()}
    effects = tuple(effect for key, value in patch.items() if (effect := _effect(case, patch, stage_key(key), value)))
    unique = tuple(dict.fromkeys(effects))
    cost = cost_of(case, patch)
    return Scheme(letter=letter, name=NAMES[letter], steps=steps, effects=unique, cost=cost, left_out=left_out)


def _in_words(case: Case, letter: str, steps: tuple[tuple[tuple[str, ...], str], ...]) -> Scheme:
    made = tuple(SchemeStep(patch={}, words=words, look=look) for words, look in steps)
    return Scheme(letter=letter, name=NAMES[letter], steps=made, effects=(), cost=cost_of(case, {}))


def _effect(case: Case, patch: Mapping[str, Any], key: str, value: Any) -> str | None:
    """What a change does, with the figure that it rests on; None where there is nothing to say."""
    rule = next((found for begin, found in EFFECTS.items() if key.startswith(begin)), None)
    return rule(case, {stage_key(one): of for one, of in patch.items()}, value) if rule else None


def _rate_effect(case: Case, patch: Mapping[str, Any], value: Any) -> str | None:
    before = case.value("plan/peak_lr") or case.settings.learning_rate
    if not before or not isinstance(value, float | int):
        return None
    said = f"an update moves weights {number(value / before)} times as far"
    ratio = case.value("curve/update_ratio")
    if isinstance(ratio, float | int) and ratio > 0:
        said += f": update ÷ weight goes from {number(float(ratio))} to about {number(float(ratio) * value / before)}"
    low, high = case.value("plan/rate_low"), case.value("plan/rate_high")
    if low and high:
        near = low / ROUNDING <= value <= high * ROUNDING
        place = "inside" if low <= value <= high else "at the end of" if near else "still outside"
        said += f"; {number(value)} is {place} the usual {number(low)} to {number(high)}"
    return said


def _warmup_effect(case: Case, patch: Mapping[str, Any], value: Any) -> str | None:
    peak = case.value("curve/early_grad_peak")
    seen = f"; the gradient of the first updates was up to {peak:.1f} times the later one" if peak else ""
    return f"the first updates are smaller{seen}"


def _cleaning_effect(case: Case, patch: Mapping[str, Any], value: Any) -> str | None:
    copies = case.value("data/duplicate_share")
    if not isinstance(copies, float | int) or not 0 < copies < 1:
        return None
    often = 1 / (1 - copies)
    return f"{copies:.1%} of the examples fall away, and in as many updates the others are read {often:.2g} times as often"


def _batch_effect(case: Case, patch: Mapping[str, Any], value: Any) -> str | None:
    factor, steps = batch_factor(case, patch), facts_of(case).whole_steps
    if factor == 1 or not steps:
        return None
    return (
        f"the same rows make {number(round(steps / factor))} updates instead of {number(round(steps))}, each with "
        f"{sqrt(1 / factor):.2g} times the noise of a gradient"
    )


def _duration_effect(case: Case, patch: Mapping[str, Any], value: Any) -> str | None:
    fall, z = case.value("curve/late_fall"), case.value("curve/late_z")
    before, after = facts_of(case).whole_steps, cost_of(case, patch).updates
    if not before or not after or after == before or fall is None or z is None:
        return None
    if after >= before:
        return (
            f"in the last half of the log the loss fell by {fall:.3g} nats (z {z:.1f}): that is what a longer run goes on with"
        )
    lowest, step = case.value("curve/lowest_validation"), case.value("curve/lowest_validation_step")
    return None if lowest is None else f"the validation loss was lowest at step {number(step)}, with {lowest:.3f}"


EFFECTS: dict[str, Callable[[Case, Mapping[str, Any], Any], str | None]] = {
    RATE: _rate_effect,
    WARMUP: _warmup_effect,
    BATCH: _batch_effect,
    CLEANING: _cleaning_effect,
    DURATION: _duration_effect,
}
"""By beginning of a key of the stage: what a change does."""
