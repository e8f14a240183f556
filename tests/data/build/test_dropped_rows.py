"""Rows that a build drops or leaves out: duplicates, contaminated rows, limits, and totals that add up."""

import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fledge.errors import FledgeError
from fledge.tokenizer import Tokenizer, train_tokenizer
from tests.support.documents import WORDS, documents, prepare
from tests.support.sources import jsonl


def test_the_recipe_s_system_prompt_does_not_count_for_duplicates_and_languages(tmp_path: Path, tokenizer: Tokenizer) -> None:
    pytest.importorskip("rensa")
    rows = [{"prompt": f"{word} {word}?", "response": f"{word} it is, the {word}"} for word in WORDS[:6]]
    clean = {"near_duplicates": 0.8, "languages": ["zh"]}
    file = jsonl(
        tmp_path / "a.jsonl",
        [{"prompt": f"问题{row['prompt']}是什么意思呢", "response": "不知道" * n} for n, row in enumerate(rows, 1)],
    )
    account = prepare(
        "sft", file, tokenizer, max_seq_len=4000, system="You are a patient assistant. " * 30, clean=clean
    ).report.sources[0]
    assert account.used_rows == 6, account.dropped


def test_evaluation_rows_of_any_kind_and_language_are_kept_out_of_training(tmp_path: Path, tokenizer: Tokenizer) -> None:
    text = "春天来了花园里的花都开了小鸟在枝头唱歌孩子们在草地上奔跑老人们坐在长椅上晒太阳"
    english = "a long and plain english sentence that quotes nothing of it "
    file = jsonl(tmp_path / "a.jsonl", [{"text": f"{english * 4} {text} {english * 4}"}, {"text": english * 5}])
    questions = jsonl(tmp_path / "q.jsonl", [{"question": text}])
    clean = {"languages": ["en"], "decontaminate_against": str(questions)}
    account = prepare("pretrain", file, tokenizer, clean=clean).report.sources[0]
    assert dict(account.dropped) == {"contaminated by the evaluation set": 1}


def test_a_row_that_gives_several_examples_is_drawn_as_one_row(tmp_path: Path, tokenizer: Tokenizer) -> None:
    turns = [{"role": role, "content": f"{role} {n} says a few words"} for n in range(6) for role in ("user", "assistant")]
    rows = [{"messages": [{"role": "system", "content": f"row {n}"}, *turns]} for n in range(9)]
    source = {"path": str(jsonl(tmp_path / "a.jsonl", rows)), "max_rows": 4}
    data = prepare("sft", [source], tokenizer, max_seq_len=128, truncation="split")
    (summary,) = data.as_dict()["mixture"]
    assert summary["rows"] == 4 and summary["examples"] > 4
    examples_per_row = np.bincount(data.train.examples.row_numbers())
    assert summary["examples"] == 4 * examples_per_row[0]


def test_a_validation_source_may_only_limit_its_rows(tmp_path: Path, tokenizer: Tokenizer) -> None:
    file, other = jsonl(tmp_path / "a.jsonl", documents(40)), jsonl(tmp_path / "b.jsonl", documents(40, seed=5))
    dataset = prepare("pretrain", file, tokenizer, validation=[{"path": str(other), "max_rows": 3}])
    assert dataset.report.sources[1].rows == 3
    with pytest.raises(FledgeError, match=r"validation\.0: token_fraction, ratio, max_tokens and repeat"):
        prepare("pretrain", file, tokenizer, validation=[{"path": str(other), "repeat": 3}])


def test_a_duplicate_is_dropped_with_both_locations(tmp_path: Path, tokenizer: Tokenizer) -> None:
    file = jsonl(tmp_path / "a.jsonl", documents(40))
    account = prepare("pretrain", file, tokenizer).report.sources[0]
    assert (account.rows, account.used_rows, dict(account.dropped)) == (43, 40, {"exact duplicate": 3})
    assert account.first_events["exact duplicate"][0]["where"].endswith("a.jsonl:41")
    assert account.first_events["exact duplicate"][0]["detail"].endswith("a.jsonl:1")
    kept = prepare("pretrain", file, tokenizer, clean={"exact_duplicates": False}).report.sources[0]
    assert kept.used_rows == 43


def test_training_rows_with_a_question_of_the_validation_file_are_dropped(tmp_path: Path, tokenizer: Tokenizer) -> None:
    question = "How many legs do three spiders and two birds have when they stand together on one long branch?"
    rows = [{"prompt": f"{question}", "response": f"answer {n}"} for n in range(2)]
    rows += [{"prompt": f"What is {n} and {n}?", "response": str(2 * n)} for n in range(20)]
    held_out = jsonl(tmp_path / "v.jsonl", [{"prompt": question, "response": "28"}])
    file = jsonl(tmp_path / "a.jsonl", rows)
    train, validation = prepare("sft", file, tokenizer, max_seq_len=256, validation=str(held_out)).report.sources
    assert dict(train.dropped) == {"contaminated by the evaluation set": 2}
    assert (validation.split, validation.used_rows, validation.validation_rows) == ("validation", 1, 1)


def test_more_dropped_rows_than_allowed_are_an_error_with_the_reasons(tmp_path: Path, tokenizer: Tokenizer) -> None:
    file = jsonl(tmp_path / "a.jsonl", [*documents(40), b"{broken"])
    with pytest.raises(FledgeError) as caught:
        prepare("pretrain", file, tokenizer, max_drop_fraction="1%")
    assert "4 of the 44 rows" in caught.value.text() and "3 exact duplicate, 1 invalid JSON" in caught.value.text()
    prepare("pretrain", file, tokenizer, max_drop_fraction="10%")


row_values = st.one_of(
    st.fixed_dictionaries({"text": st.text(max_size=40)}),
    st.fixed_dictionaries({"text": st.sampled_from(["twice " * 12, "thrice " * 14])}),
    st.just(None), st.integers(), st.fixed_dictionaries({"other": st.text(max_size=3)}),
)  # fmt: skip


@given(st.lists(row_values, min_size=1, max_size=25), st.booleans(), st.sampled_from([0, 0.3]))
@settings(max_examples=40, deadline=None)
def test_totals_add_up_for_any_rows(
    tmp_path_factory: pytest.TempPathFactory, rows: list[object], exact: bool, validation: float
) -> None:
    folder = tmp_path_factory.mktemp("rows")
    file = folder / "a.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"text": WORDS[0] + " is a document that stays " * 4}]))
    tokenizer = train_tokenizer(["a b c"], 300)
    try:
        data = prepare("pretrain", file, tokenizer, validation=validation, clean={"exact_duplicates": exact})
    except FledgeError as error:
        assert any(words in error.text() for words in ("no training example is left", "none of", "usable row"))
        return
    (account,) = data.report.sources
    assert account.rows == len(rows) + 1 == account.used_rows + account.dropped_rows
    held_out = data.validation.examples.count if data.validation else 0
    assert data.train.examples.count + held_out == account.used_rows
    assert account.validation_rows == held_out
    assert data.train.batch(0, len(data.train)).num_target_tokens == data.train.num_target_tokens
