"""Guards: the rules that watch a stage through its events, and nothing else. Rules that find nothing change nothing."""

from collections.abc import Iterable

from fledge.monitor.preference_rules import Displacement, LengthBias, NoPreference
from fledge.monitor.rules import (
    Divergence,
    Event,
    GuardTrigger,
    NonFinite,
    Overflow,
    Rule,
    Spike,
    Throughput,
    ValidationIncrease,
)
from fledge.monitor.thresholds import LowDisk, MaxTime, PassRate, Repetition
from fledge.recipe.sections.guards import GuardsConfig


class Guards:
    """All rules of a stage that are not ignored."""

    def __init__(self, config: GuardsConfig) -> None:
        self.config = config
        self._reset()

    def _reset(self) -> None:
        config = self.config
        self.grad_spike = Spike("grad_spike", "train/grad_norm", config.grad_spike, logarithmic=True)
        rules: list[tuple[str, Rule]] = [
            (config.non_finite.action, NonFinite(config.non_finite)),
            ("warn", Overflow()),
            (config.grad_spike.action, self.grad_spike),
            (config.loss_spike.action, Spike("loss_spike", "train/loss", config.loss_spike, logarithmic=False)),
            (config.divergence.action, Divergence(config.divergence)),
            (config.validation_increase.action, ValidationIncrease(config.validation_increase)),
            (config.displacement.action, Displacement(config.displacement)),
            (config.length_bias.action, LengthBias(config.length_bias)),
            (config.no_preference.action, NoPreference(config.no_preference)),
            (config.pass_rate.action, PassRate(config.pass_rate)),
            (config.repetition.action, Repetition(config.repetition)),
            (config.throughput.action, Throughput(config.throughput)),
            (config.disk.action, LowDisk(config.disk)),
            (config.time.action, MaxTime(config.time)),
        ]
        self.rules = [rule for action, rule in rules if action != "ignore"]

    def skip_above_grad_norm(self, step: int) -> float | None:
        """The gradient norm above which update number `step` (from 1) is skipped; None if no update is skipped."""
        return self.grad_spike.limit(step) if self.config.grad_spike.action == "skip" else None

    def update(self, event: Event) -> list[GuardTrigger]:
        """Read the next event; returns the triggers of the rules."""
        return [trigger for rule in self.rules if (trigger := rule.update(event)) is not None]

    def replay(self, events: Iterable[Event]) -> None:
        """Reset the rules and read these events; their triggers are ignored, because they were reported before."""
        self._reset()
        for event in events:
            self.update(event)
