"""Each guard finds its fault at its step, and nothing in a healthy run."""

import json
import math
import random
from typing import Any

import pytest

from fledge.monitor.guards import Guards
from fledge.monitor.rules import GuardTrigger
from fledge.recipe.sections.guards import GuardsConfig

Events = list[dict[str, Any]]

KEYS = {
    "loss": "train/loss", "grad_norm": "train/grad_norm", "loss_scale": "train/loss_scale",
    "step_tokens_per_second": "system/step_tokens_per_second",
}  # fmt: skip


def healthy(steps: int, seed: int = 0) -> Events:
    """A falling loss with noise, and gradient norms with a long tail."""
    noise, events = random.Random(seed), []
    for step in range(1, steps + 1):
        loss = 3 + 4 * math.exp(-step / 60) + noise.gauss(0, 0.08)
        events.append(
            {"kind": "step", "step": step, "train/loss": loss, "train/grad_norm": 0.4 * math.exp(noise.gauss(0, 0.25))}
        )
        speed = 1000 * math.exp(noise.gauss(0, 0.1))
        events.append({"kind": "system", "step": step, "system/seconds": step * 2.0, "system/step_tokens_per_second": speed})
        if step % 50 == 0:
            events.append({"kind": "eval", "step": step, "eval/loss": 3 + 4 * math.exp(-step / 60) + noise.gauss(0, 0.005)})
    return events


def triggers(events: Events, **config: Any) -> list[GuardTrigger]:
    """All triggers of guards that see these events in order."""
    guards = Guards(GuardsConfig(**config))
    return [trigger for event in events for trigger in guards.update(event)]


def changed(events: Events, steps: range, **values: Any) -> Events:
    """The events with other values in these steps; a value may be a function of the old one."""
    changed_events = []
    for event in events:
        event = dict(event)
        for key, value in values.items():
            name = KEYS.get(key, key)
            if name in event and event["step"] in steps:
                event[name] = value(event[name]) if callable(value) else value
        changed_events.append(event)
    return changed_events


@pytest.mark.parametrize("seed", range(3))
def test_a_healthy_run_triggers_no_guard(seed: int) -> None:
    assert triggers(healthy(2000, seed)) == []


def test_updates_with_gradients_that_are_not_finite_are_skipped_and_then_rolled_back() -> None:
    triggered = triggers(changed(healthy(100), range(40, 43), grad_norm=None))
    assert [(one.action, one.step, one.first_bad_step) for one in triggered] == [
        ("skip", 40, 40),
        ("skip", 41, 41),
        ("rollback", 42, 40),
    ]
    assert triggered[-1].rollback_policy == "skip_rows"


def test_overflow_of_fp16_is_not_divergence_until_the_scale_is_tiny() -> None:
    scaled = [{**event, "train/loss_scale": 1024.0} if event["kind"] == "step" else event for event in healthy(60)]
    assert [(one.finding.check, one.step) for one in triggers(changed(scaled, range(20, 40), grad_norm=None))] == [
        ("overflow", 29)
    ]
    tiny = changed(scaled, range(20, 23), grad_norm=None, loss_scale=2.0**-11)
    assert [one.action for one in triggers(tiny)] == ["skip", "skip", "rollback"]


@pytest.mark.parametrize(("key", "check", "times"), [("grad_norm", "grad_spike", 12.0), ("loss", "loss_spike", 2.0)])
def test_a_spike_is_found_at_its_step_and_reported_once(key: str, check: str, times: float) -> None:
    triggered = triggers(changed(healthy(300), range(200, 206), **{key: lambda value: value * times}))
    assert [(one.finding.check, one.action, one.step) for one in triggered] == [(check, "warn", 200)]
    assert triggered[0].finding.evidence["value"] > triggered[0].finding.evidence["limit"]


def test_the_first_steps_never_trigger_a_spike() -> None:
    assert triggers(changed(healthy(60), range(20, 22), grad_norm=50.0)) == []


def test_the_gradient_limit_of_a_step_does_not_need_the_figures_of_the_previous_step() -> None:
    """On a GPU the figures of step n − 1 are not read yet when step n starts."""
    config, events = GuardsConfig(grad_spike={"action": "skip"}), healthy(120)  # type: ignore[arg-type]
    prompt, late = Guards(config), Guards(config)
    steps = [event for event in events if event["kind"] == "step"]
    for number, event in enumerate(steps):
        limits = (prompt.skip_above_grad_norm(number + 1), late.skip_above_grad_norm(number + 1))
        assert limits[0] == limits[1]
        if number:
            late.update(steps[number - 1])
        prompt.update(event)
    assert math.isfinite(limits[0] or math.inf)
    assert Guards(GuardsConfig()).skip_above_grad_norm(100) is None


def test_divergence_rolls_back_to_before_the_loss_rose() -> None:
    triggered = triggers(changed(healthy(400), range(250, 401), loss=lambda value: value + 2.5), loss_spike="ignore")
    assert [(one.finding.check, one.action, one.rollback_policy) for one in triggered] == [
        ("divergence", "rollback", "lower_lr")
    ]
    assert 200 < triggered[0].first_bad_step <= 251 < triggered[0].step < 300


def test_a_suspicion_of_divergence_that_is_not_confirmed_sets_the_level_to_compare_with() -> None:
    """Losses of different rows: 0 for a known one, 4 for an unknown one. The rows of the reference show no increase."""
    guards, found = Guards(GuardsConfig()), []
    noise = random.Random(3)
    for step in range(1, 301):
        for trigger in guards.update(
            {"kind": "step", "step": step, "train/grad_norm": 1.0, "train/loss": noise.choice([0.0, 4.0])}
        ):
            if trigger.finding.check == "divergence":
                found.append(trigger)
                guards.update({"kind": "guard_check", "step": step, "confirmed": False})
    assert 1 <= len(found) <= 5, "each rejection raises the level, so the suspicions end"
    assert all(trigger.reference and trigger.reference[-1][0] < trigger.step for trigger in found)
    events = [{"kind": "step", "step": step, "train/grad_norm": 1.0, "train/loss": 12.0} for step in range(301, 350)]
    later = [trigger for event in events for trigger in guards.update(event) if trigger.finding.check == "divergence"]
    assert len(later) == 1 and later[0].first_bad_step <= 301, "a rise after rejections is still found"


def test_divergence_at_the_second_update_is_found_there() -> None:
    events = changed(healthy(40), range(2, 41), loss=60.0)
    found = triggers(events, loss_spike="ignore")
    assert [(one.finding.check, one.step, one.first_bad_step) for one in found] == [("divergence", 2, 2)]
    assert [step for step, _ in found[0].reference] == [1]
    assert "rows" not in found[0].finding.hint


def prompt_tested(*rates: float, every: int = 10) -> Events:
    """The events of a stage of 30 steps with prompt tests."""
    results = [
        {"kind": "prompt_tests", "step": every * (n + 1), "prompt_tests/pass_rate": rate, "prompt_tests/passed": 1,
         "prompt_tests/cases": 9, "prompt_tests/repetition": 1 - rate}
        for n, rate in enumerate(rates)
    ]  # fmt: skip
    return [{"kind": "start", "step": 0, "steps": 30}, *results]


@pytest.mark.parametrize(
    ("rates", "steps"),
    [((0.1, 0.3, 0.9), []), ((0.1, 0.9, 0.2), [30]), ((0.9, 0.2, 0.2), [20]), ((0.1, 0.2, 0.3), [30])],
)
def test_prompt_tests_that_an_untrained_model_fails_are_no_fault_before_the_end(
    rates: tuple[float, ...], steps: list[int]
) -> None:
    for check, config in (("pass_rate", {"min_pass_rate": 0.5}), ("repetition", {"max_repetition": 0.5})):
        found = [one for one in triggers(prompt_tested(*rates), **{check: config}) if one.finding.check == check]
        assert [one.step for one in found] == steps


def test_a_validation_loss_that_rises_three_times_in_a_row_is_found() -> None:
    losses = [4.0, 3.0, 3.1, 3.05, 3.1, 3.2, 3.3, 3.4]
    events = [{"kind": "eval", "step": 10 * (n + 1), "eval/loss": loss} for n, loss in enumerate(losses)]
    triggered = triggers(events)
    assert [(one.finding.check, one.step, one.first_bad_step, one.stop_scope) for one in triggered] == [
        ("validation_increase", 70, 41, "stage")
    ]


def test_training_that_becomes_slow_is_found_once() -> None:
    slow = changed(healthy(300), range(150, 301), step_tokens_per_second=lambda value: value / 4)
    triggered = triggers(slow)
    assert triggered[0].finding.check == "throughput" and 150 < triggered[0].step <= 171
    assert len(triggered) == 1


def test_little_disk_space_and_an_exceeded_time_limit_stop_the_run() -> None:
    events = [
        {"kind": "system", "step": n, "system/seconds": 60.0 * n, "system/disk_free_bytes": 10_000 - n} for n in range(1, 9)
    ]
    triggered = triggers(events, disk={"min_free": 9_996}, time={"max_time": "5 min"})
    assert [(one.finding.check, one.action, one.step, one.stop_scope) for one in triggered] == [
        ("disk", "stop", 5, "run"), ("time", "stop", 5, "stage"),
    ]  # fmt: skip


def test_an_ignored_guard_finds_nothing() -> None:
    events = changed(healthy(300), range(200, 206), grad_norm=lambda value: value * 12, loss=lambda value: value * 1.6)
    assert triggers(events, grad_spike="ignore", loss_spike="ignore") == []


@pytest.mark.parametrize("at", [1, 90, 199, 200, 203, 251])
def test_guards_that_replay_their_events_have_equal_findings_afterwards(at: int) -> None:
    """The state of a guard is a function of the events, so a resumed run has equal findings."""
    events = changed(healthy(300), range(200, 300), loss=lambda value: value + 2.5, grad_norm=lambda value: value * 20)
    uninterrupted, resumed = Guards(GuardsConfig()), Guards(GuardsConfig())
    before = [event for event in events if event["step"] <= at]
    for event in before:
        uninterrupted.update(event)
    resumed.replay(json.loads(json.dumps(before)))
    rest = [event for event in events if event["step"] > at]
    assert [uninterrupted.update(event) for event in rest] == [resumed.update(event) for event in rest]
