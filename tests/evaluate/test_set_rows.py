"""What sets make of their rows: solved rows before a question, templates, chosen rows, what is cut, what has no number."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from fledge.errors import FledgeError
from fledge.evaluate.records import SetResult, read_set_result, write_set_result
from fledge.evaluate.sets import EvaluatedModel, EvaluationSet, load_set
from fledge.evaluate.sets.base import CHARACTERS_AT_ONCE, ITEMS_AT_ONCE, ratio, slices
from fledge.evaluate.sets.few_shot import glue
from fledge.evaluate.sets.generated import GenerationSet
from fledge.evaluate.sets.likelihood import MultipleChoice
from fledge.evaluate.sets.rows import read_items, spread
from fledge.generation.loading import load_model_and_tokenizer
from fledge.recipe import Source
from fledge.recipe.sections.evaluation_sets import EvaluationSetConfig
from tests.support.small_model import write_model

POSITIONS = 40


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small model of 40 positions with random weights."""
    return write_model(tmp_path_factory.mktemp("model"), positions=POSITIONS)


@pytest.fixture(scope="module")
def asked(folder: Path) -> EvaluatedModel:
    """The model with its tokenizer."""
    return EvaluatedModel(*load_model_and_tokenizer(folder))


def rows_file(file: Path, rows: Sequence[Any]) -> str:
    """A file with a row a line."""
    file.write_text("".join(f"{json.dumps(row, ensure_ascii=False)}\n" for row in rows), encoding="utf-8")
    return str(file)


def set_of(kind: str, path: str, **more: Any) -> EvaluationSet:
    """The set in a file."""
    return load_set("name", EvaluationSetConfig.model_validate({"kind": kind, "path": path, **more}), "sets.name")


def prompts_of(one: EvaluationSet) -> list[list[str]]:
    """The prompts of the solved rows before each question of a set."""
    assert isinstance(one, GenerationSet | MultipleChoice)
    return [[row.prompt for row in one._few_shot.before(item.prompt)] for item in one.items]


def test_a_question_is_never_solved_before_itself_wherever_else_it_stands(tmp_path: Path) -> None:
    questions = ["a", "b", "a", "c ", "d", "a"]
    rows = [{"question": one, "answer": str(number)} for number, one in enumerate(questions)]
    file = rows_file(tmp_path / "a.jsonl", rows)
    few: dict[str, Any] = {"template": "{question}", "few_shot": 2}
    expected = [["b", "c "], ["a", "c "], ["b", "c "], ["a", "b"], ["a", "b"], ["b", "c "]]
    assert prompts_of(set_of("generation", file, **few)) == expected
    assert prompts_of(set_of("generation", file, **few, few_shot_path=file)) == expected
    choices = rows_file(tmp_path / "b.jsonl", [row | {"choices": ["x", "y"], "label": 0} for row in rows])
    assert prompts_of(set_of("multiple_choice", choices, **few)) == expected
    others = rows_file(tmp_path / "c.jsonl", [{"question": one, "answer": "x"} for one in ("e", "f")])
    assert prompts_of(set_of("generation", file, **few, few_shot_path=others)) == [["e", "f"]] * 6
    with pytest.raises(FledgeError, match="3 rows are needed, and there are 2"):
        set_of("generation", others, **few)


def test_solved_rows_are_those_of_all_rows_whatever_max_samples_is(tmp_path: Path) -> None:
    file = rows_file(tmp_path / "a.jsonl", [{"question": f"q{n}", "answer": "x"} for n in range(50)])
    few: dict[str, Any] = {"template": "{question}", "few_shot": 5}
    whole = prompts_of(set_of("generation", file, **few))
    assert prompts_of(set_of("generation", file, **few, max_samples=3)) == [whole[place] for place in (8, 25, 41)]


def test_a_blank_stands_before_an_answer_where_the_script_has_one(asked: EvaluatedModel, tmp_path: Path) -> None:
    prompts = ["Answer:", "Answer: ", "Answer:\n", "答案：", "答案是", "정답", ""]
    assert [glue(prompt) for prompt in prompts] == [" ", "", "", "", "", " ", ""]
    rows = [{"question": one, "choices": ["北京", "上海"], "label": 0} for one in ("甲", "乙")]
    one = set_of("multiple_choice", rows_file(tmp_path / "a.jsonl", rows), template="{question}。答案：", few_shot=1)
    assert isinstance(one, MultipleChoice)
    for item in one.items:
        for found, choice in zip(one._continuations(asked, item), item.choices, strict=True):
            assert asked.tokenizer.decode(found.tokens).endswith(f"答案：北京\n\n{item.prompt}{choice}")
            assert asked.tokenizer.decode(found.tokens[found.start :]) == choice


def test_no_token_lies_across_the_beginning_of_what_is_scored(asked: EvaluatedModel) -> None:
    encode = asked.tokenizer.encode
    text = next(text for text in ("animal", "animals", "What", "is") if len(encode(text)) == 1)
    found = asked.continuation(text[:1], text[1:])
    begin = [*asked.tokenizer.document_start, *encode(text[:1])]
    assert found.tokens[found.start :] == encode(text[1:]) and found.tokens[: found.start] == begin


def test_a_template_names_columns_whatever_their_names_are(tmp_path: Path) -> None:
    rows = [{"Question Text": f"q{n}", "a-b": n, "answer": "x"} for n in range(2)]
    file = rows_file(tmp_path / "a.jsonl", rows)
    one = set_of("generation", file, template="{Question Text} {a-b} of {1, 2}:")
    assert isinstance(one, GenerationSet)
    assert [item.prompt for item in one.items] == ["q0 0 of {1, 2}:", "q1 1 of {1, 2}:"]
    with pytest.raises(FledgeError, match="no text in column question"):
        set_of("generation", file, template="{a-b} {question}")
    with pytest.raises(FledgeError, match="template names no column of the row"):
        set_of("generation", file, template="{Other Text}")
    for kind in ("generation", "multiple_choice"):
        with pytest.raises(ValueError, match="it names no column"):
            EvaluationSetConfig.model_validate({"kind": kind, "path": "x", "template": "Say something."})


def test_what_is_cut_is_counted_and_told(asked: EvaluatedModel, tmp_path: Path) -> None:
    long = "A cat is an animal. What is a dog? " * 6
    pairs = [{"sentence_good": "A dog.", "sentence_bad": "A cat."}, {"sentence_good": long, "sentence_bad": "A cat."}]
    result = set_of("minimal_pairs", rows_file(tmp_path / "a.jsonl", pairs)).evaluate_model(asked)
    assert "1 pairs have a sentence that is longer than the model's positions: its end was left out" in result.notes
    questions = [
        {"question": "A cat?", "choices": ["a", "b"], "label": 0},
        {"question": "A cat?", "choices": ["a", long], "label": 0},
        {"question": long, "choices": ["a", "b"], "label": 0},
    ]

    def notes(rows: list[Any]) -> str:
        return " ".join(set_of("multiple_choice", rows_file(tmp_path / "b.jsonl", rows)).evaluate_model(asked).notes)

    assert notes(questions[:1]) == ""
    assert "1 questions are longer" in notes(questions[::2]) and "its end" not in notes(questions[::2])
    assert "1 questions have a choice that is longer" in notes(questions[:2])


def test_a_model_without_numbers_has_no_accuracy(folder: Path, tmp_path: Path) -> None:
    model, tokenizer = load_model_and_tokenizer(folder)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(math.nan)
    broken = EvaluatedModel(model, tokenizer)
    pairs = rows_file(tmp_path / "a.jsonl", [{"sentence_good": "A dog.", "sentence_bad": "A cat."}])
    choices = rows_file(tmp_path / "b.jsonl", [{"question": "A cat?", "choices": ["a", "b"], "label": 0}])
    texts = rows_file(tmp_path / "c.jsonl", [{"text": "A dog."}])
    for kind, file, metric in (
        ("minimal_pairs", pairs, "accuracy"),
        ("multiple_choice", choices, "accuracy_norm"),
        ("text", texts, "loss"),
    ):
        result: SetResult = set_of(kind, file).evaluate_model(broken)
        assert math.isnan(result.metrics[metric].value) and result.metrics[metric].interval is None
        assert any("1 items have no value" in note for note in result.notes)
        summary = write_set_result(tmp_path / kind, result)
        assert json.loads(summary.read_text())["metrics"][metric]["value"] is None
        assert read_set_result(summary).metrics[metric].interval is None
    assert set_of("multiple_choice", choices).evaluate_model(broken).items[0].given is None


def test_chosen_rows_are_those_of_all_rows_and_no_others_are_kept(tmp_path: Path) -> None:
    file = rows_file(tmp_path / "a.jsonl", [{"text": n} if n % 3 else {"other": n} for n in range(40)])
    read_rows: list[int] = []

    def parse(file: str, where: str, row: Any) -> int:
        from fledge.data.parsing.columns import RowError

        if "text" not in row:
            raise RowError("no text")
        read_rows.append(row["text"])
        return row["text"]

    seen: list[int] = []
    whole, problems = read_items(Source(path=file), "key", parse, "a text")
    for most in (1, 5, 26, 27, 100):
        seen.clear()
        assert read_items(Source(path=file), "key", parse, "a text", most=most, seen=seen.append) == (
            spread(whole, most),
            problems,
        )
        assert seen == whole


def test_items_at_once_are_bounded_by_their_number_and_their_characters() -> None:
    texts = ["x"] * (ITEMS_AT_ONCE + 5) + ["y" * (CHARACTERS_AT_ONCE + 1), "z", "y" * CHARACTERS_AT_ONCE, "z"]
    parts = [list(part) for part in slices(texts, len)]
    assert [one for part in parts for one in part] == texts and [len(part) for part in parts] == [ITEMS_AT_ONCE, 5, 1, 1, 1, 1]
    assert list(slices([], len)) == []


def test_stop_texts_of_a_chat_set_are_those_that_are_set() -> None:
    def texts(**more: Any) -> tuple[str, ...]:
        return EvaluationSetConfig.model_validate({"kind": "generation", "path": "x", **more}).stop_texts

    assert texts() == ("\n\n", "Question:") and texts(chat=True) == () == texts(stop=[])
    assert texts(chat=True, stop=["."]) == (".",) == texts(stop=["."])


def test_a_chat_set_stops_at_its_stop_texts(asked: EvaluatedModel, tmp_path: Path) -> None:
    file = rows_file(tmp_path / "a.jsonl", [{"question": "cat", "answer": "x"}])
    settings: dict[str, Any] = {"template": "{question}", "max_new_tokens": 12, "chat": True}
    whole = set_of("generation", file, **settings).evaluate_model(asked).items[0].given or ""
    end = whole[len(whole) // 2 :][:2]
    cut = set_of("generation", file, **settings, stop=[end]).evaluate_model(asked).items[0]
    assert len(end) == 2 and cut.given == whole.partition(end)[0] and cut.finish_reason == "stop"


def test_the_interval_of_a_loss_does_not_go_below_zero(asked: EvaluatedModel, tmp_path: Path) -> None:
    file = rows_file(tmp_path / "a.jsonl", [{"text": "A dog."}])
    item = set_of("text", file).evaluate_model(asked).items[0]
    from dataclasses import replace

    items = [replace(item, values={"loss": loss, "tokens": 10.0}) for loss in (0.0, 0.0, 5.0)]
    found = ratio(items, lambda one: one["loss"] * one["tokens"], lambda one: one["tokens"], math.exp)
    assert found.interval is not None and found.interval[0] == 1.0
