"""Causes in the schedule of the learning rate: warm-up, and a fall that ends long before the run or long after it."""

from fledge.diagnosis.case import Case
from fledge.diagnosis.cause import Cause, Sign
from fledge.diagnosis.causes.matching import inner_update, matching
from fledge.diagnosis.causes.signs import patch, sign, span
from fledge.diagnosis.thresholds import threshold

EARLY, CUT = "schedule ends too early", "schedule cut before it decays"
NO_WARMUP, LONG_WARMUP = "no warm-up", "warm-up too long"
STEPS_OF_WARMUP = 2
BROKEN = ("divergence", "not a number")


def _limit(name: str) -> float:
    return threshold("schedules", name)


def _rates(case: Case) -> tuple[float, float] | None:
    return span(case.log.get("train/lr"))


def ends_early(case: Case) -> Sign | None:
    """A rate that is at its bottom, close to 0, for a large last part of the run."""
    last, share, flat_from = (
        case.value("curve/last_step"),
        case.value("curve/last_lr_share"),
        case.value("curve/lr_flat_from_step"),
    )
    peak = case.value("curve/peak_lr")
    if not last or share is None or not peak or flat_from is None or case.value("curve/lr_is_constant"):
        return None
    whole = max(last, case.settings.steps or 0.0)
    idle = 1 - flat_from / last
    is_off = (case.value("plan/lr_off_share") or 0.0) >= threshold("rates", "off_share")
    is_low = share <= _limit("bottom") or (
        is_off and share * peak <= _limit("near_minimum") * (case.settings.min_learning_rate or 0)
    )
    if idle < _limit("idle_share") or not is_low or (case.value("curve/lr_points") or 0) < _limit("points"):
        return None
    sure = "certain" if share == 0 or is_off else "likely"
    return sign(
        EARLY,
        sure,
        f"the learning rate reaches its bottom of {share * peak:.2g} at step {flat_from:,.0f} of {last:,.0f} and stays there: "
        f"{idle:.0%} of the updates change hardly anything",
        hint="give the schedule the number of updates of the whole run (not of micro-batches of one process, nor of one epoch)",
        proof="train from the same start with the schedule stretched over all updates: the loss falls lower",
        evidence={
            "bottom": share * peak,
            "from_step": flat_from,
            "last_step": last,
            "planned_steps": whole,
            "idle_share": idle,
        },
        severity="warning",
        steps=(flat_from, last),
    )


def cut(case: Case) -> Sign | None:
    """A run that is over while its falling rate is still high."""
    share, fall = case.value("curve/last_lr_share"), case.value("curve/lr_late_fall")
    last, peak = case.value("curve/last_step"), case.value("curve/peak_lr")
    low = case.settings.min_learning_rate
    if share is None or fall is None or not last or not peak or not case.value("plan/is_done"):
        return None
    falls = fall >= _limit("falling") and not case.value("curve/lr_is_constant")
    if not falls or share < _limit("cut_share") or (low is not None and share * peak <= _limit("near_minimum") * low):
        return None
    if (case.value("curve/lr_points") or 0) < _limit("points"):
        return None
    planned = case.settings.steps
    is_off = (case.value("plan/lr_off_share") or 0.0) >= threshold("rates", "off_share")
    stopped = any(event.get("kind") == "stop" for event in case.log.events) or (planned and last < 0.95 * planned)
    return sign(
        CUT,
        "possible" if stopped else "certain" if is_off else "likely",
        f"the run ends at step {last:,.0f} with a learning rate of {share * peak:.2g}, {share:.0%} of its peak, which is still "
        "falling: the schedule was made for a longer run",
        hint="give the schedule the number of updates that the run has; the last part, at low rates, lowers the loss the most",
        proof="train on from the last checkpoint with the rate falling to 0: the loss falls at once",
        evidence={"last_share": share, "last_step": last, "planned_steps": planned, "peak": peak},
        severity="info" if stopped else "warning",
        patch=None if stopped else patch(case, schedule__min_lr=0.0),
        steps=_rates(case),
    )


def no_warmup(case: Case) -> Sign | None:
    """No warm-up, and gradients or losses of the first steps that show that it hurt."""
    warmup, points = case.value("curve/warmup_steps"), case.value("curve/lr_points") or 0
    first = case.value("curve/first_lr_step")
    started_high = warmup is not None and warmup <= STEPS_OF_WARMUP and first is not None and first <= STEPS_OF_WARMUP
    if not started_high or points < _limit("points"):
        return None
    grad, jump, size = case.value("curve/early_grad_peak"), _early_jump(case), inner_update(case, "first_update")
    is_huge = size is not None and size >= _limit("first_update")
    is_large, is_broken = grad is not None and grad >= _limit("early_grad"), bool(matching(case, BROKEN))
    if jump is None and not is_huge and not (is_large and is_broken):
        return None  # a norm that is large at first alone is usual: it falls as the model learns
    says = [f"the gradient norm reached {grad:.0f} times its usual value"] if is_large else []
    says += [f"the loss rose by {jump:.2f} above its first value"] if jump is not None else []
    says += [f"an update changed matrices by {size:.0%} of their size"] if is_huge and size is not None else []
    return sign(
        NO_WARMUP,
        "likely" if jump is not None or is_huge else "possible",
        f"the learning rate is at its peak from the first update on, and in the first hundred steps {' and '.join(says)}",
        hint="raise the learning rate from 0 over 2 to 5 % of the steps",
        proof="train the first few hundred steps again with a warm-up, on the same rows: the loss does not rise",
        evidence={"warmup_steps": warmup, "gradient_peak": grad, "rise": jump, "first_update": size},
        severity="warning",
        patch=patch(case, schedule__warmup=0.05),
        alternatives={"learning rate too high": "whether the loss falls well once the first steps are over"},
        steps=(0.0, 100.0),
    )


def _early_jump(case: Case) -> float | None:
    """The rise of the loss above its first value in the first hundred steps, where it is large."""
    losses, noise = case.log.get("train/loss"), case.value("curve/loss_noise")
    if losses is None or noise is None or not case.value("curve/loss_is_level"):
        return None
    early = losses.between(losses.steps[0], losses.steps[0] + 100)
    first = float(early.values[0])
    highest = sorted(early.values)[-3] if len(early) >= 10 else first
    rise = float(highest) - first
    return rise if rise >= max(_limit("early_rise"), 6 * noise) else None


def long_warmup(case: Case) -> Sign | None:
    """A warm-up of more than half of the stage."""
    whole = case.value("plan/steps")
    warmup = case.settings.warmup_steps
    if warmup is None and case.value("plan/is_done") and not case.value("curve/lr_is_constant"):
        warmup = case.value("curve/warmup_steps")
    if not warmup or not whole or warmup / whole <= _limit("long_warmup"):
        return None
    return sign(
        LONG_WARMUP,
        "certain",
        f"the learning rate rises for {warmup:,.0f} of {whole:,.0f} updates ({warmup / whole:.0%}): the schedule is made for a "
        "longer run",
        hint="write the warm-up as a share of the updates, such as 5 %",
        proof="train from the same start with a warm-up of 5 %: the loss falls lower",
        evidence={"warmup_steps": warmup, "steps": whole},
        severity="warning",
        patch=patch(case, schedule__warmup=0.05),
        steps=(0.0, float(warmup)),
    )


SLOW = frozenset({"slow learning", "high level", "not learning", "plateau", "trained too short", "margins flat"})
SCHEDULES = (
    Cause(name=EARLY, category="learning rate", find=ends_early, rank=33, needs=("train/lr",), setting=True,
          explains=SLOW | {"learning rate not as planned", "learning rate too low"}),
    Cause(name=CUT, category="learning rate", find=cut, rank=45, needs=("train/lr",), setting=True,
          explains=frozenset({"learning rate not as planned"})),
    Cause(name=NO_WARMUP, category="learning rate", find=no_warmup, rank=38, setting=True,
          needs=("train/lr", "train/grad_norm"),
          explains=frozenset({"loss spikes", "divergence", "not a number", "exploding gradient", "oscillation"})),
    Cause(name=LONG_WARMUP, category="learning rate", find=long_warmup, rank=39, needs=("train/lr",), setting=True,
          explains=SLOW),
)  # fmt: skip
"""The causes in the schedule."""
