"""Causes in the size of an update and in their number."""

import math
from collections.abc import Mapping
from typing import Any

from fledge.diagnosis.case import Case
from fledge.diagnosis.cause import Cause, Sign
from fledge.diagnosis.causes.matching import beyond, matching, times
from fledge.diagnosis.causes.signs import patch, sign, span
from fledge.diagnosis.facts import TOKEN_KINDS
from fledge.diagnosis.thresholds import threshold

SMALL, LARGE, FEW = "batch too small", "batch too large", "too few updates"
UNDERDONE = ("not learning", "slow learning", "high level")
NOISY = ("oscillation", "loss spikes", "divergence")
ENOUGH_UPDATES = 200  # that a stage of too few ones is to have


def _limit(name: str) -> float:
    return threshold("batch", name)


def is_counted_in_tokens(case: Case) -> bool:
    """Whether the recipe of a run of fledge gives the size of an update in tokens."""
    return bool(case.log.stage) and case.settings.other.get("batch.tokens_per_step") is not None


def is_counted_in_updates(case: Case) -> bool:
    """Whether the recipe of a run of fledge gives the length of the stage in updates. It does not grow longer then with smaller
    updates, as one of so many epochs or tokens does."""
    from fledge.recipe.units import Duration

    try:
        return bool(case.log.stage) and Duration.parse(str(case.settings.other.get("duration"))).unit == "steps"
    except ValueError:
        return False


def micro_batches(case: Case) -> int:
    """Micro-batches of an update, as large as the run took them. A run of fledge may merge those of its recipe, and counts the
    rows of all processes as those of an update."""
    settings = case.settings
    if case.log.stage and settings.batch_rows and settings.micro_batch_rows:
        return max(1, round(settings.batch_rows / settings.micro_batch_rows))
    return int(settings.accumulation_steps or 1)


def resized(case: Case, accumulation: int, **more: Any) -> dict[str, Any] | None:
    """A change of the rows of an update to so many accumulated micro-batches; `more`: other keys of the section `batch`. What
    else in the recipe of a run sets the size, or would not fit it, is taken out. None where a value is not known."""
    keys = {f"batch__{name}": value for name, value in more.items()}
    changed = patch(case, **keys, batch__gradient_accumulation_steps=accumulation)
    if changed is None or not case.log.stage:
        return changed
    warmup = case.settings.other.get("batch.warmup")
    begins_with = warmup.get("initial_accumulation_steps", 1) if isinstance(warmup, Mapping) else 0
    out = [name for name, is_out in (("tokens_per_step", is_counted_in_tokens(case)), ("warmup", begins_with >= accumulation))
           if is_out]  # fmt: skip
    return {**{f"stages.{case.log.stage}.batch.{name}": None for name in out}, **changed}


def _of_same_tokens(case: Case, changed: dict[str, Any] | None, share: float) -> dict[str, Any] | None:
    """A change to updates of such a share of the rows, with as many tokens in all where the recipe counts updates."""
    steps = case.settings.steps or case.value("plan/steps")
    wanted = steps / share if steps and share else math.inf
    if changed is None or not is_counted_in_updates(case) or not math.isfinite(wanted):
        return changed
    return {**changed, **(patch(case, duration=f"{max(1, round(wanted))} steps") or {})}


def _enlarged(case: Case, times_as_large: int) -> dict[str, Any] | None:
    """A change to updates of so many times as many rows. For a run of fledge the micro-batches are written with their number:
    it may have computed others than its recipe has, and a recipe counts the rows of all processes."""
    rows = case.settings.micro_batch_rows
    more = {"micro_batch_size": int(rows)} if case.log.stage and rows else {}
    return _of_same_tokens(case, resized(case, times_as_large * micro_batches(case), **more), times_as_large)


def _diminished(case: Case, rows: float) -> dict[str, Any] | None:
    """A change to updates of about so many rows, and to as many more of these where the recipe counts them. None where no
    fewer rows than before can be written."""
    written = _written(case, rows)
    if written is None:
        return None
    parts, micro, share = written
    return _of_same_tokens(case, resized(case, parts, micro_batch_size=micro), share)


def _written(case: Case, rows: float) -> tuple[int, int, float] | None:
    """(micro-batches of an update, rows of each, their share of the rows before) for updates of about so many rows, in
    micro-batches no larger than before. Other trainers count the rows of one process. None for no fewer rows than before."""
    settings = case.settings
    processes = 1.0 if case.log.stage else settings.processes or 1.0
    own = max(1.0, rows / processes)
    parts = math.ceil(own / settings.micro_batch_rows) if settings.micro_batch_rows else 1
    micro = max(1, round(own / parts))
    if not settings.batch_rows:
        return parts, micro, 1.0
    share = parts * micro * processes / settings.batch_rows
    return (parts, micro, share) if share < 1 else None


def of_longer_rows(case: Case, times_as_long: float) -> dict[str, Any]:
    """A change of the batch with which updates have about as many tokens after rows of a run of fledge became longer: of fewer
    of them. Else a stage of so many epochs would have fewer updates, and one of so many updates more tokens. Empty where rows
    are no packed tokens, the recipe counts tokens, or an update has one row."""
    rows = case.settings.batch_rows
    if not case.log.stage or not rows or case.kind not in TOKEN_KINDS or is_counted_in_tokens(case):
        return {}
    written = _written(case, rows / times_as_long)
    return {} if written is None else resized(case, written[0], micro_batch_size=written[1]) or {}


def _noise_share(case: Case) -> float | None:
    """The noise of single losses as a share of their level."""
    noise, level = case.value("curve/loss_noise"), case.value("curve/last_loss")
    return noise / level if noise is not None and level else None


def small(case: Case) -> Sign | None:
    """An update of few tokens: below the published band, or far below the gradient noise scale."""
    factor, per_noise, batch = (
        case.value(f"plan/{name}") for name in ("batch_factor", "batch_per_noise_scale", "batch_tokens")
    )
    below = 1 / factor if factor and factor < 1 else 1.0
    noise = _noise_share(case)
    is_drowned = per_noise is not None and per_noise <= 1 / _limit("noise_scale")
    is_tiny = batch is not None and batch < _limit("tiny_tokens") and (noise or 0.0) >= _limit("noise_share")
    is_matched = is_drowned or bool(matching(case, NOISY)) or (noise is not None and noise >= _limit("noise_share"))
    sure = beyond(below, is_matched, far=_limit("far"), some=_limit("some"))
    if is_tiny:
        sure = "likely"
    if sure is None and is_drowned:
        sure = "possible"
    if sure is None:
        return None
    low = case.value("plan/batch_low")
    band = f", {times(below)} below the band from {low:,.0f} ({case.value('plan/batch_source')})" if below > 1 else ""
    drowned = f"; the gradient noise scale is {1 / per_noise:,.0f} times as large" if is_drowned and per_noise else ""
    drowned += f"; the loss of single updates jumps by {noise:.0%} of its level" if is_tiny else ""
    wanted = max(2, round(below)) if below > 1 else 8
    return sign(
        SMALL,
        sure,
        f"an update reads {batch or 0:,.0f} tokens{band}{drowned}: its gradient is mostly noise",
        hint=f"accumulate the gradients of about {wanted} times as many rows in an update, or lower the learning rate",
        proof="train on the same tokens with the larger batch: the loss falls lower and jumps less",
        evidence={"batch_tokens": batch, "low": low, "batch_per_noise_scale": per_noise, "noise_of_loss": noise},
        severity="warning",
        patch=_enlarged(case, wanted),
        alternatives={"learning rate too high": "the same batch with a smaller rate"},
        steps=span(case.log.get("train/loss")),
    )


def large(case: Case) -> Sign | None:
    """An update of very many tokens, so that there are few of them: above the published band, or far above the noise scale."""
    factor, per_noise, batch = (
        case.value(f"plan/{name}") for name in ("batch_factor", "batch_per_noise_scale", "batch_tokens")
    )
    above = factor if factor and factor > 1 else 1.0
    steps, per_epoch = case.value("plan/steps"), case.value("plan/updates_per_epoch")
    is_few = (steps is not None and steps < _limit("few_for_large")) or (
        per_epoch is not None and per_epoch < _limit("few_of_epoch")
    )
    is_wasted = per_noise is not None and per_noise >= _limit("noise_scale")
    symptoms = matching(case, UNDERDONE)
    sure = beyond(above, is_few and (is_wasted or bool(symptoms)), far=_limit("far"), some=_limit("some"))
    if sure is None and is_few and is_wasted and symptoms:
        sure = "likely"
    if sure is None or not is_few:
        return None
    high = case.value("plan/batch_high")
    band = f", {times(above)} above the band up to {high:,.0f} ({case.value('plan/batch_source')})" if above > 1 else ""
    wasted = f"; it is {per_noise:,.0f} times the gradient noise scale" if is_wasted else ""
    rows = case.settings.batch_rows
    return sign(
        LARGE,
        sure,
        f"an update reads {batch or 0:,.0f} tokens{band}{wasted}, so that there are only {steps or 0:,.0f} updates",
        hint="make the batch smaller: what counts is the number of updates as long as their gradients are clear",
        proof="train on the same tokens with the smaller batch: the loss falls lower",
        evidence={"batch_tokens": batch, "high": high, "batch_per_noise_scale": per_noise, "updates": steps,
                  "updates_per_epoch": per_epoch, "symptoms": symptoms},
        severity="warning",
        patch=_diminished(case, rows / max(2.0, above)) if rows else None,
        alternatives={FEW: "the same batch for more updates"},
        steps=span(case.log.get("train/loss")),
    )  # fmt: skip


def few(case: Case) -> Sign | None:
    """A stage of so few updates that hardly anything can be learned."""
    steps = case.value("plan/steps")
    known = case.value("plan/is_done") or case.settings.steps is not None
    if not steps or not known or steps >= _limit("few_updates"):
        return None
    symptoms = matching(case, UNDERDONE)
    late, level = case.value("curve/late_fall"), case.value("curve/last_loss")
    z = case.value("curve/late_z")
    still_falls = None not in (late, level, z) and z <= -_limit("falls_z") and late >= _limit("falls_share") * level
    is_far_too_few = steps < _limit("fewest_updates") and not case.value("plan/has_adapter")
    if steps >= _limit("certain_updates") and not (is_far_too_few or symptoms or still_falls):
        return None
    rows = case.settings.batch_rows
    hint = "train for more epochs, or make an update of fewer rows"
    longer = patch(case, duration=f"{round(max(ENOUGH_UPDATES, 4 * steps))} steps")
    smaller = _diminished(case, rows * steps / ENOUGH_UPDATES) if rows and rows > 4 else None
    if smaller and is_counted_in_updates(case):
        smaller |= patch(case, duration=f"{ENOUGH_UPDATES} steps") or {}
    return sign(
        FEW,
        "certain" if steps < _limit("certain_updates") else "likely" if is_far_too_few or symptoms else "possible",
        f"the stage has only {steps:,.0f} updates" + (f" of {rows:,.0f} rows" if rows else ""),
        hint=hint,
        proof="train from the same start with four times as many updates: the loss falls lower",
        evidence={"updates": steps, "rows_of_update": rows, "symptoms": symptoms, "late_fall": late},
        severity="warning",
        patch=smaller or longer,
        steps=span(case.log.get("train/loss")),
    )


CAUSES = (
    Cause(name=SMALL, category="batch", find=small, rank=34, setting=True, needs=("grad_noise/scale",),
          explains=frozenset({*NOISY, *UNDERDONE, "learning rate too high", "plateau", "trained too short"})),
    Cause(name=LARGE, category="batch", find=large, rank=41, setting=True, needs=("grad_noise/scale",),
          explains=frozenset({*UNDERDONE, FEW, "trained too short", "margins flat"})),
    Cause(name=FEW, category="duration", find=few, rank=43, setting=True,
          explains=frozenset({*UNDERDONE, "trained too short", "margins flat", "loss at ln 2", "learning rate too low"})),
)  # fmt: skip
"""The causes in the batch."""
