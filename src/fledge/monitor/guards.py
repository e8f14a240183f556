"""Guards: small rules that read the events of a run, and nothing else.

What a rule knows is a function of the events so far. So a resumed run, which reads its events again, is guarded as one
that was never interrupted; and rules that find nothing change nothing.
"""

import math
import statistics
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from fledge.recipe.sections.guards import (
    DiskGuard,
    DivergenceGuard,
    GradSpikeGuard,
    GuardsConfig,
    LossSpikeGuard,
    NonFiniteGuard,
    PassRateGuard,
    RepetitionGuard,
    ThroughputGuard,
    TimeGuard,
    ValidationIncreaseGuard,
)
from fledge.run.console import duration

FEWEST = 32  # values that a deviation is taken from
SMALLEST_SCALE = 2.0**-10  # of fp16's loss: below, it is not overflow but divergence
MANY_OVERFLOWS = 10
RECENT, BEFORE = 20, 200  # steps whose speeds are compared
Event = dict[str, Any]


@dataclass(frozen=True)
class GuardTrigger:
    """What a rule found at `step`, the number of updates done, and what is to be done. It went wrong with update number
    `since` (from 1)."""

    rule: str
    action: str
    cause: str
    step: int
    first_bad_step: int
    evidence: dict[str, Any] = field(default_factory=dict)
    rollback_policy: str | None = None  # what is different after a roll-back
    stop_scope: str = "run"  # what `stop` ends: the run, or only the stage
    state_is_valid: bool = False  # whether the state is still worth saving


class Rule:
    """Sees every event in order."""

    def update(self, event: Event) -> GuardTrigger | None:
        """What this event gives reason for."""
        raise NotImplementedError


class NonFinite(Rule):
    """Updates in a row without a finite gradient. With fp16 that is overflow, until the scale is tiny."""

    def __init__(self, config: NonFiniteGuard) -> None:
        self.config, self.consecutive = config, 0

    def update(self, event: Event) -> GuardTrigger | None:
        if event["kind"] != "step":
            return None
        bad = event["train/grad_norm"] is None or event["train/loss"] is None
        if not bad or event.get("train/loss_scale", 0.0) >= SMALLEST_SCALE:
            self.consecutive = 0
            return None
        self.consecutive += 1
        step, found = (
            event["step"],
            {"grad_norm": event["train/grad_norm"], "loss": event["train/loss"], "consecutive": self.consecutive},
        )
        if self.consecutive < self.config.consecutive:
            cause = "the gradient is not finite: this update is left out"
            return GuardTrigger("non_finite", "skip", cause, step, step, found)
        cause = f"the gradient is not finite in {self.consecutive} updates in a row"
        return GuardTrigger(
            "non_finite", self.config.action, cause, step, step - self.consecutive + 1, found, self.config.on_rollback
        )


class Overflow(Rule):
    """fp16 that overflows again and again learns nothing."""

    def __init__(self) -> None:
        self.row = 0

    def update(self, event: Event) -> GuardTrigger | None:
        if event["kind"] != "step" or "train/loss_scale" not in event:
            return None
        self.row = self.row + 1 if event["train/grad_norm"] is None else 0
        if self.row != MANY_OVERFLOWS:
            return None
        cause = f"fp16 overflowed in {MANY_OVERFLOWS} steps in a row, which learned nothing"
        step = event["step"]
        return GuardTrigger(
            "overflow", "warn", cause, step, step - self.row + 1, {"train/loss_scale": event["train/loss_scale"]}
        )


class Spike(Rule):
    """A value far above those before: by `sigma` standard deviations and by a factor. An update must know its limit while
    the figures of the one before it are still on their way, so step n is held against steps up to n − 2. Between two
    alarms lie as many steps as it compares with."""

    def __init__(self, name: str, key: str, config: GradSpikeGuard | LossSpikeGuard, logarithmic: bool) -> None:
        self.name, self.key, self.config, self.logarithmic = name, key, config, logarithmic
        self.values: deque[float] = deque(maxlen=config.window)
        self.limits: dict[int, float] = {}  # by the step they follow, the last few
        self._cooldown_until = 0

    def limit(self, step: int) -> float:
        """The value above which that of step `step` is a spike; infinite while there are too few to tell."""
        return self.limits.get(step - 2, math.inf)

    def _limit(self) -> float:
        if len(self.values) < FEWEST:
            return math.inf
        mean = sum(self.values) / len(self.values)
        deviation = math.sqrt(sum((value - mean) ** 2 for value in self.values) / len(self.values))
        above = mean + self.config.sigma * deviation
        if self.logarithmic:
            return math.exp(min(max(above, mean + math.log(self.config.factor)), 700.0))
        return max(above, mean * self.config.factor)

    def update(self, event: Event) -> GuardTrigger | None:
        value = event.get(self.key) if event["kind"] == "step" else None
        if event["kind"] != "step":
            return None
        step, verdict = event["step"], None
        limit = self.limit(step)
        if value is not None and value > limit:
            if step > self._cooldown_until or self.config.action == "skip":
                cause = (
                    f"{self.name.replace('_', ' ')}: {value:.4g}, where the {len(self.values)} steps before allow {limit:.4g}"
                )
                evidence = {"value": value, "limit": limit}
                verdict = GuardTrigger(self.name, self.config.action, cause, step, step, evidence, self.config.on_rollback)
            self._cooldown_until = step + self.config.window
        if value is not None and value > 0:  # what is above counts as what is just allowed, so that a new level is learned
            self.values.append(math.log(min(value, limit)) if self.logarithmic else min(value, limit))
        self.limits = {step - 1: self.limits.get(step - 1, math.inf), step: self._limit()}
        return verdict


class Divergence(Rule):
    """The smoothed training loss is far above its lowest: an exponential average with its start corrected (as in Adam)."""

    def __init__(self, config: DivergenceGuard) -> None:
        self.config, self.keep = config, 1 - 1 / config.window
        self.sum, self.weight = 0.0, 0.0
        self.lowest, self.at, self.told = math.inf, 0, False

    def update(self, event: Event) -> GuardTrigger | None:
        loss = event.get("train/loss") if event["kind"] == "step" else None
        if loss is None:
            return None
        self.sum, self.weight = self.keep * self.sum + loss, self.keep * self.weight + 1
        smooth = self.sum / self.weight
        if smooth <= self.lowest:
            self.lowest, self.at, self.told = smooth, event["step"], False
        if smooth <= self.lowest + self.config.min_increase or self.told:
            return None
        self.told = True
        cause = f"training diverged: the smoothed loss is {smooth:.4g}, it was {self.lowest:.4g} after step {self.at:,}"
        evidence = {"smoothed": smooth, "lowest": self.lowest, "lowest_step": self.at}
        return GuardTrigger(
            "divergence", self.config.action, cause, event["step"], self.at + 1, evidence, self.config.on_rollback
        )


class Threshold(Rule):
    """A figure is on the wrong side of its bound: told when it gets there, and again only after it was back."""

    kind: str
    key: str

    def __init__(self) -> None:
        self._told = False

    def crossed(self, value: float) -> bool:
        """Whether the figure is on the wrong side."""
        raise NotImplementedError

    def verdict(self, value: float, event: Event) -> GuardTrigger:
        """What to say of it."""
        raise NotImplementedError

    def update(self, event: Event) -> GuardTrigger | None:
        value = event.get(self.key) if event["kind"] == self.kind else None
        if value is None:
            return None
        told, self._told = self._told, self.crossed(value)
        return self.verdict(value, event) if self._told and not told else None


class LowDisk(Threshold):
    """The disk of the run fills up."""

    kind, key = "system", "system/disk_free_bytes"

    def __init__(self, config: DiskGuard) -> None:
        super().__init__()
        self.action, self.free = config.action, config.min_free or 0

    def crossed(self, value: float) -> bool:
        return value < self.free

    def verdict(self, value: float, event: Event) -> GuardTrigger:
        cause = f"{value / 2**30:.2f} GiB are free on the disk of the run, {self.free / 2**30:.2f} are to stay free"
        return GuardTrigger("disk", self.action, cause, event["step"], event["step"], {"free": value}, state_is_valid=True)


class MaxTime(Threshold):
    """The stage has trained long enough."""

    kind, key = "system", "system/seconds"

    def __init__(self, config: TimeGuard) -> None:
        super().__init__()
        self.action, self.after = config.action, math.inf if config.max_time is None else config.max_time

    def crossed(self, value: float) -> bool:
        return value >= self.after

    def verdict(self, value: float, event: Event) -> GuardTrigger:
        cause = f"the stage has trained for {duration(value)}, its time is {duration(self.after)}"
        return GuardTrigger("time", self.action, cause, event["step"], event["step"], {}, stop_scope="stage")


class PassRate(Threshold):
    """Too few regression prompts pass."""

    kind, key = "prompt_tests", "prompt_tests/pass_rate"

    def __init__(self, config: PassRateGuard) -> None:
        super().__init__()
        self.config = config

    def crossed(self, value: float) -> bool:
        return value < self.config.min_pass_rate

    def verdict(self, value: float, event: Event) -> GuardTrigger:
        passed, cases = event["prompt_tests/passed"], event["prompt_tests/cases"]
        cause = f"{passed} of {cases} regression prompts pass, less than {self.config.min_pass_rate:.0%}"
        step, evidence = event["step"], {"pass_rate": value, "broken": event.get("prompt_tests/newly_failing", [])}
        return GuardTrigger("pass_rate", self.config.action, cause, step, step, evidence, stop_scope="stage")


class Repetition(Threshold):
    """Answers repeat themselves."""

    kind, key = "prompt_tests", "prompt_tests/repetition"

    def __init__(self, config: RepetitionGuard) -> None:
        super().__init__()
        self.config = config

    def crossed(self, value: float) -> bool:
        return value > self.config.max_repetition

    def verdict(self, value: float, event: Event) -> GuardTrigger:
        step, cause = event["step"], f"answers repeat themselves: {value:.0%} of their pieces were there before"
        return GuardTrigger("repetition", self.config.action, cause, step, step, {"repetition": value}, stop_scope="stage")


class ValidationRise(Rule):
    """Evaluations in a row, each with a higher validation loss than the one before."""

    def __init__(self, config: ValidationIncreaseGuard) -> None:
        self.config = config
        self.losses: list[tuple[int, float]] = []
        self.told = False

    def update(self, event: Event) -> GuardTrigger | None:
        loss = event.get("eval/loss") if event["kind"] == "eval" else None
        if loss is None:
            return None
        if self.losses and loss <= self.losses[-1][1]:
            self.losses = []
            self.told = False
        self.losses.append((event["step"], loss))
        (since, lowest), step, times = self.losses[0], event["step"], len(self.losses) - 1
        if self.told or times < self.config.patience or loss < lowest * (1 + self.config.min_increase):
            return None
        self.told = True
        cause = f"the validation loss rose {times} times in a row, from {lowest:.4f} (step {since:,}) to {loss:.4f}"
        evidence = {"losses": [value for _, value in self.losses]}
        return GuardTrigger("validation_increase", self.config.action, cause, step, since + 1, evidence, stop_scope="stage")


class Throughput(Rule):
    """The speed of steps fell."""

    def __init__(self, config: ThroughputGuard) -> None:
        self.config = config
        self.speeds: deque[float] = deque(maxlen=RECENT + BEFORE)
        self._cooldown_until = 0

    def update(self, event: Event) -> GuardTrigger | None:
        speed = event.get("system/step_tokens_per_second") if event["kind"] == "system" else None
        if speed is None:
            return None
        self.speeds.append(speed)
        step, speeds = event["step"], list(self.speeds)
        if len(speeds) < 4 * RECENT or step <= self._cooldown_until:
            return None
        now, before = statistics.median(speeds[-RECENT:]), statistics.median(speeds[:-RECENT])
        if now >= self.config.min_speed_ratio * before:
            return None
        self._cooldown_until = step + BEFORE
        cause = f"training became slow: {now:,.0f} tokens/s over the last {RECENT} steps, {before:,.0f} before"
        return GuardTrigger("throughput", self.config.action, cause, step, step - RECENT + 1, {"now": now, "before": before})


class Guards:
    """All rules of a stage, fed with its events."""

    def __init__(self, config: GuardsConfig) -> None:
        self.config = config
        self._begin()

    def _begin(self) -> None:
        config = self.config
        self.grad_spike = Spike("grad_spike", "train/grad_norm", config.grad_spike, logarithmic=True)
        rules: list[tuple[str, Rule]] = [
            (config.non_finite.action, NonFinite(config.non_finite)),
            ("warn", Overflow()),
            (config.grad_spike.action, self.grad_spike),
            (config.loss_spike.action, Spike("loss_spike", "train/loss", config.loss_spike, logarithmic=False)),
            (config.divergence.action, Divergence(config.divergence)),
            (config.validation_increase.action, ValidationRise(config.validation_increase)),
            (config.pass_rate.action, PassRate(config.pass_rate)),
            (config.repetition.action, Repetition(config.repetition)),
            (config.throughput.action, Throughput(config.throughput)),
            (config.disk.action, LowDisk(config.disk)),
            (config.time.action, MaxTime(config.time)),
        ]
        self.rules = [rule for action, rule in rules if action != "ignore"]

    def skip_above_grad_norm(self, step: int) -> float | None:
        """The gradient norm above which the update with which `step` are done is to be left out; None: any is taken."""
        return self.grad_spike.limit(step) if self.config.grad_spike.action == "skip" else None

    def update(self, event: Event) -> list[GuardTrigger]:
        """What the rules find in the next event."""
        return [verdict for rule in self.rules if (verdict := rule.update(event)) is not None]

    def replay(self, events: Iterable[Event]) -> None:
        """Begin again and know what these events tell; what was found then is done with."""
        self._begin()
        for event in events:
            self.update(event)
