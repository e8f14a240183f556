"""The values of each rule, and what a table of rewards refuses."""

import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fledge.errors import FledgeError
from fledge.evaluate.rewards import RULES, build_rewards
from fledge.recipe.sections.rewards import OWNERS, RewardConfig
from fledge.training.rollout import DrawnAnswer, group_advantages, has_equal_rewards, length_correlation


def drawn(completion: str, answer: str = "", tokens: int = 4) -> DrawnAnswer:
    """An answer of this text and number of tokens."""
    return DrawnAnswer(
        prompt="?",
        completion=completion,
        answer=answer,
        prompt_tokens=[1],
        completion_tokens=[2] * tokens,
        finish_reason="stop",
    )


def value(rule: str, answer: DrawnAnswer, **parameters: Any) -> float:
    """The reward of one answer."""
    return float(build_rewards([RewardConfig(rule=rule, **parameters)], 5.0).score([answer])[0, 0])  # type: ignore[arg-type]


VALUES = [
    ("exact_match", drawn(" 42 ", "42"), {}, 1.0),
    ("exact_match", drawn('{"a": 1, "b": "x"}', '{"b":"x","a":1}'), {}, 1.0),
    ("exact_match", drawn("42.", "42"), {}, 0.0),
    ("valid_json", drawn('{"a": 1}'), {}, 1.0),
    ("valid_json", drawn('It is {"a": 1}'), {}, 0.0),
    ("field_f1", drawn('{"a":"x","b":"z"}', '{"a":"x","b":"y"}'), {}, 0.5),
    ("field_f1", drawn("x", '{"a":"x"}'), {}, 0.0),
    ("field_f1", drawn('{"a":null}', '{"a":null}'), {}, 1.0),
    ("language", drawn("今天的天气很好。"), {"language": "zh"}, 1.0),
    ("language", drawn("The weather is fine today."), {"language": "zh"}, 0.0),
    ("length", drawn("", tokens=8), {"min_tokens": 4, "max_tokens": 8}, 1.0),
    ("length", drawn("", tokens=3), {"min_tokens": 4}, 0.75),
    ("length", drawn("", tokens=10), {"max_tokens": 8}, 0.75),
    ("length", drawn("", tokens=99), {"max_tokens": 8}, 0.0),
    ("repetition", drawn("a b c d e f g"), {}, 1.0),
    ("repetition", drawn("a b c d a b c d a b c d"), {}, 1 - 5 / 9),
    ("regex", drawn("so 42."), {"pattern": r"\d+\.$"}, 1.0),
    ("regex", drawn("so 42!"), {"pattern": r"\d+\.$"}, 0.0),
]


@pytest.mark.parametrize(("rule", "answer", "parameters", "expected"), VALUES)
def test_the_value_of_an_answer(rule: str, answer: DrawnAnswer, parameters: dict[str, Any], expected: float) -> None:
    assert value(rule, answer, **parameters) == pytest.approx(expected)


def test_every_rule_of_the_recipe_has_a_function() -> None:
    rules = set(RewardConfig.model_fields["rule"].annotation.__args__)  # type: ignore[union-attr]
    assert rules == set(RULES) and {rule for rule, _ in OWNERS.values()} <= rules


def test_the_total_is_the_weighted_sum() -> None:
    table = build_rewards([RewardConfig(rule="exact_match"), RewardConfig(rule="length", max_tokens=2, weight=-0.5)], 5.0)
    values = table.score([drawn("a", "a", 2), drawn("a", "b", 3)])
    assert table.names == ("exact_match", "length")
    assert table.total(values).tolist() == [0.5, -0.25]


def test_a_reference_without_fields_is_refused_and_an_unknown_language_too() -> None:
    with pytest.raises(FledgeError, match="the row's own answer is no JSON object: 'plain'"):
        value("field_f1", drawn("x", "plain"))
    with pytest.raises(FledgeError, match="'xx' is not a known language"):
        value("language", drawn("x"), language="xx")


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("nowhere_at_all:f", "cannot import nowhere_at_all"),
        ("math:no_such", "has no function no_such"),
        ("statistics:quantiles", "it needs the argument data, which is not given"),
    ],
)
def test_functions_that_cannot_be_called_are_refused_before_anything_runs(path: str, message: str) -> None:
    with pytest.raises(FledgeError, match=message):
        build_rewards([RewardConfig(rule="function", function=path)], 5.0)


def test_advantages_are_centred_scaled_and_exactly_0_in_equal_groups() -> None:
    rewards = np.asarray([[0.0, 1.0, 1.0, 0.0], [0.1, 0.1, 0.1, 0.1]])
    grouped = group_advantages(rewards, "group")
    assert grouped[0].tolist() == pytest.approx([-0.865875, 0.865875, 0.865875, -0.865875], abs=1e-6)
    assert grouped[1].tolist() == [0.0] * 4
    assert group_advantages(rewards, "none")[0].tolist() == [-0.5, 0.5, 0.5, -0.5]
    assert group_advantages(rewards, "batch")[0, 1] == pytest.approx(0.5 / (rewards.std(ddof=1) + 1e-4))
    assert has_equal_rewards(rewards[1]) and not has_equal_rewards(rewards[0])


def test_the_correlation_of_length_and_reward_is_inside_groups() -> None:
    lengths = np.asarray([[1.0, 2.0], [11.0, 12.0]])
    assert length_correlation(np.asarray([[0.0, 1.0], [0.0, 1.0]]), lengths) == pytest.approx(1.0)
    assert length_correlation(np.asarray([[1.0, 0.0], [1.0, 0.0]]), lengths) == pytest.approx(-1.0)
    assert length_correlation(np.zeros((2, 2)), lengths) is None


FUNCTIONS = """
import sys, time
def slow(completions):
    for one in completions:
        time.sleep(5)
        yield 1.0
def fast(completions):
    return (1.0 for one in completions)
def fails(completions):
    for one in completions:
        yield {}["key"]
def leaves(completions):
    sys.exit()
def own_timeout(completions):
    raise TimeoutError("the judge did not answer")
def all_at_once(completions, *others):
    return [0.5] * len(completions)
def by_place(completions, /):
    return [0.5]
"""


@pytest.fixture
def functions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A module of rewards that Python finds."""
    (tmp_path / "some_rewards.py").write_text(FUNCTIONS)
    (tmp_path / "leaving.py").write_text("import sys\nsys.exit()\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "some_rewards", raising=False)


@pytest.mark.usefixtures("functions")
@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("some_rewards:slow", r"not done with 1 answers after 0\.3 s"),
        ("some_rewards:fails", r"it raised KeyError: 'key' .*some_rewards\.py:11"),
        ("some_rewards:leaves", "it raised SystemExit"),
        ("some_rewards:own_timeout", "it raised TimeoutError: the judge did not answer"),
        ("leaving:f", "cannot import leaving: SystemExit"),
        ("some_rewards:by_place", "it needs the argument completions"),
        ("time:no_such", "time has no function no_such"),
    ],
)
def test_what_a_function_does_wrong_is_told_as_what_it_is(path: str, message: str) -> None:
    with pytest.raises(FledgeError, match=message):
        build_rewards([RewardConfig(rule="function", function=path)], 0.3).score([drawn("x")])


@pytest.mark.usefixtures("functions")
def test_generators_and_further_arguments_are_fine() -> None:
    for name, expected in (("fast", 1.0), ("all_at_once", 0.5)):
        table = build_rewards([RewardConfig(rule="function", function=f"some_rewards:{name}")], 5.0)
        assert table.score([drawn("x"), drawn("y")]).tolist() == [[expected], [expected]]
