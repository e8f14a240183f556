"""Prompt tests: the rules for answers, the file of cases, and the comparison with the previous time."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fledge.errors import FledgeError
from fledge.evaluate.metrics.overlap import resemblance
from fledge.evaluate.metrics.repetition import repetition
from fledge.evaluate.prompt_tests import (
    Case,
    CaseResult,
    PromptTestReport,
    load_cases,
    run_cases,
    write_failing,
)
from fledge.evaluate.rules import Rules
from fledge.generation import Engine, PromptTooLongError, SamplingParams
from fledge.model.decoder import Decoder
from fledge.tokenizer import Message, Tokenizer, train_tokenizer
from tests.support.decoders import make_decoder

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
    ({"json_schema": {}}, "{a: 1}", "is not JSON"),
    ({"not_refusal": True}, "对不起，我无法回答这个问题。", "refuses"),
    ({"not_refusal": True}, "I'm sorry, but I can't help with that.", "refuses"),
    ({"max_repetition": 0.3}, "好的好的好的好的好的好的好的好的", "repeats itself"),
    ({"language": "zh"}, "This is English and nothing else.", "is en, not zh"),
    ({"length": {"max": 3}}, "四个字吧", "has 4 characters"),
    ({"reference": ["The cat sat on the mat."]}, "A completely different sentence, about dogs.", "resembles the reference"),
]


@pytest.mark.parametrize(("rules", "answer"), GOOD)
def test_an_answer_that_follows_its_rule_has_no_violation(rules: dict[str, Any], answer: str) -> None:
    assert Rules.model_validate(rules).violations(answer, ended=True) == []


@pytest.mark.parametrize(("rules", "answer", "message"), BAD)
def test_a_violation_names_what_was_found_in_the_answer(rules: dict[str, Any], answer: str, message: str) -> None:
    violations = Rules.model_validate(rules).violations(answer, ended=True)
    assert len(violations) == 1 and message in violations[0]


def test_all_violations_are_listed() -> None:
    rules = Rules.model_validate({"contains": ["a"], "lacks": ["b"], "ends": True, "length": {"min": 5}})
    assert rules.violations("b", ended=False) == ["lacks 'a'", "contains 'b'", "does not end by itself", "has 1 characters"]


@pytest.mark.parametrize("wrong", [{}, {"at_least": 0.5}, {"regex": "("}, {"language": "klingon"}, {"contain": ["a"]}])
def test_rules_without_meaning_are_errors(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Rules.model_validate(wrong)


@given(st.text(max_size=200))
def test_measures_stay_in_their_range(text: str) -> None:
    assert 0 <= repetition(text) < 1
    assert resemblance(text, text) == 1.0
    assert 0 <= resemblance(text, "the quick brown fox 快") <= 1


def test_repetition_equals_values_counted_by_hand() -> None:
    assert repetition("a b c d a b c d") == pytest.approx(1 / 5)  # 5 four-grams, "a b c d" twice
    assert repetition("我我我我我我") == pytest.approx(2 / 3)
    assert repetition("short") == 0.0


def _write(folder: Path, text: str) -> Path:
    file = folder / "prompts.yaml"
    file.write_text(text, encoding="utf-8")
    return file


def test_a_file_of_cases_is_read_in_its_order(tmp_path: Path) -> None:
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
    ("text", "line", "message"),
    [
        ("- prompt: a\n  expect: {contains: [x]}\n- prompt: b\n  expect: {contain: [x]}\n", 3, "expect.contain"),
        ("- prompt: a\n  expect: {contains: [x]}\n-\n  expect: {contains: [x]}\n", 4, "needs either prompt or messages"),
        ("- prompt: [a\n", 2, "not readable as YAML"),
        ("a: b\n", None, "is a list of cases"),
        ("- {prompt: a, expect: {ends: true}}\n- {prompt: a, expect: {ends: true}}\n", None, "two cases are called 'a'"),
    ],
)
def test_a_mistake_in_the_file_is_named_with_its_line(tmp_path: Path, text: str, line: int | None, message: str) -> None:
    with pytest.raises(FledgeError, match=message) as caught:
        load_cases(_write(tmp_path, text))
    assert caught.value.where == (f"{tmp_path / 'prompts.yaml'}:{line}" if line else str(tmp_path / "prompts.yaml"))


def _results(*failing: str) -> tuple[CaseResult, ...]:
    """The results of the cases a to d."""
    return tuple(
        CaseResult(
            name=name,
            prompt=name,
            answer="x",
            finish_reason="stop",
            repetition=0.2,
            violations=("lacks",) if name in failing else (),
        )
        for name in ("a", "b", "c", "d")
    )


def test_a_report_names_the_cases_that_changed_since_the_previous_time() -> None:
    first = PromptTestReport(_results("b", "a"))
    assert first.metrics() == {"pass_rate": 0.5, "repetition": 0.2, "passed": 2, "cases": 4}
    assert first.failing == ["a", "b"] and first.newly_failing is None and first.newly_passing is None
    second = PromptTestReport(_results("b", "c"), frozenset(first.failing))
    assert second.metrics() == {**first.metrics(), "newly_failing": ["c"], "newly_passing": ["a"]}
    third = PromptTestReport(_results(), frozenset(second.failing))
    assert third.metrics() == {
        "pass_rate": 1.0, "repetition": 0.2, "passed": 4, "cases": 4, "newly_failing": [], "newly_passing": ["b", "c"],
    }  # fmt: skip


def test_failing_cases_are_written_for_people(tmp_path: Path) -> None:
    write_failing(_results("b", "a"), tmp_path / "step-00000010.jsonl")
    lines = [json.loads(line) for line in (tmp_path / "step-00000010.jsonl").read_text().splitlines()]
    assert [line["name"] for line in lines] == ["a", "b"]
    assert lines[0]["answer"] == "x" and lines[0]["violations"] == ["lacks"] and lines[0]["finish_reason"] == "stop"
    write_failing(_results(), tmp_path / "step-00000030.jsonl")
    assert (tmp_path / "step-00000030.jsonl").read_text() == ""


def _model_and_tokenizer() -> tuple[Decoder, Tokenizer]:
    tokenizer = train_tokenizer(["A cat is an animal. What is a dog? Dogs are animals."] * 20, 300)
    return make_decoder(vocab=tokenizer.vocab_size, max_position_embeddings=40), tokenizer


def test_cases_are_answered_by_the_model_and_checked_by_their_rules() -> None:
    model, tokenizer = _model_and_tokenizer()
    engine, params = Engine(model, tokenizer.stop_ids), SamplingParams(max_new_tokens=6)
    prompt = tokenizer.encode_prompt([Message("user", "A cat?")])
    answer = tokenizer.decode(engine.generate([prompt], params)[0].tokens, skip_special=True)
    cases = [
        Case.model_validate({"name": "right", "prompt": "A cat?", "expect": {"exact": [answer]}}),
        Case.model_validate({"name": "wrong", "prompt": "A cat?", "expect": {"exact": ["something else"], "ends": True}}),
    ]
    report = run_cases(model, tokenizer, cases, params, previously_failing=["right"])
    assert [(result.name, result.answer, result.finish_reason) for result in report.results] == [
        ("right", answer, "length"), ("wrong", answer, "length"),
    ]  # fmt: skip
    assert report.results[0].passed
    assert report.results[1].violations == ("is not 'something else'", "does not end by itself")
    assert (report.failing, report.newly_failing, report.newly_passing) == (["wrong"], ["wrong"], ["right"])


def test_a_case_without_room_for_an_answer_is_named() -> None:
    model, tokenizer = _model_and_tokenizer()
    cases = [Case.model_validate({"name": "long", "prompt": "dog " * 50, "expect": {"ends": True}})]
    with pytest.raises(PromptTooLongError, match=r"prompt test 'long': it has .* tokens"):
        run_cases(model, tokenizer, cases, SamplingParams())
