"""Two results of one set, compared item by item."""

import math

import numpy as np
import pytest

from fledge.evaluate.comparison import compare_sets, describe
from fledge.evaluate.records import ItemResult, MetricValue, SetResult


def result(values: dict[str, dict[str, float]], fingerprint: str = "a", higher: bool = True) -> SetResult:
    """A result whose items have these values by metric."""
    names = dict.fromkeys(name for one in values.values() for name in one)
    means = {name: float(np.mean([one[name] for one in values.values() if name in one])) for name in names}
    return SetResult(
        name="set",
        kind="prompts",
        fingerprint=fingerprint,
        metrics={name: MetricValue(value=mean, count=len(values), higher_is_better=higher) for name, mean in means.items()},
        items=tuple(ItemResult(id=one, prompt=one, values=dict(metrics)) for one, metrics in values.items()),
    )


def of_one_metric(name: str, numbers: list[float], **rest) -> SetResult:
    return result({str(index): {name: number} for index, number in enumerate(numbers)}, **rest)


def test_a_better_model_is_found_with_the_direction_of_its_metric():
    worse, better = [0.0] * 30 + [1.0] * 10, [1.0] * 40
    found = compare_sets(of_one_metric("passed", worse), of_one_metric("passed", better)).metrics["passed"]
    assert (found.found, found.better, found.test) == ("higher", True, "mcnemar")
    assert found.first == 0.25
    assert found.difference == 0.75
    refusals = compare_sets(of_one_metric("refusal", worse, higher=False), of_one_metric("refusal", better, higher=False))
    assert refusals.metrics["refusal"].better is False


def test_equal_models_on_many_items_are_no_different_and_on_few_items_undecided():
    rng = np.random.default_rng(0)
    many = (rng.random(3000) < 0.5).astype(float)
    flipped = np.where(rng.random(3000) < 0.02, 1 - many, many)
    found = compare_sets(of_one_metric("accuracy", many.tolist()), of_one_metric("accuracy", flipped.tolist()))
    assert found.metrics["accuracy"].found == "no difference"
    few = compare_sets(of_one_metric("accuracy", [1.0, 0.0] * 6), of_one_metric("accuracy", [1.0, 0.0] * 5 + [0.0, 0.0]))
    undecided = few.metrics["accuracy"]
    assert undecided.found == "too few to decide"
    assert undecided.detectable is not None
    assert undecided.detectable > 0.3
    assert undecided.items_needed is not None
    assert undecided.items_needed > 100
    assert "too few to decide: 12 items show differences from" in describe(undecided)


def test_items_of_one_result_alone_are_counted_and_left_out():
    first = result({"a": {"loss": 1.0}, "b": {"loss": 2.0}, "only": {"loss": 50.0}}, higher=False)
    second = result({"a": {"loss": 1.5}, "b": {"loss": 2.0}, "x": {"loss": 9.0}, "y": {"loss": 9.0}}, "b", higher=False)
    found = compare_sets(first, second)
    assert (found.common, found.only_first, found.only_second, found.same_set) == (2, 1, 2, False)
    assert found.metrics["loss"].first == 1.5
    assert found.metrics["loss"].difference == 0.25


def test_values_that_are_no_numbers_are_counted_and_left_out():
    first = result({"a": {"f1": 0.5}, "b": {"f1": math.nan}})
    found = compare_sets(first, result({"a": {"f1": 0.5}, "b": {"f1": 0.25}}))
    assert found.unusable == {"f1": 1}
    assert found.metrics["f1"].count == 1


def test_values_that_are_no_metric_are_not_compared():
    first, second = (result({"a": {"loss": one, "tokens": 5.0}, "b": {"loss": one, "tokens": 9.0}}) for one in (1.0, 2.0))
    for one in (first, second):
        del one.metrics["tokens"]
    assert list(compare_sets(first, second).metrics) == ["loss"]


def test_results_without_a_common_item_are_compared_in_nothing():
    found = compare_sets(result({"a": {"f1": 0.5}}), result({"b": {"f1": 0.5}}))
    assert found.metrics == {}
    assert found.common == 0


@pytest.mark.parametrize("scale", [1.0, 1000.0])
def test_numbers_are_compared_whatever_their_scale(scale):
    rng = np.random.default_rng(4)
    losses = rng.normal(3.0, 0.5, 200)
    lower = losses - 0.1 + rng.normal(0, 0.1, 200)
    first, second = (of_one_metric("loss", (values * scale).tolist(), higher=False) for values in (losses, lower))
    found = compare_sets(first, second).metrics["loss"]
    assert (found.found, found.better, found.test) == ("lower", True, "sign_flip")
    assert found.difference == pytest.approx(-0.1 * scale, rel=0.2)
