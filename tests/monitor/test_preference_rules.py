"""Guards of preference stages find displacement, length bias and standing still at their step, and nothing else."""

import random
from collections.abc import Callable
from typing import Any

import pytest

from fledge.findings import Finding
from fledge.monitor.guards import Guards
from fledge.monitor.remedies import with_remedy
from fledge.monitor.rules import GuardTrigger
from fledge.recipe.schema import PreferenceStage, RewardStage
from fledge.recipe.sections.guards import CommonGuards, GuardsConfig, RewardGuardsConfig

Events = list[dict[str, Any]]


def healthy(steps: int = 60, seed: int = 0, reference: bool = True) -> Events:
    """A stage whose margins and log-odds grow with noise, and whose chosen answers stay as likely as they were."""
    noise, events = random.Random(seed), [{"kind": "start", "step": 0, "steps": steps}]
    for step in range(1, steps + 1):
        values = {
            "loss": 0.69 - 0.3 * step / steps,
            "grad_norm": 1.0,
            "log_odds": 0.4 + 0.5 * step / steps + noise.gauss(0, 0.05),
            "length_correlation": noise.gauss(0.2, 0.2),
            "rewards/accuracies_shorter": 0.8,
            "rewards/margins": 0.8 * step / steps + noise.gauss(0, 0.02),
        }
        values |= {"lengths/chosen": 20.0 + step % 3, "lengths/rejected": 25.0}
        values["logps/chosen"] = values["lengths/chosen"] * noise.gauss(-1.0, 0.5)
        values["logps/rejected"] = 25.0 * (noise.gauss(-1.5, 0.5) - 0.5 * step / steps)
        if reference:
            values |= {"drift/chosen": noise.gauss(-0.05, 0.03), "drift/rejected": -0.5 * step / steps}
        events.append({"kind": "step", "step": step, **{f"train/{name}": value for name, value in values.items()}})
    return events


def triggers(events: Events, kind: type[CommonGuards] = GuardsConfig, **config: Any) -> list[GuardTrigger]:
    """All triggers of guards that see these events in order."""
    guards = Guards(kind(**config))
    return [trigger for event in events for trigger in guards.update(event)]


def changed(events: Events, **values: Any) -> Events:
    """The events with other values of training; a value may be a function of the step."""
    return [
        {**event, **{f"train/{name}": value(event["step"]) if callable(value) else value for name, value in values.items()}}
        if event["kind"] == "step"
        else event
        for event in events
    ]


@pytest.mark.parametrize("reference", [True, False])
@pytest.mark.parametrize("seed", range(5))
def test_a_healthy_stage_triggers_nothing(seed: int, reference: bool) -> None:
    assert triggers(healthy(seed=seed, reference=reference)) == []


def test_chosen_answers_that_fall_with_the_rejected_ones_are_displaced() -> None:
    falling = {"drift/chosen": lambda step: -0.01 * step, "drift/rejected": lambda step: -0.03 * step}
    (found,) = triggers(changed(healthy(), **falling))
    assert (found.finding.check, found.action) == ("displacement", "warn")
    assert found.step == 25  # the mean of steps 16 … 25 is the first one below -0.2
    assert found.finding.evidence["drift_chosen"] == pytest.approx(-0.205)
    only_rejected_falls = changed(healthy(), **{"drift/chosen": 0.1, "drift/rejected": lambda step: -0.03 * step})
    assert triggers(only_rejected_falls) == []
    assert triggers(changed(healthy(), **falling), displacement="ignore") == []


def test_without_a_reference_answers_are_displaced_against_the_first_steps() -> None:
    noise = random.Random(1)

    def falling(length: float, slope: float) -> Callable[[int], float]:
        return lambda step: length * (-1.0 + noise.gauss(0, 0.2) - slope * step)

    both = {"lengths/chosen": 20.0, "logps/chosen": falling(20, 0.02), "logps/rejected": falling(25, 0.05)}
    (found,) = triggers(changed(healthy(reference=False), **both))
    assert (found.finding.check, found.action) == ("displacement", "warn") and "since the first 10" in found.finding.message
    assert 20 <= found.step <= 35 and found.finding.evidence["drift_chosen"] < -0.2
    assert triggers(changed(healthy(reference=False), **{**both, "logps/chosen": falling(20, 0.0)})) == []
    restless = {**both, "logps/chosen": lambda step: 20 * (-1.0 - 0.02 * step + (2.0 if step % 2 else -2.0))}
    assert triggers(changed(healthy(30, reference=False), **restless)) == [], "0.4 nats are within four standard errors"
    (found,) = triggers(changed(healthy(reference=False), **both), displacement={"window": 1, "max_drop": 0.5})
    assert found.finding.check == "displacement"


def test_rewards_that_follow_the_length_are_told_only_where_shorter_chosen_answers_lose() -> None:
    follows = {"length_correlation": 0.8, "rewards/accuracies_shorter": 0.1}
    (found,) = triggers(changed(healthy(), **follows))
    assert (found.finding.check, found.step) == ("length_bias", 20)
    assert "only 10% are right" in found.finding.message
    assert triggers(changed(healthy(), **{**follows, "rewards/accuracies_shorter": 0.9})) == []
    no_shorter_pair = {"length_correlation": 0.8, "rewards/accuracies_shorter": None}
    assert triggers(changed(healthy(), **no_shorter_pair)) == []


@pytest.mark.parametrize(("margin", "why"), [(0.001, "stands still"), (-0.3, "swapped")])
def test_margins_that_do_not_grow_are_told_in_the_second_half(margin: float, why: str) -> None:
    (found,) = triggers(changed(healthy(), **{"rewards/margins": margin}))
    assert (found.finding.check, found.step) == ("no_preference", 31) and why in found.finding.message


def test_margins_of_a_few_pairs_that_are_low_by_chance_are_not_told() -> None:
    noise = random.Random(3)
    runs = [changed(healthy(), **{"rewards/margins": lambda step: 0.05 + noise.gauss(0, 0.3)}) for _ in range(40)]
    assert sum(bool(triggers(run)) for run in runs) <= 2
    (found,) = triggers(changed(healthy(), **{"rewards/margins": lambda step: -1.0 + noise.gauss(0, 0.3)}))
    assert "swapped" in found.finding.message


def test_log_odds_that_do_not_grow_are_told_without_a_reference() -> None:
    (found,) = triggers(changed(healthy(reference=False), log_odds=-0.2))
    assert (found.finding.check, found.step) == ("no_preference", 31)
    assert triggers(changed(healthy(12, reference=False), log_odds=-0.2)) == []  # too few steps to expect growth


@pytest.mark.parametrize(("accuracy", "why"), [(0.51, "hardly more than by chance"), (0.2, "may be swapped")])
def test_a_reward_model_that_is_right_by_chance_is_told_in_the_second_half(accuracy: float, why: str) -> None:
    reward = changed(healthy(reference=False), **{"rewards/accuracies": accuracy, "pairs": 64})
    (found,) = triggers(reward, RewardGuardsConfig)
    assert (found.finding.check, found.step, found.action) == ("chance_accuracy", 31, "warn") and why in found.finding.message
    assert f"right in {accuracy:.0%} of 1,280 pairs over 20 steps" in found.finding.message
    assert triggers(reward, RewardGuardsConfig, chance_accuracy="ignore") == []
    assert len(triggers(changed(reward, pairs=8), RewardGuardsConfig)) == (accuracy < 0.4)  # 0.51 of 160 is no sign yet
    learning = changed(reward, **{"rewards/accuracies": lambda step: 0.5 + step / 100})
    assert triggers(learning, RewardGuardsConfig) == []
    short = changed(healthy(12, reference=False), **{"rewards/accuracies": 0.5, "pairs": 64})
    assert triggers(short, RewardGuardsConfig) == []


def test_a_reward_model_that_follows_the_length_is_told() -> None:
    follows = {"length_correlation": 0.8, "rewards/accuracies_shorter": 0.1, "rewards/accuracies": 0.7}
    (found,) = triggers(changed(healthy(reference=False), **follows), RewardGuardsConfig)
    assert found.finding.check == "length_bias"
    short = {"length_correlation": -0.8, "rewards/accuracies_longer": 0.3, "rewards/accuracies": 0.7}
    (found,) = triggers(changed(healthy(reference=False), **short), RewardGuardsConfig)
    assert "with a longer chosen answer only 30% are right" in found.finding.message
    assert triggers(changed(healthy(reference=False), **{**short, "length_correlation": 0.2}), RewardGuardsConfig) == []
    stage = RewardStage.model_validate({"kind": "reward", "data": {"train": "x"}})
    for check in ("length_bias", "chance_accuracy"):
        finding = with_remedy(Finding(check=check, severity="warning", message=""), "reward", stage)
        ((path, rate),) = (finding.patch or {}).items()
        assert path == "stages.reward.optimizer.learning_rate" and finding.hint
        RewardStage.model_validate({"kind": "reward", "data": {"train": "x"}, "optimizer": {"learning_rate": rate}})


def test_guards_that_replay_their_events_trigger_once_all_the_same() -> None:
    events = changed(healthy(), **{"rewards/margins": 0.001})
    guards = Guards(GuardsConfig())
    guards.replay(events[:40])
    assert [trigger for event in events[40:] for trigger in guards.update(event)] == []


def test_a_remedy_gives_a_stage_that_is_valid() -> None:
    values: dict[str, Any] = {"kind": "preference", "data": {"train": "x"}}
    stage = PreferenceStage.model_validate(values)
    for name, key in (
        ("displacement", "sft_loss_weight"),
        ("length_bias", "loss_type"),
        ("no_preference", "optimizer.learning_rate"),
    ):
        faults: dict[str, dict[str, Any]] = {
            "displacement": {"drift/chosen": -1.0, "drift/rejected": -2.0},
            "length_bias": {"length_correlation": 0.8, "rewards/accuracies_shorter": 0.1},
            "no_preference": {"rewards/margins": 0.0},
        }
        (found,) = triggers(changed(healthy(), **faults[name]))
        finding = with_remedy(found.finding, "dpo", stage)
        assert finding.check == name and finding.hint and finding.patch and f"stages.dpo.{key}" in finding.patch
        flat = {path.removeprefix("stages.dpo."): value for path, value in finding.patch.items()}
        more = {"optimizer": {"learning_rate": flat.pop("optimizer.learning_rate")}} if key.startswith("optimizer") else {}
        PreferenceStage.model_validate({**values, **flat, **more})
