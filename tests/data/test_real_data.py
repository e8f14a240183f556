"""Real conversations, real preferences: what is trained is the answers and their end tokens, decoded and compared."""

import json
from pathlib import Path

import pyarrow.parquet as parquet
import pytest

from fledge.data import StageDataset
from fledge.data.parsing.items import Conversation, PreferencePair
from fledge.tokenizer import Tokenizer, load_tokenizer
from tests.support.sources import items, prepare

CONTEXT = 4096


@pytest.fixture(scope="module", params=["chatml", "inst", "minimind"])
def tokenizer(request: pytest.FixtureRequest, shared_data: Path) -> Tokenizer:
    """A tokenizer with the template chatml, inst or minimind."""
    if request.param == "minimind":
        return load_tokenizer(shared_data / "tokenizers" / "minimind")
    return request.getfixturevalue(request.param)


def first_thirty(path: Path) -> dict:
    """A source of the first thirty rows of a file."""
    return {"path": str(path), "max_samples": 30}


def supervised(data: StageDataset, tokenizer: Tokenizer) -> list[str]:
    """The text that the packed batch trains, sequence by sequence, in the order of the data."""
    batch = data.train.assemble(list(range(len(data.train))))
    texts = {}
    for s in range(batch.num_sequences):
        mine = (batch.sequence_ids == s) & (batch.loss_weights > 0)
        texts[int(s)] = tokenizer.decode(batch.targets[mine].tolist())
    per_example = batch.sequences_per_example
    order = sorted(range(batch.num_sequences), key=lambda s: batch.examples[s // per_example] * per_example + s % per_example)
    return [texts[s] for s in order]


def end_of(tokenizer: Tokenizer) -> str:
    """The text of the end-of-turn token."""
    return tokenizer.decode([tokenizer.eot_id])


def answer_in(tokenizer: Tokenizer, text: str) -> str:
    """An answer as the tokenizer's template trains it: in `inst`, the blank before it belongs to it."""
    return (" " if tokenizer.template.name == "inst" else "") + text + end_of(tokenizer)


def test_alpaca_trains_exactly_the_answers(shared_data: Path, tokenizer: Tokenizer) -> None:
    file = shared_data / "llamafactory" / "alpaca_zh_demo.json"
    data = prepare("sft", first_thirty(file), tokenizer, max_seq_len=CONTEXT)
    rows = json.loads(file.read_text(encoding="utf-8"))[:30]
    assert supervised(data, tokenizer) == [answer_in(tokenizer, row["output"]) for row in rows]
    assert data.report.sources[0].truncated_rows == 0


@pytest.mark.parametrize("name", ["my_train_dataset_3k", "my_valid_dataset_1k", "my_test_dataset_2k"])
def test_chatlm_parquet_trains_exactly_the_answers(shared_data: Path, tokenizer: Tokenizer, name: str) -> None:
    file = shared_data / "chatlm" / f"{name}.parquet"
    data = prepare("sft", first_thirty(file), tokenizer, max_seq_len=CONTEXT)
    rows = parquet.read_table(file).slice(0, 30).to_pylist()
    answers = [row["response"] for row in rows]
    if tokenizer.template.name == "tokenizer":  # minimind's template takes newlines off the beginning of an answer
        answers = [answer.lstrip("\n") for answer in answers]
    assert supervised(data, tokenizer) == [answer_in(tokenizer, answer) for answer in answers]


def test_real_preferences_train_exactly_both_answers(shared_data: Path, tokenizer: Tokenizer) -> None:
    file = shared_data / "llamafactory" / "dpo_zh_demo.json"
    data = prepare("preference", first_thirty(file), tokenizer, max_seq_len=4 * CONTEXT)
    rows = json.loads(file.read_text(encoding="utf-8"))[:30]
    expected = [answer_in(tokenizer, row[side]["value"]) for row in rows for side in ("chosen", "rejected")]
    assert data.report.sources[0].truncated_rows == 0
    assert supervised(data, tokenizer) == expected


def test_every_real_file_is_read_without_a_dropped_row(shared_data: Path) -> None:
    folder = shared_data / "llamafactory"
    assert len(items("sft", folder / "alpaca_en_demo.json")) == 999
    assert len(items("sft", folder / "identity.json")) == 91
    assert len(items("pretrain", folder / "c4_demo.jsonl")) == 300
    assert len(items("pretrain", folder / "wiki_demo.txt")) == 30
    assert len(items("sft", shared_data / "gsm8k" / "test.jsonl")) == 1319
    assert len(items("sft", str(shared_data / "chatlm" / "*.parquet"))) == 6000
    pairs = items("preference", folder / "dpo_en_demo.json")
    assert all(isinstance(pair, PreferencePair) for pair in pairs)
    poetry = {"path": str(shared_data / "poetry" / "poet.tang.0.json"), "columns": {"text": ["title", "paragraphs"]}}
    assert len(items("pretrain", poetry)) == 1000
    assert all(isinstance(item, Conversation) for item in items("sft", folder / "alpaca_zh_demo.json"))


ACCOUNTS = [  # kind, source, rows, dropped
    ("sft", {"path": "llamafactory/alpaca_en_demo.json"}, 999, {"exact duplicate": 14}),
    ("sft", {"path": "llamafactory/alpaca_zh_demo.json"}, 1000, {"exact duplicate": 8}),
    ("sft", {"path": "llamafactory/identity.json"}, 91, {}),
    ("pretrain", {"path": "llamafactory/c4_demo.jsonl"}, 300, {}),
    ("pretrain", {"path": "llamafactory/wiki_demo.txt"}, 30, {}),
    ("preference", {"path": "llamafactory/dpo_en_demo.json"}, 300, {"exact duplicate": 5}),
    ("preference", {"registry": "llamafactory/dataset_info.json", "name": "dpo_zh_demo"}, 300, {"exact duplicate": 11}),
    ("sft", {"path": "llamafactory/kto_en_demo.json"}, 300, {"labelled undesirable": 150}),
    ("kto", {"path": "llamafactory/kto_en_demo.json"}, 300, {}),
    ("sft", {"path": "llamafactory/glaive_toolcall_en_demo.json"}, 300, {"exact duplicate": 35}),
    ("sft", {"path": "llamafactory/glaive_toolcall_zh_demo.json"}, 300, {"exact duplicate": 43}),
    ("sft", {"path": "chatlm/*.parquet"}, 6000, {}),
    ("pretrain", {"path": "poetry/poet.tang.5*.json", "columns": {"text": "paragraphs"}}, None, None),
    ("pretrain", {"path": "shakespeare/input.txt", "documents": "paragraph"}, 7222, {"exact duplicate": 74, "too short": 74}),
    ("sft", {"path": "gsm8k/*.jsonl"}, 8792, {}),
    ("pretrain", {"path": "blimp", "columns": {"text": "sentence_good"}}, 6000, {"too short": 481}),
]


@pytest.mark.parametrize(("kind", "source", "rows", "dropped"), ACCOUNTS)
def test_every_real_file_has_an_account_that_adds_up(
    shared_data: Path, kind: str, source: dict, rows: int | None, dropped: dict | None
) -> None:
    key = "registry" if "registry" in source else "path"
    source = {**source, key: str(shared_data / source[key])}
    minimind = load_tokenizer(shared_data / "tokenizers" / "minimind")
    data = prepare(kind, source, minimind, max_seq_len=4096, clean={})
    (account,) = data.report.sources
    assert account.rows == account.used_rows + account.dropped_rows
    assert account.used_rows == data.train.examples.count
    if rows is not None:
        assert (account.rows, dict(account.dropped)) == (rows, dropped)


def test_unfilled_placeholders_are_noticed(shared_data: Path) -> None:
    minimind = load_tokenizer(shared_data / "tokenizers" / "minimind")
    data = prepare("sft", shared_data / "llamafactory" / "identity.json", minimind)
    (account,) = data.report.sources
    assert account.noticed["unfilled placeholder"] == 85
    assert "{{name}}" in account.first_events["unfilled placeholder"][0]["detail"]
