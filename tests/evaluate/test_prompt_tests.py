"""Rules for answers, and the file of prompts."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fledge.errors import FledgeError
from fledge.evaluate.prompt_tests import CaseResult, failing_names, load_cases, summary, write_failing
from fledge.evaluate.rules import Rules, repetition, resemblance

GOOD: list[tuple[dict[str, Any], str]] = [
    ({"contains": ["Paris", "France"]}, "Paris is the capital of France."),
    ({"contains_any": ["五", "5"]}, "一共五个。"),
    ({"lacks": ["sorry"]}, "Here it is."),
    ({"regex": r"^\d+$"}, " 85 \n"),
    ({"exact": ["85", "八十五"]}, "八十五\n"),
    ({"json_schema": {"type": "object", "required": ["a"]}}, '{"a": 1}'),
    ({"not_refusal": True}, "苹果、香蕉、橘子、梨、葡萄。"),
    ({"max_repetition": 0.1}, "The quick brown fox jumps over the lazy dog."),
    ({"language": "zh"}, "今天天气很好，我们去公园吧。"),
    ({"length": {"min": 3, "max": 5}}, "四个字吧"),
    ({"reference": ["The cat sat on the mat."], "at_least": 0.7}, "the cat sat on a mat"),
    ({"ends": True}, "Done."),
]
BAD: list[tuple[dict[str, Any], str, str]] = [
    ({"contains": ["Paris"]}, "Lyon", "lacks 'Paris'"),
    ({"contains_any": ["五", "5"]}, "六", "contains none"),
    ({"lacks": ["sorry"]}, "I am sorry", "contains 'sorry'"),
    ({"regex": r"^\d+$"}, "85.", "does not match"),
    ({"exact": ["85"]}, "It is 85", "is not '85'"),
    ({"json_schema": {"type": "object", "required": ["a"]}}, '{"b": 1}', "does not fit its schema"),
    ({"json_schema": {}}, "{a: 1}", "is no JSON"),
    ({"not_refusal": True}, "对不起，我无法回答这个问题。", "refuses"),
    ({"not_refusal": True}, "I'm sorry, but I can't help with that.", "refuses"),
    ({"max_repetition": 0.3}, "好的好的好的好的好的好的好的好的", "repeats itself"),
    ({"language": "zh"}, "This is English and nothing else.", "is en, not zh"),
    ({"length": {"max": 3}}, "四个字吧", "has 4 characters"),
    ({"reference": ["The cat sat on the mat."]}, "A completely different sentence, about dogs.", "resembles the reference"),
]


@pytest.mark.parametrize(("rules", "answer"), GOOD)
def test_an_answer_that_keeps_its_rule(rules: dict[str, Any], answer: str) -> None:
    assert Rules.model_validate(rules).broken(answer, ended=True) == []


@pytest.mark.parametrize(("rules", "answer", "said"), BAD)
def test_an_answer_that_breaks_its_rule(rules: dict[str, Any], answer: str, said: str) -> None:
    found = Rules.model_validate(rules).broken(answer, ended=True)
    assert len(found) == 1 and said in found[0]


def test_all_rules_are_looked_at() -> None:
    rules = Rules.model_validate({"contains": ["a"], "lacks": ["b"], "ends": True, "length": {"min": 5}})
    assert rules.broken("b", ended=False) == ["lacks 'a'", "contains 'b'", "does not end by itself", "has 1 characters"]


@pytest.mark.parametrize("wrong", [{}, {"at_least": 0.5}, {"regex": "("}, {"language": "klingon"}, {"contain": ["a"]}])
def test_rules_that_mean_nothing_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Rules.model_validate(wrong)


@given(st.text(max_size=200))
def test_measures_stay_in_their_range(text: str) -> None:
    assert 0 <= repetition(text) < 1
    assert resemblance(text, text) == 1.0
    assert 0 <= resemblance(text, "the quick brown fox 快") <= 1


def test_repetition_by_hand() -> None:
    assert repetition("a b c d a b c d") == pytest.approx(1 / 5)  # 5 four-grams, "a b c d" twice
    assert repetition("我我我我我我") == pytest.approx(2 / 3)
    assert repetition("short") == 0.0


def _write(folder: Path, text: str) -> Path:
    file = folder / "prompts.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def test_a_file_of_cases(tmp_path: Path) -> None:
    cases = load_cases(_write(tmp_path, """
- prompt: 你是谁？
  expect: {contains: [小雏]}
- name: follow-up
  messages: [{role: user, content: hi}, {role: assistant, content: hello}, {role: user, content: again}]
  expect: {exact: [hello]}
"""))  # fmt: skip
    assert [case.title for case in cases] == ["你是谁？", "follow-up"]
    assert [turn.role for turn in cases[1].conversation()] == ["user", "assistant", "user"]


@pytest.mark.parametrize(
    ("text", "line", "said"),
    [
        ("- prompt: a\n  expect: {contains: [x]}\n- prompt: b\n  expect: {contain: [x]}\n", 3, "expect.contain"),
        ("- prompt: a\n  expect: {contains: [x]}\n-\n  expect: {contains: [x]}\n", 4, "say prompt, or messages"),
        ("- prompt: [a\n", 2, "not readable as YAML"),
        ("a: b\n", None, "is a list of cases"),
        ("- {prompt: a, expect: {ends: true}}\n- {prompt: a, expect: {ends: true}}\n", None, "two cases are called 'a'"),
    ],
)
def test_a_mistake_is_named_with_its_line(tmp_path: Path, text: str, line: int | None, said: str) -> None:
    with pytest.raises(FledgeError, match=said) as caught:
        load_cases(_write(tmp_path, text))
    assert caught.value.where == (f"{tmp_path / 'prompts.yaml'}:{line}" if line else str(tmp_path / "prompts.yaml"))


def _checked(*failing: str) -> list[CaseResult]:
    return [CaseResult(name, name, "x", True, 0.2, ("lacks",) if name in failing else ()) for name in ("a", "b", "c", "d")]


def test_cases_that_newly_fail_or_pass_are_named_against_the_failures_of_the_last_time() -> None:
    assert summary(_checked("a"), None) == {"pass_rate": 0.75, "repetition": 0.2, "passed": 3, "cases": 4}
    failures = failing_names(_checked("a", "b"))
    assert failures == ["a", "b"] and failing_names(_checked()) == []
    changed = summary(_checked("b", "c"), failures)
    assert (changed["newly_failing"], changed["newly_passing"]) == (["c"], ["a"])
    unchanged = summary(_checked("a", "b"), failures)
    assert (unchanged["newly_failing"], unchanged["newly_passing"]) == ([], [])


def test_failing_cases_are_written_one_a_line_with_their_answers(tmp_path: Path) -> None:
    write_failing(_checked("a", "b"), tmp_path / "step-00000010.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "step-00000010.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [(line["name"], line["answer"], line["broken"]) for line in lines] == [("a", "x", ["lacks"]), ("b", "x", ["lacks"])]
