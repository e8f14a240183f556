"""The rules of the guards: each reads the events of a stage one by one and returns a trigger when training goes wrong.

The state of a rule is a function of the events it has read. A resumed run replays its events, so its guards trigger like the
guards of an uninterrupted run.
"""

import math
import statistics
from collections import deque
from dataclasses import dataclass
from typing import Any

from fledge.findings import Finding, Severity
from fledge.recipe.sections.guards import (
    DivergenceGuard,
    GradSpikeGuard,
    LossSpikeGuard,
    NonFiniteGuard,
    ThroughputGuard,
    ValidationIncreaseGuard,
)

MIN_SPIKE_HISTORY = 32  # steps before a deviation is computed from them
MIN_LOSS_SCALE = 2.0**-10  # of fp16: an overflow below it is divergence, not a scale that is too large
MAX_OVERFLOWS = 10  # fp16 overflows in a row before they are reported
RECENT_STEPS, EARLIER_STEPS = 20, 200  # steps whose speeds are compared
REFERENCE_STEPS = 4  # updates whose rows are measured again when training seems to have diverged
SEVERITIES: dict[str, Severity] = {"warn": "warning", "skip": "warning", "stop": "error", "rollback": "error"}
Event = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class GuardTrigger:
    """The finding of a rule after update number `step` (from 1), and the action to take."""

    finding: Finding
    action: str  # warn, skip, stop or rollback
    step: int
    first_bad_step: int  # the update with which it went wrong
    rollback_policy: str | None = None  # skip_rows or lower_lr
    stop_scope: str = "run"  # what `stop` ends: run or stage
    state_is_valid: bool = False  # whether the current state is worth saving before a stop
    reference: tuple[tuple[int, float], ...] = ()  # (step, loss) to measure again with the current weights before acting


def trigger(check: str, action: str, message: str, event: Event, **more: Any) -> GuardTrigger:
    """A trigger at the step of an event. `more`: `evidence` of the finding, `first_bad_step` (default: the step of the event),
    and the other fields of GuardTrigger."""
    evidence = more.pop("evidence", {})
    finding = Finding(check=check, severity=SEVERITIES[action], message=message, evidence=evidence)
    step = event["step"]
    return GuardTrigger(finding=finding, action=action, step=step, first_bad_step=more.pop("first_bad_step", step), **more)


class Rule:
    """Interface of the rules: reads every event of a stage in order."""

    def update(self, event: Event) -> GuardTrigger | None:
        """Read the next event; returns a trigger if the event shows a problem, else None."""
        raise NotImplementedError


class NonFinite(Rule):
    """Triggers on consecutive updates without a finite gradient. In fp16 these are overflows until the loss scale is below
    MIN_LOSS_SCALE."""

    def __init__(self, config: NonFiniteGuard) -> None:
        self.config, self.consecutive = config, 0

    def update(self, event: Event) -> GuardTrigger | None:
        """A trigger with the action `skip` for each such update; the configured action after `consecutive` updates."""
        if event["kind"] != "step":
            return None
        is_finite = event["train/grad_norm"] is not None and event["train/loss"] is not None
        if is_finite or event.get("train/loss_scale", 0.0) >= MIN_LOSS_SCALE:
            self.consecutive = 0
            return None
        self.consecutive += 1
        evidence = {
            "grad_norm": event["train/grad_norm"],
            "loss": event["train/loss"],
            "consecutive": self.consecutive,
        }
        if self.consecutive < self.config.consecutive:
            message = "the gradient is not finite: this update is skipped"
            return trigger("non_finite", "skip", message, event, evidence=evidence)
        return trigger(
            "non_finite",
            self.config.action,
            f"the gradient is not finite in {self.consecutive} updates in a row",
            event,
            first_bad_step=event["step"] - self.consecutive + 1,
            evidence=evidence,
            rollback_policy=self.config.on_rollback,
        )


class Overflow(Rule):
    """Triggers on MAX_OVERFLOWS consecutive fp16 overflows: their updates are all skipped, so nothing is learned."""

    def __init__(self) -> None:
        self.consecutive = 0

    def update(self, event: Event) -> GuardTrigger | None:
        """A trigger at the last of MAX_OVERFLOWS consecutive steps with an overflow."""
        if event["kind"] != "step" or "train/loss_scale" not in event:
            return None
        self.consecutive = self.consecutive + 1 if event["train/grad_norm"] is None else 0
        if self.consecutive != MAX_OVERFLOWS:
            return None
        return trigger(
            "overflow",
            "warn",
            f"fp16 overflowed in {MAX_OVERFLOWS} steps in a row; all of these updates were skipped",
            event,
            first_bad_step=event["step"] - self.consecutive + 1,
            evidence={"loss_scale": event["train/loss_scale"]},
        )


class Spike(Rule):
    """Triggers on a value above the mean of the last `window` values by `sigma` standard deviations and by a factor.

    The limit of an update must be known while the figures of the update before are still on the device, so step n is compared
    with the steps up to n − 2. After a spike, no other spike is reported for `window` steps.
    """

    def __init__(self, name: str, key: str, config: GradSpikeGuard | LossSpikeGuard, logarithmic: bool) -> None:
        self.name, self.key, self.config, self.logarithmic = name, key, config, logarithmic
        self.values: deque[float] = deque(maxlen=config.window)
        self.limits: dict[int, float] = {}  # the last two, by the newest step that each is computed from
        self._cooldown_until = 0

    def limit(self, step: int) -> float:
        """The limit for the value of `step`, above which it is a spike; infinite while there are too few earlier steps."""
        return self.limits.get(step - 2, math.inf)

    def _next_limit(self) -> float:
        if len(self.values) < MIN_SPIKE_HISTORY:
            return math.inf
        mean = sum(self.values) / len(self.values)
        deviation = math.sqrt(sum((value - mean) ** 2 for value in self.values) / len(self.values))
        above = mean + self.config.sigma * deviation
        if self.logarithmic:
            return math.exp(min(max(above, mean + math.log(self.config.factor)), 700.0))
        return max(above, mean * self.config.factor)

    def update(self, event: Event) -> GuardTrigger | None:
        """A trigger if the value is above its limit."""
        if event["kind"] != "step":
            return None
        value, step, result = event.get(self.key), event["step"], None
        limit = self.limit(step)
        if value is not None and value > limit:
            if step > self._cooldown_until or self.config.action == "skip":
                result = self._spike(value, limit, event)
            self._cooldown_until = step + self.config.window
        if value is not None and value > 0:  # a spike counts as the largest value allowed, so that a new level is learned
            self.values.append(math.log(min(value, limit)) if self.logarithmic else min(value, limit))
        self.limits = {step - 1: self.limits.get(step - 1, math.inf), step: self._next_limit()}
        return result

    def _spike(self, value: float, limit: float, event: Event) -> GuardTrigger:
        name = self.name.replace("_", " ")
        message = f"{name}: {value:.4g} is above the limit {limit:.4g} that follows from the {len(self.values)} steps before"
        evidence, policy = {"value": value, "limit": limit}, self.config.on_rollback
        return trigger(self.name, self.config.action, message, event, evidence=evidence, rollback_policy=policy)


class Divergence(Rule):
    """Triggers when the smoothed training loss is above its lowest value by `min_increase`. The smoothing is an exponential
    moving average with bias correction (Kingma & Ba 2015, section 3).

    Losses of different rows differ, of few rows very much, so this is only a suspicion. The trigger names the updates before
    the lowest value; the rows of these are to be measured again, and the outcome read as a `guard_check` event: it is
    divergence if the current weights are worse on the same rows. If not, the present level is the one to compare with.
    """

    def __init__(self, config: DivergenceGuard) -> None:
        self.config, self.decay = config, 1 - 1 / config.window
        self.sum, self.weight = 0.0, 0.0
        self.recent: deque[tuple[int, float]] = deque(maxlen=REFERENCE_STEPS)
        self.reported = False
        self._compare_with(math.inf, 0)

    def _compare_with(self, level: float, step: int) -> None:
        self.lowest, self.lowest_step, self.reference = level, step, tuple(self.recent)

    def update(self, event: Event) -> GuardTrigger | None:
        """A trigger when the smoothed loss is too high; the next one only after the loss has reached a new minimum, or after
        the outcome that it was no divergence."""
        if event["kind"] == "guard_check" and not event["confirmed"]:
            self.reported = False
            self._compare_with(self.sum / self.weight, event["step"])
        loss = event.get("train/loss") if event["kind"] == "step" else None
        if loss is None:
            return None
        self.sum, self.weight = self.decay * self.sum + loss, self.decay * self.weight + 1
        self.recent.append((event["step"], loss))
        smoothed = self.sum / self.weight
        if smoothed <= self.lowest:
            self.reported = False
            self._compare_with(smoothed, event["step"])
        if smoothed <= self.lowest + self.config.min_increase or self.reported:
            return None
        self.reported = True
        return trigger(
            "divergence",
            self.config.action,
            f"training diverged: the smoothed loss is {smoothed:.4g}, it was {self.lowest:.4g} after step {self.lowest_step:,}",
            event,
            first_bad_step=self.lowest_step + 1,
            evidence={"smoothed": smoothed, "lowest": self.lowest, "lowest_step": self.lowest_step},
            rollback_policy=self.config.on_rollback,
            reference=self.reference,
        )


class ValidationIncrease(Rule):
    """Triggers after `patience` consecutive evaluations that each have a higher validation loss than the evaluation before."""

    def __init__(self, config: ValidationIncreaseGuard) -> None:
        self.config = config
        self.losses: list[tuple[int, float]] = []  # step and loss, from the lowest one on
        self.reported = False

    def update(self, event: Event) -> GuardTrigger | None:
        """A trigger after `patience` increases; the next one only after the loss has fallen."""
        loss = event.get("eval/loss") if event["kind"] == "eval" else None
        if loss is None:
            return None
        if self.losses and loss <= self.losses[-1][1]:
            self.losses = []
            self.reported = False
        self.losses.append((event["step"], loss))
        (lowest_step, lowest), increases = self.losses[0], len(self.losses) - 1
        is_small = loss - lowest < self.config.min_increase * abs(lowest)  # the robust loss of pairs may be negative
        if self.reported or increases < self.config.patience or is_small:
            return None
        self.reported = True
        return trigger(
            "validation_increase",
            self.config.action,
            f"the validation loss rose {increases} times in a row, from {lowest:.4f} (step {lowest_step:,}) to {loss:.4f}",
            event,
            first_bad_step=lowest_step + 1,
            evidence={"losses": [value for _, value in self.losses]},
            stop_scope="stage",
        )


class Throughput(Rule):
    """Triggers when the median speed of the last RECENT_STEPS steps is below the fraction `min_speed_ratio` of the steps
    before."""

    def __init__(self, config: ThroughputGuard) -> None:
        self.config = config
        self.speeds: deque[float] = deque(maxlen=RECENT_STEPS + EARLIER_STEPS)  # tokens a second
        self._cooldown_until = 0

    def update(self, event: Event) -> GuardTrigger | None:
        """A trigger when the recent steps are too slow, at most once in EARLIER_STEPS."""
        speed = event.get("system/step_tokens_per_second") if event["kind"] == "system" else None
        if speed is None:
            return None
        self.speeds.append(speed)
        step, speeds = event["step"], list(self.speeds)
        if len(speeds) < 4 * RECENT_STEPS or step <= self._cooldown_until:
            return None
        now, before = statistics.median(speeds[-RECENT_STEPS:]), statistics.median(speeds[:-RECENT_STEPS])
        if now >= self.config.min_speed_ratio * before:
            return None
        self._cooldown_until = step + EARLIER_STEPS
        return trigger(
            "throughput",
            self.config.action,
            f"training became slow: {now:,.0f} tokens/s over the last {RECENT_STEPS} steps, {before:,.0f} before",
            event,
            first_bad_step=step - RECENT_STEPS + 1,
            evidence={"now": now, "before": before},
        )
