"""Evaluation sets: each kind against what the model itself says, damaged rows, intervals, groups, fingerprints."""

import json
import math
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledge.errors import FledgeError
from fledge.evaluate.records import SetResult
from fledge.evaluate.sets import EvaluatedModel, guess_kind, load_set
from fledge.evaluate.sets.base import ratio_and_interval
from fledge.evaluate.sets.generated import plain_answer
from fledge.evaluate.sets.likelihood import choices_and_label
from fledge.evaluate.sets.rows import spread
from fledge.generation import score_tokens
from fledge.generation.loading import load_model_and_tokenizer
from fledge.recipe.sections.evaluation_sets import KEYS, ROLES, SET_KINDS, EvaluationSetConfig
from tests.support.small_model import write_model

POSITIONS = 40


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> EvaluatedModel:
    """A small model of 40 positions with random weights."""
    return EvaluatedModel(*load_model_and_tokenizer(write_model(tmp_path_factory.mktemp("model"), positions=POSITIONS)))


def rows_file(file: Path, rows: Sequence[Any]) -> Path:
    """A file with a row a line; a text stands as it is."""
    lines = [row if isinstance(row, str) else json.dumps(row, ensure_ascii=False) for row in rows]
    file.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return file


def result_of(asked: EvaluatedModel, kind: str, path: Path, **more: Any) -> SetResult:
    """The result of the model on a file."""
    config = EvaluationSetConfig.model_validate({"kind": kind, "path": str(path), **more})
    counts: list[int] = []
    result = load_set("name", config, "sets.name").evaluate_model(asked, counts.append)
    assert sum(counts) == len(result.items)
    return result


def logprob(asked: EvaluatedModel, context: list[int], text: list[int]) -> float:
    """log p(text | context) by a pass of its own."""
    return sum(score_tokens(asked.model, [[*context, *text]])[0][len(context) - 1 :])


def test_a_text_is_scored_token_by_token_in_windows_of_the_model_s_positions(asked: EvaluatedModel, tmp_path: Path) -> None:
    long = "A cat is an animal. What is a dog? " * 12
    rows = rows_file(tmp_path / "a.jsonl", [{"text": "A dog."}, {"text": long.strip()}, {"other": 1}, "broken"])
    result = result_of(asked, "text", rows)
    encode, start = asked.tokenizer.encode, asked.first_tokens
    tokens = encode(long.strip())
    assert len(tokens) > 2 * POSITIONS
    expected, done = 0.0, 0
    while done < len(tokens):  # as written down: windows of all positions, the last one with as much context as fits
        count = min(POSITIONS, len(tokens) - done)
        before = [*start, *tokens][: done + len(start)]
        context = before[-1:] if count == POSITIONS else before[-(POSITIONS - count + 1) :]
        expected += logprob(asked, context, tokens[done : done + count])
        done += count
    losses = [item.values["loss"] * item.values["tokens"] for item in result.items]
    assert losses == pytest.approx([-logprob(asked, start, encode("A dog.")), -expected], rel=1e-5)
    assert [item.values["tokens"] for item in result.items] == [len(encode("A dog.")), len(tokens)]
    whole = sum(losses)
    assert result.metrics["loss"].value == pytest.approx(whole / (len(tokens) + len(encode("A dog."))))
    assert result.metrics["perplexity"].value == pytest.approx(math.exp(result.metrics["loss"].value))
    assert result.metrics["bits_per_byte"].value == pytest.approx(whole / math.log(2) / (6 + len(long.strip())))
    assert any("left out: 1 × " in note for note in result.notes) and any("windows" in note for note in result.notes)
    assert not result.groups


def test_texts_of_several_files_are_groups(asked: EvaluatedModel, tmp_path: Path) -> None:
    for name in ("cats", "dogs"):
        (tmp_path / f"{name}.txt").write_text(f"{name} are animals.\nA {name}.\n")
    result = result_of(asked, "text", tmp_path)
    assert list(result.groups) == ["cats", "dogs"]
    tokens = {name: sum(one.values["tokens"] for one in result.items if one.group == name) for name in result.groups}
    weighted = sum(result.groups[name]["loss"].value * count for name, count in tokens.items())
    assert result.metrics["loss"].value == pytest.approx(weighted / sum(tokens.values()))


def test_minimal_pairs_compare_whole_sentences_from_their_first_token_on(asked: EvaluatedModel, tmp_path: Path) -> None:
    sentences = [("A cat is.", "What cat is."), ("Dogs are animals.", "Dogs is animals."), ("same", "same")]
    rows = [{"sentence_good": good, "sentence_bad": bad, "UID": good[:1]} for good, bad in sentences]
    result = result_of(asked, "minimal_pairs", rows_file(tmp_path / "a.jsonl", rows))
    encode, start = asked.tokenizer.encode, asked.first_tokens
    sums = [[logprob(asked, start, encode(text)) for text in pair] for pair in sentences]
    expected = [float(good > bad) for good, bad in sums]
    assert [item.values["accuracy"] for item in result.items] == expected and expected[2] == 0
    assert result.metrics["accuracy"].value == pytest.approx(sum(expected) / 3)
    assert list(result.groups) == ["A", "D", "s"] and result.groups["A"]["accuracy"].count == 1
    assert any("follows" in note for note in result.notes)


def test_multiple_choice_takes_the_likeliest_choice_and_the_likeliest_for_its_length(
    asked: EvaluatedModel, tmp_path: Path
) -> None:
    choices = ["an animal", "a", "What is a dog? Dogs are animals."]
    rows = [{"question": f"A cat is {n}?", "choices": choices, "label": n} for n in range(3)]
    result = result_of(asked, "multiple_choice", rows_file(tmp_path / "a.jsonl", rows), template="{question} So", few_shot=1)
    encode = asked.tokenizer.encode
    for number, item in enumerate(result.items):
        solved = rows[1 if number == 0 else 0]
        context = f"{solved['question']} So {choices[solved['label']]}\n\n{rows[number]['question']} So"
        start = asked.tokenizer.document_start
        tokens = [[*start, *encode(f"{context} {choice}")] for choice in choices]
        begin = len(start) + len(encode(context))
        sums = [
            sum(score_tokens(asked.model, [one[-POSITIONS - 1 :]])[0][begin - 1 - max(0, len(one) - POSITIONS - 1) :])
            for one in tokens
        ]
        by_length = [value / len(choice) for value, choice in zip(sums, choices, strict=True)]
        assert item.given == choices[sums.index(max(sums))]
        assert item.values == {
            "accuracy": float(sums.index(max(sums)) == number),
            "accuracy_norm": float(by_length.index(max(by_length)) == number),
        }
    assert result.metrics["accuracy"].value == pytest.approx(1 / 3)  # every question has the same likeliest choice


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"choices": ["x", "y"], "label": 1}, (("x", "y"), 1)),
        ({"choices": ["x", "y"], "label": "0"}, (("x", "y"), 0)),
        ({"choices": ["x", "y"], "label": "b"}, (("x", "y"), 1)),
        ({"choices": ["1", "0"], "label": "0"}, (("1", "0"), 1)),
        ({"choices": {"text": ["x", "y"], "label": ["1", "2"]}, "label": "2"}, (("x", "y"), 1)),
        ({"choices": ["x", "y"], "label": 2}, None),
        ({"choices": ["x"], "label": 0}, None),
        ({"choices": ["x", "y"], "label": None}, None),
        ({"choices": ["x", "y"], "label": "none"}, None),
        ({"choices": "xy", "label": 0}, None),
    ],
)
def test_labels_of_choices_are_read_as_files_spell_them(row: dict[str, Any], expected: Any) -> None:
    if expected is None:
        with pytest.raises(ValueError):
            choices_and_label(row, "choices", "label")
    else:
        assert choices_and_label(row, "choices", "label") == expected


def test_answers_are_the_model_s_own_and_are_compared_with_the_file_s(asked: EvaluatedModel, tmp_path: Path) -> None:
    def row(question: str, answer: str, group: str) -> dict[str, Any]:
        turns = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
        return {"messages": turns, "group": group}

    questions = ["A dog?", "A cat?", "Dogs?"]
    unknown = rows_file(tmp_path / "a.jsonl", [row(one, "x", "") for one in questions])
    first = result_of(asked, "answers", unknown, max_new_tokens=5)
    assert first.metrics["exact_match"].value == 0 and not first.groups
    given = {item.prompt: item.given for item in first.items}
    right = [row(one, given[one] or "x", "known") for one in questions if (given[one] or "").strip()]
    rows = [*right, row("A dog?", "never this", "new"), row("Dogs?", '{"a": "b"}', "new")]
    result = result_of(asked, "answers", rows_file(tmp_path / "b.jsonl", rows), max_new_tokens=5)
    assert right and result.groups["known"]["exact_match"].value == 1 and result.groups["new"]["exact_match"].value == 0
    assert result.metrics["valid_json"].count == 1 and result.metrics["f1"].value == 0
    assert result.items[-1].failures and result.items[0].failures == ()
    assert result.items[0].values["ended"] == (result.items[0].finish_reason == "stop")


def test_prompts_have_rules_and_dimensions(asked: EvaluatedModel, tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "- {prompt: 'A cat?', dimension: knowledge, expect: {length: {min: 0}}}\n"
        "- {prompt: 'A dog?', dimension: format, expect: {exact: [never this]}}\n"
    )
    result = result_of(asked, "prompts", tmp_path / "a.yaml", max_new_tokens=4)
    assert {name: values["passed"].value for name, values in result.groups.items()} == {"format": 0, "knowledge": 1}
    assert result.metrics["passed"].value == 0.5 and result.items[1].failures == ("is not 'never this'",)


def test_generation_stops_at_a_text_and_extracts_the_answer(asked: EvaluatedModel, tmp_path: Path) -> None:
    rows = [{"question": "cat", "answer": "it is #### 1,000"}, {"question": "dog", "answer": "#### 2"}, {"question": "x"}]
    file = rows_file(tmp_path / "a.jsonl", rows)
    config = {"extract": "#### ([0-9,]+)", "template": "{question}", "max_new_tokens": 12}
    result = result_of(asked, "generation", file, **config, stop=["never this"])
    assert [item.expected for item in result.items] == ["1,000", "2"] and result.metrics["exact_match"].value == 0
    whole = [item.given or "" for item in result.items]
    letter = whole[0][len(whole[0]) // 2 :][:2]
    assert len(letter) == 2
    cut = result_of(asked, "generation", file, **config, stop=[letter])
    assert [item.given for item in cut.items] == [text.partition(letter)[0] for text in whole]
    assert cut.items[0].finish_reason == "stop" and asked.engine.num_unfinished == 0
    marker = result_of(asked, "generation", file, **(config | {"extract": "."}), stop=["never this"])
    assert marker.metrics["exact_match"].count == 2
    solved = result_of(asked, "generation", file, **config, few_shot=1, few_shot_path=str(file), stop=["never this"])
    assert solved.fingerprint != result.fingerprint
    with pytest.raises(FledgeError, match="rows are needed"):
        result_of(asked, "generation", file, **config, few_shot=2)


def test_answers_are_compared_without_what_writing_them_adds() -> None:
    assert plain_answer(" $1,000. ") == plain_answer("1000") != plain_answer("1000.5")


@given(st.lists(st.integers(), max_size=40), st.integers(1, 50))
def test_items_are_spread_evenly(items: list[int], most: int) -> None:
    chosen = spread(list(enumerate(items)), most)
    numbers = [number for number, _ in chosen]
    assert len(chosen) == min(most, len(items)) and numbers == sorted(set(numbers))
    gaps = [after - before for before, after in pairwise(numbers)]
    assert not gaps or max(gaps) - min(gaps) <= 1


def test_the_interval_of_a_ratio_covers_its_value_as_often_as_it_says() -> None:
    import numpy as np

    draw, hits = np.random.default_rng(1), 0
    for _ in range(400):
        sizes = draw.integers(5, 50, 60)
        totals = sizes * 2.0 + draw.normal(0, np.sqrt(sizes) * 3)
        _, interval = ratio_and_interval(totals.tolist(), sizes.tolist())
        assert interval is not None
        hits += interval[0] <= 2.0 <= interval[1]
    assert 0.91 <= hits / 400 <= 0.98
    assert ratio_and_interval([3.0], [2.0]) == (1.5, None)


def test_a_fingerprint_changes_with_items_and_settings_only(asked: EvaluatedModel, tmp_path: Path) -> None:
    rows = [{"text": "A cat."}, {"text": "A dog."}]

    def fingerprint(file: Path, **more: Any) -> str:
        config = EvaluationSetConfig.model_validate({"kind": "text", "path": str(file), **more})
        return load_set("name", config, "key").fingerprint

    one = fingerprint(rows_file(tmp_path / "a.jsonl", rows))
    assert one == fingerprint(rows_file(tmp_path / "moved.jsonl", rows), every_steps=5, max_samples=9)
    assert one != fingerprint(tmp_path / "a.jsonl", max_samples=1)
    assert one != fingerprint(rows_file(tmp_path / "b.jsonl", rows[::-1]))


def test_the_kind_of_a_file_is_seen_in_its_rows(tmp_path: Path) -> None:
    examples = {
        "minimal_pairs": {"sentence_good": "a", "sentence_bad": "b"},
        "multiple_choice": {"question": "a", "choices": ["b", "c"], "label": 0},
        "answers": {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]},
        "text": {"text": "a"},
    }
    for kind, row in examples.items():
        assert guess_kind(str(rows_file(tmp_path / f"{kind}.jsonl", ["broken", row])), "--set") == kind
    assert guess_kind("any.yaml", "--set") == "prompts"
    with pytest.raises(FledgeError, match="no kind"):
        guess_kind(str(rows_file(tmp_path / "other.jsonl", [{"x": 1}])), "--set")


def test_every_kind_says_which_keys_it_reads() -> None:
    fields = set(EvaluationSetConfig.model_fields)
    assert set(KEYS) == set(SET_KINDS) and all(set(keys) <= fields for keys in KEYS.values())
    needs = {kind: {"kind": kind, "path": "x"} | ({"task": "t"} if kind == "lm_eval" else {}) for kind in SET_KINDS}
    values: dict[str, Any] = {"columns": {"text": "x"}, "task": "t", "few_shot": 1, "stop": ["x"], "extract": "x", "chat": True}
    for kind, config in needs.items():
        EvaluationSetConfig.model_validate(config)
        for key, value in values.items():
            if key == "columns":
                value = {ROLES[kind][0] if kind in ROLES else "text": "x"}
            if key in KEYS[kind]:
                EvaluationSetConfig.model_validate(config | {key: value})
            else:
                with pytest.raises(ValueError, match="does not read it"):
                    EvaluationSetConfig.model_validate(config | {key: value})
    for wrong in ({"kind": "text"}, {"kind": "lm_eval"}, {"kind": "minimal_pairs", "path": "x", "columns": {"wrong": "y"}}):
        with pytest.raises(ValueError, match=r"needs path|needs task|not 'wrong'"):
            EvaluationSetConfig.model_validate(wrong)


def test_a_file_without_items_and_a_prompt_without_room_are_errors_that_say_where(
    asked: EvaluatedModel, tmp_path: Path
) -> None:
    with pytest.raises(FledgeError, match=r"2 × no text in column sentence_good, first at .*:1"):
        result_of(asked, "minimal_pairs", rows_file(tmp_path / "a.jsonl", [{"x": 1}, {"x": 2}]))
    with pytest.raises(FledgeError, match="there is no file"):
        result_of(asked, "text", tmp_path / "nothing.jsonl")
    row = {"question": "A cat. " * 30, "answer": "x"}
    file = rows_file(tmp_path / "b.jsonl", [{"question": "x", "answer": "y"}, row])
    one = load_set("name", EvaluationSetConfig.model_validate({"kind": "generation", "path": str(file)}), "key")
    with pytest.raises(FledgeError, match="leaves no room") as caught:
        one.check(asked.tokenizer, POSITIONS)
    assert caught.value.where == f"{file}:2"
    with pytest.raises(FledgeError, match="leaves no room"):
        one.evaluate_model(asked)
    assert asked.engine.num_unfinished == 0
