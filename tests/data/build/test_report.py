"""The data report adds up, validation stays apart, and every cut is counted."""

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fledge.data import CollectedRows, DataReport
from fledge.data.build.directory import TRAIN, VALIDATION
from fledge.data.parsing.items import Document
from fledge.data.report import SourceReport
from fledge.errors import FledgeError
from fledge.tokenizer import Tokenizer, load_tokenizer
from tests.support.sources import jsonl, prepare, read, stage_of

GOOD = {"text": "some text", "prompt": "question", "response": "answer", "chosen": "yes", "rejected": "no"}
ROWS = st.lists(
    st.sampled_from(
        [
            GOOD,
            {**GOOD, "text": "x" * 300, "response": "y" * 300, "chosen": "z" * 300},
            {**GOOD, "text": "", "prompt": "w" * 300},
            {**GOOD, "response": "", "chosen": "no", "text": 3},
            {"other": 1},
            b"{broken",
            b"\xff",
            b"",
            "text",
            None,
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}] * 9},
        ]
    ),
    max_size=25,
)


@settings(max_examples=60)
@given(rows=ROWS, kind=st.sampled_from(["pretrain", "sft", "preference"]), validation=st.sampled_from([0, 0.3]))
def test_every_row_is_used_or_dropped_for_any_rows(
    chatml: Tokenizer, tmp_path_factory: pytest.TempPathFactory, rows: list[Any], kind: str, validation: float
) -> None:
    file = jsonl(tmp_path_factory.getbasetemp() / "mixture.jsonl", [GOOD, *rows])
    try:
        data = prepare(kind, file, chatml, validation=validation)
    except FledgeError as error:
        # All that can be used fell to validation, or all that fell to validation cannot be used.
        assert any(
            words in str(error)
            for words in ("no training example is left", "no validation example is left", "went to validation; none is left")
        )
        return
    source = data.as_dict()["sources"][0]
    assert source["rows"] == 1 + sum(row != b"" for row in rows)
    assert source["rows"] == source["used_rows"] + sum(source["dropped"].values())
    splits = [data.train, *([data.validation] if data.validation else [])]
    assert source["used_rows"] == source["examples"] == sum(split.examples.count for split in splits)
    assert source["validation_rows"] == (data.validation.examples.count if data.validation else 0)
    assert source["tokens"] == sum(len(split.examples.tokens) for split in splits)
    assert source["target_tokens"] == sum(split.num_target_tokens for split in splits)
    assert all(event["where"].startswith(f"{file}:") for event in source["first_events"])


def test_validation_without_a_row_that_fits_is_an_error(chatml: Tokenizer, tmp_path: Path) -> None:
    file = jsonl(tmp_path / "rows.jsonl", [GOOD, {"prompt": "word " * 400, "response": "answer"}])
    errors = []
    for seed in range(20):  # some seeds put exactly the row that does not fit on the side of validation
        try:
            prepare("sft", file, chatml, seed=seed, validation=0.5)
        except FledgeError as error:
            errors.append(str(error))
    assert any("data.validation: no validation example is left: none of its 1 rows fits" in error for error in errors)


def test_a_report_that_does_not_add_up_is_an_error_of_fledge() -> None:
    report = DataReport([SourceReport(name="a", path="a", rows=1)])
    with pytest.raises(AssertionError, match="1 rows != 0 used"):
        report.check("key")


def test_a_source_without_a_usable_row_is_an_error_with_the_reasons(tmp_path: Path, chatml: Tokenizer) -> None:
    good = jsonl(tmp_path / "good.jsonl", [GOOD])
    bad = jsonl(tmp_path / "bad.jsonl", [b"{", {"promt": "q"}, {"promt": "q"}])
    with pytest.raises(FledgeError) as caught:
        prepare("sft", [str(good), str(bad)], chatml)
    text = str(caught.value)
    assert f"none of the 3 rows of '{bad}' can be used (2 no known column, 1 invalid JSON)" in text
    assert f"first at {bad}:2: " in text
    assert "the row has promt" in text


def test_three_events_of_a_reason_are_kept_and_all_are_counted(tmp_path: Path, chatml: Tokenizer) -> None:
    file = jsonl(tmp_path / "a.jsonl", [*([b"{"] * 50), GOOD])
    data = prepare("sft", file, chatml)
    source = data.as_dict()["sources"][0]
    assert source["dropped"] == {"invalid JSON": 50}
    assert [event["where"] for event in source["first_events"]] == [f"{file}:{n}" for n in (1, 2, 3)]
    lines = data.report.lines()
    assert lines[0] == "a.jsonl: 51 rows, 1 used, 50 dropped"
    assert lines[1].startswith(f"  50 × invalid JSON, first at {file}:1 (")


def test_each_source_has_a_report_of_its_own(tmp_path: Path, chatml: Tokenizer) -> None:
    one, two = jsonl(tmp_path / "one.jsonl", [GOOD] * 3), jsonl(tmp_path / "two.jsonl", [GOOD, b"{"])
    data = prepare("sft", [{"path": str(one), "name": "first"}, str(two)], chatml, validation=str(two))
    counts = [(source.name, source.rows, source.used_rows, source.validation_rows) for source in data.report.sources]
    assert counts == [("first", 3, 3, 0), ("two.jsonl", 2, 1, 0), ("two.jsonl", 2, 1, 1)]


# Validation


def rows_of(count: int) -> list[dict]:
    """Rows of this many different documents."""
    return [{"text": f"document {i}"} for i in range(count)]


def texts(collected: CollectedRows, mark: int) -> list[str]:
    """The texts of the documents with this mark (training or validation)."""
    return [item.text for item in collected.items(mark) if isinstance(item, Document)]


def test_validation_is_disjoint_complete_and_stable_under_reordering(tmp_path: Path) -> None:
    rows = rows_of(400)
    first = read("pretrain", jsonl(tmp_path / "a.jsonl", rows), validation=0.1)
    shuffled = random.Random(1).sample(rows, len(rows))
    second = read("pretrain", jsonl(tmp_path / "b.jsonl", shuffled), validation=0.1)
    train, validation = set(texts(first, TRAIN)), set(texts(first, VALIDATION))
    assert not train & validation
    assert len(train | validation) == 400
    assert 20 < len(validation) < 70
    assert validation == set(texts(second, VALIDATION))
    more = read("pretrain", jsonl(tmp_path / "c.jsonl", rows_of(800)), validation=0.1)
    assert validation <= set(texts(more, VALIDATION))


def test_duplicates_fall_on_the_same_side(tmp_path: Path) -> None:
    collected = read("pretrain", jsonl(tmp_path / "a.jsonl", rows_of(100) * 3), validation=0.2)
    assert not set(texts(collected, TRAIN)) & set(texts(collected, VALIDATION))
    assert all(texts(collected, VALIDATION).count(text) == 3 for text in texts(collected, VALIDATION))


def test_validation_has_at_least_one_row_unless_it_is_zero(tmp_path: Path) -> None:
    file = jsonl(tmp_path / "a.jsonl", rows_of(5))
    assert len(texts(read("pretrain", file, validation=1e-9), VALIDATION)) == 1
    assert texts(read("pretrain", file, validation=0), VALIDATION) == []


def test_a_stage_without_a_training_row_is_an_error(tmp_path: Path, chatml: Tokenizer) -> None:
    with pytest.raises(FledgeError, match=r"all 3 usable rows went to validation(.|\n)*write validation: 0"):
        prepare("pretrain", jsonl(tmp_path / "a.jsonl", rows_of(1) * 3), chatml, validation=0.5)


# What does not fit


def turns_of(*texts: str) -> list[dict[str, str]]:
    """Turns with these texts, of user and assistant alternately."""
    roles = ("user", "assistant")
    return [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]


def written(data: Any, tokenizer: Tokenizer, index: int = 0) -> tuple[str, str]:
    """(all text, supervised text) of a training sequence."""
    tokens, weights = data.train.examples.sequence(index)
    return tokenizer.decode(tokens.tolist()), tokenizer.decode(tokens[weights > 0].tolist())


def test_a_long_conversation_keeps_its_system_turn_and_the_newest_whole_rounds(tmp_path: Path, chatml: Tokenizer) -> None:
    turns = turns_of(*(text for i in range(9) for text in (f"ask {i}", f"tell {i}")))
    file = jsonl(tmp_path / "a.jsonl", [{"messages": [{"role": "system", "content": "sys"}, *turns]}])
    complete = prepare("sft", file, chatml, max_seq_len=2000)
    size = len(complete.train.examples.tokens) - 1
    exact = prepare("sft", file, chatml, max_seq_len=size)
    assert exact.report.sources[0].shortened_rows == 0
    source = (data := prepare("sft", file, chatml, max_seq_len=size - 2)).report.sources[0]
    assert (source.shortened_rows, source.truncated_rows, source.used_rows) == (1, 0, 1)
    assert source.first_events["oldest turns left out"][0]["detail"] == "1 of 9 rounds"
    text, trained = written(data, chatml)
    assert text.startswith("<|im_start|>system\nsys<|im_end|>\n<|im_start|>user\nask 1<|im_end|>")
    assert trained == "".join(f"tell {i}<|im_end|>" for i in range(1, 9))
    assert len(data.train.examples.tokens) <= size - 1


def test_an_answer_longer_than_the_context_is_cut_and_counted(tmp_path: Path, chatml: Tokenizer) -> None:
    answer = " ".join(map(str, range(100)))
    file = jsonl(tmp_path / "a.jsonl", [{"messages": turns_of("old", "older", "new", answer)}])
    data = prepare("sft", file, chatml, max_seq_len=64)
    source = data.report.sources[0]
    assert (source.truncated_rows, source.shortened_rows, source.used_rows) == (1, 1, 1)
    assert len(data.train.examples.tokens) == 65
    text, trained = written(data, chatml)
    assert "old" not in text
    assert trained
    assert answer.startswith(trained)


def test_a_question_that_leaves_no_room_for_an_answer_is_dropped_and_counted(tmp_path: Path, chatml: Tokenizer) -> None:
    long = " ".join(map(str, range(100)))
    file = jsonl(tmp_path / "a.jsonl", [{"prompt": long, "response": "a"}, {"prompt": "q", "response": "a"}])
    source = prepare("sft", file, chatml).report.sources[0]
    assert (source.used_rows, source.truncated_rows, dict(source.dropped)) == (1, 0, {"prompt longer than the context": 1})


@pytest.mark.parametrize(
    ("row", "truncated", "dropped"),
    [
        ({"chosen": "1 " * 100, "rejected": "no"}, 1, {}),
        ({"chosen": "no", "rejected": "1 " * 100}, 1, {}),
        ({"chosen": "1 " * 100 + "a", "rejected": "1 " * 100 + "b"}, 0, {"answers equal after the cut": 1}),
        ({"prompt": "1 " * 100, "chosen": "a", "rejected": "b"}, 0, {"prompt longer than the context": 1}),
    ],
)
def test_preferences_that_do_not_fit_are_cut_or_dropped_and_counted(
    tmp_path: Path, chatml: Tokenizer, row: dict, truncated: int, dropped: dict
) -> None:
    file = jsonl(tmp_path / "a.jsonl", [GOOD, {"prompt": "q", **row}])
    data = prepare("preference", file, chatml)
    source = data.report.sources[0]
    assert (source.truncated_rows, dict(source.dropped)) == (truncated, dropped)
    assert max(data.train.layout.length) <= 64
    assert data.train.packed_length == 128


def test_a_preference_with_a_long_history_keeps_the_newest_rounds_in_both_answers(tmp_path: Path, chatml: Tokenizer) -> None:
    turns = turns_of(*(text for i in range(9) for text in (f"ask {i}", f"tell {i}")), "last")
    file = jsonl(tmp_path / "a.jsonl", [{"prompt": turns, "chosen": "yes", "rejected": "no"}])
    data = prepare("preference", file, chatml, max_seq_len=64)
    source = data.report.sources[0]
    assert (source.shortened_rows, source.truncated_rows, source.used_rows) == (1, 0, 1)
    (chosen, trained), (rejected, other) = (written(data, chatml, i) for i in (0, 1))
    assert (trained, other) == ("yes<|im_end|>", "no<|im_end|>")  # the answers before are part of the prompt
    assert chosen.split("yes")[0] == rejected.split("assistant\nno")[0] + "assistant\n"


def test_prompts_and_answers_have_limits_of_their_own(tmp_path: Path, chatml: Tokenizer) -> None:
    turns = turns_of(*(text for i in range(9) for text in (f"ask {i}", f"tell {i}")), "last")
    rows = [
        {"prompt": turns, "chosen": "yes " * 40, "rejected": "no"},  # a long history, and an answer that is cut
        {"prompt": "long question " * 30, "chosen": "yes", "rejected": "no"},  # its last question alone is too long
        {"prompt": "q", "chosen": "same " * 30 + "a", "rejected": "same " * 30 + "b"},  # equal when cut
    ]
    limits = {"max_seq_len": 64, "max_prompt_length": 40, "max_completion_length": 20}
    data = prepare("preference", jsonl(tmp_path / "a.jsonl", rows), chatml, **limits)
    source = data.report.sources[0]
    dropped = {"prompt longer than max_prompt_length": 1, "answers equal after the cut": 1}
    assert (source.used_rows, source.shortened_rows, source.truncated_rows, dict(source.dropped)) == (1, 1, 1, dropped)
    _, weights = data.train.examples.sequence(0)
    assert np.count_nonzero(weights) == 20 and np.flatnonzero(weights)[0] <= 40
    assert np.count_nonzero(data.train.examples.sequence(1)[1]) == len(chatml.encode("no")) + 1


@pytest.mark.parametrize("key", ["max_prompt_length", "max_completion_length"])
def test_limits_of_answers_are_refused_where_rows_have_none_or_they_are_too_large(key: str) -> None:
    with pytest.raises(FledgeError, match=f"data.{key} belongs to preference, kto and reward stages"):
        stage_of("sft", "a.jsonl", **{key: 32})
    with pytest.raises(FledgeError, match=f"{key} 96 is longer than max_seq_len 64"):
        stage_of("preference", "a.jsonl", max_seq_len=64, **{key: 96})


def test_documents_that_continue_in_another_packed_row_are_counted_as_split(tmp_path: Path, chatml: Tokenizer) -> None:
    file = jsonl(tmp_path / "a.jsonl", [{"text": "1 2 3 4 5 " * 30}, {"text": "a"}])
    data = prepare("pretrain", file, chatml, max_seq_len=32)
    source = data.report.sources[0]
    assert (source.split_rows, source.truncated_rows, source.used_rows) == (1, 0, 2)
    assert data.train.num_tokens == len(data.train.examples.tokens) - 2


def test_a_row_that_the_template_rejects_is_dropped_with_its_reason(tmp_path: Path, chatml: Tokenizer) -> None:
    chatml.core.save(str(tmp_path / "tokenizer.json"))
    jinja = (
        "{% for m in messages %}{% if 'bad' in m.content %}{{ raise_exception('not this') }}{% endif %}"
        "<|im_start|>{{ m.role }}:{{ m.content }}<|im_end|>{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant:{% endif %}"
    )
    (tmp_path / "chat_template.jinja").write_text(jinja, encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}', encoding="utf-8")
    file = jsonl(tmp_path / "a.jsonl", [GOOD, {**GOOD, "prompt": "bad"}])
    for kind in ("sft", "preference"):
        source = prepare(kind, file, load_tokenizer(tmp_path)).report.sources[0]
        assert (source.used_rows, dict(source.dropped)) == (1, {"the chat template refuses it": 1})
        assert source.first_events["the chat template refuses it"][0]["detail"].endswith(": not this")


def test_a_template_whose_prompt_does_not_begin_the_answer_is_noticed_for_preferences(
    tmp_path: Path, chatml: Tokenizer
) -> None:
    chatml.core.save(str(tmp_path / "tokenizer.json"))
    jinja = (
        "{% for m in messages %}{{ m.role }}:{% if m.role == 'assistant' %}"
        "{% generation %}{{ m.content }}<|im_end|>{% endgeneration %}{% else %}{{ m.content }}{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>you say:{% endif %}"
    )
    (tmp_path / "chat_template.jinja").write_text(jinja, encoding="utf-8")
    (tmp_path / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}', encoding="utf-8")
    source = prepare("preference", jsonl(tmp_path / "a.jsonl", [GOOD]), load_tokenizer(tmp_path)).report.sources[0]
    assert source.used_rows == 1 and "generation starts from another text than in training" in source.noticed
