"""Guards: the rules that watch a stage through its events, and nothing else. Rules that find nothing change nothing."""

from collections.abc import Callable, Iterable
from typing import Any

from fledge.monitor.policy_rules import EntropyCollapse, LengthHacking, RewardHacking, equal_groups, truncated
from fledge.monitor.preference_rules import ChanceAccuracy, Displacement, LengthBias, NoPreference
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
from fledge.recipe.sections.guards import CommonGuards, GuardsConfig, RewardGuardsConfig
from fledge.recipe.sections.policy_guards import PolicyGuardsConfig

Actions = list[tuple[str, Rule]]
"""Rules with the action that the recipe has for each."""


def of_given_rows(config: GuardsConfig) -> Actions:
    """The rules of stages that lower a loss on given rows."""
    return [
        (config.validation_increase.action, ValidationIncrease(config.validation_increase)),
        (config.displacement.action, Displacement(config.displacement)),
        (config.length_bias.action, LengthBias(config.length_bias)),
        (config.no_preference.action, NoPreference(config.no_preference)),
    ]


def of_reward_models(config: RewardGuardsConfig) -> Actions:
    """The rules of stages that train a reward model."""
    return [
        (config.validation_increase.action, ValidationIncrease(config.validation_increase)),
        (config.length_bias.action, LengthBias(config.length_bias)),
        (config.chance_accuracy.action, ChanceAccuracy(config.chance_accuracy)),
    ]


def of_policies(config: PolicyGuardsConfig) -> Actions:
    """The rules of stages that train on rewards."""
    return [
        (config.reward_hacking.action, RewardHacking(config.reward_hacking)),
        (config.entropy_collapse.action, EntropyCollapse(config.entropy_collapse)),
        (config.length_hacking.action, LengthHacking(config.length_hacking)),
        (config.truncated.action, truncated(config.truncated)),
        (config.equal_groups.action, equal_groups(config.equal_groups)),
    ]


OF_KINDS: dict[type[CommonGuards], Callable[[Any], Actions]] = {
    GuardsConfig: of_given_rows,
    RewardGuardsConfig: of_reward_models,
    PolicyGuardsConfig: of_policies,
}
"""The rules that only some kinds of stage have, by the section of the recipe."""


class Guards:
    """All rules of a stage that are not ignored."""

    def __init__(self, config: CommonGuards) -> None:
        self.config = config
        self._reset()

    def _reset(self) -> None:
        config = self.config
        self.grad_spike = Spike("grad_spike", "train/grad_norm", config.grad_spike, logarithmic=True)
        rules: Actions = [
            (config.non_finite.action, NonFinite(config.non_finite)),
            ("warn", Overflow()),
            (config.grad_spike.action, self.grad_spike),
            (config.loss_spike.action, Spike("loss_spike", "train/loss", config.loss_spike, logarithmic=False)),
            (config.divergence.action, Divergence(config.divergence)),
            *(OF_KINDS[type(config)](config) if type(config) in OF_KINDS else []),
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
