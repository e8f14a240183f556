"""Each guard finds its fault at the step, and nothing in a healthy run."""

import json
import math
import random
from typing import Any

import pytest

from fledge.monitor.guards import Guards, GuardTrigger
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


def verdicts(events: Events, **config: Any) -> list[GuardTrigger]:
    guards = Guards(GuardsConfig(**config))
    return [verdict for event in events for verdict in guards.update(event)]


def changed(events: Events, steps: range, **values: Any) -> Events:
    """The same with other values, or functions of the old ones, in these steps."""
    made = []
    for event in events:
        event = dict(event)
        for key, value in values.items():
            name = KEYS.get(key, key)
            if name in event and event["step"] in steps:
                event[name] = value(event[name]) if callable(value) else value
        made.append(event)
    return made


@pytest.mark.parametrize("seed", range(3))
def test_a_healthy_run_gives_no_alarm(seed: int) -> None:
    assert verdicts(healthy(2000, seed)) == []


def test_gradients_that_are_not_finite_are_left_out_and_then_roll_back() -> None:
    found = verdicts(changed(healthy(100), range(40, 43), grad_norm=None))
    assert [(one.action, one.step, one.first_bad_step) for one in found] == [
        ("skip", 40, 40),
        ("skip", 41, 41),
        ("rollback", 42, 40),
    ]
    assert found[-1].rollback_policy == "skip_rows"


def test_overflow_of_fp16_is_not_divergence_until_the_scale_is_tiny() -> None:
    scaled = [{**event, "train/loss_scale": 1024.0} if event["kind"] == "step" else event for event in healthy(60)]
    assert [(one.rule, one.step) for one in verdicts(changed(scaled, range(20, 40), grad_norm=None))] == [("overflow", 29)]
    tiny = changed(scaled, range(20, 23), grad_norm=None, loss_scale=2.0**-11)
    assert [one.action for one in verdicts(tiny)] == ["skip", "skip", "rollback"]


@pytest.mark.parametrize(("key", "rule", "times"), [("grad_norm", "grad_spike", 12.0), ("loss", "loss_spike", 2.0)])
def test_a_spike_is_found_at_its_step_and_told_once(key: str, rule: str, times: float) -> None:
    found = verdicts(changed(healthy(300), range(200, 206), **{key: lambda value: value * times}))
    assert [(one.rule, one.action, one.step) for one in found] == [(rule, "warn", 200)]
    assert found[0].evidence["value"] > found[0].evidence["limit"]


def test_no_spike_is_looked_for_among_the_first_steps() -> None:
    assert verdicts(changed(healthy(60), range(20, 22), grad_norm=50.0)) == []


def test_an_update_knows_its_limit_while_the_one_before_is_on_its_way() -> None:
    """On a GPU the figures of step n − 1 are not read yet when step n is made."""
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


def test_divergence_goes_back_to_before_the_rise() -> None:
    found = verdicts(changed(healthy(400), range(250, 401), loss=lambda value: value + 2.5), loss_spike="ignore")
    assert [(one.rule, one.action, one.rollback_policy) for one in found] == [("divergence", "rollback", "lower_lr")]
    assert 200 < found[0].first_bad_step <= 251 < found[0].step < 300


def test_validation_that_rises_three_times_in_a_row() -> None:
    losses = [4.0, 3.0, 3.1, 3.05, 3.1, 3.2, 3.3, 3.4]
    events = [{"kind": "eval", "step": 10 * (n + 1), "eval/loss": loss} for n, loss in enumerate(losses)]
    found = verdicts(events)
    assert [(one.rule, one.step, one.first_bad_step, one.stop_scope) for one in found] == [
        ("validation_increase", 70, 41, "stage")
    ]


def test_training_that_becomes_slow() -> None:
    slow = changed(healthy(300), range(150, 301), step_tokens_per_second=lambda value: value / 4)
    found = verdicts(slow)
    assert found[0].rule == "throughput" and 150 < found[0].step <= 171
    assert len(found) == 1


def test_disk_and_time() -> None:
    events = [
        {"kind": "system", "step": n, "system/seconds": 60.0 * n, "system/disk_free_bytes": 10_000 - n} for n in range(1, 9)
    ]
    found = verdicts(events, disk={"min_free": 9_996}, time={"max_time": "5 min"})
    assert [(one.rule, one.action, one.step, one.stop_scope) for one in found] == [
        ("disk", "stop", 5, "run"), ("time", "stop", 5, "stage"),
    ]  # fmt: skip


def test_what_is_ignored_is_not_looked_at() -> None:
    events = changed(healthy(300), range(200, 206), grad_norm=lambda value: value * 12, loss=lambda value: value * 1.6)
    assert verdicts(events, grad_spike="ignore", loss_spike="ignore") == []


@pytest.mark.parametrize("at", [1, 90, 199, 200, 203, 251])
def test_guards_that_read_their_events_again_find_the_same(at: int) -> None:
    """What a rule knows is a function of the events: so is what a resumed run finds."""
    events = changed(healthy(300), range(200, 300), loss=lambda value: value + 2.5, grad_norm=lambda value: value * 20)
    whole, resumed = Guards(GuardsConfig()), Guards(GuardsConfig())
    before = [event for event in events if event["step"] <= at]
    for event in before:
        whole.update(event)
    resumed.replay(json.loads(json.dumps(before)))
    rest = [event for event in events if event["step"] > at]
    assert [whole.update(event) for event in rest] == [resumed.update(event) for event in rest]
