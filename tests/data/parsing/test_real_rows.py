"""Every row of the real files is parsed."""

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fledge.data.parsing.columns import RowError
from fledge.data.parsing.detection import detect_item_type, schema_name
from fledge.data.parsing.items import (
    Conversation,
    deserialize,
    serialize,
)
from fledge.data.parsing.row_statistics import placeholders
from tests.support.chat_rows import (
    source,
)
from tests.support.parsing import parse_row

REAL = [
    ("llamafactory/alpaca_en_demo.json", {}, "sft", "alpaca", 999),
    ("llamafactory/alpaca_zh_demo.json", {}, "sft", "alpaca", 1000),
    ("llamafactory/identity.json", {}, "sft", "alpaca", 91),
    ("llamafactory/c4_demo.jsonl", {}, "pretrain", "text", 300),
    ("llamafactory/wiki_demo.txt", {}, "pretrain", "text", 30),
    ("llamafactory/dpo_en_demo.json", {}, "preference", "ranked", 300),
    ("llamafactory/dpo_zh_demo.json", {}, "preference", "ranked", 300),
    ("llamafactory/kto_en_demo.json", {}, "label", "kto", 300),
    ("llamafactory/glaive_toolcall_en_demo.json", {}, "sft", {"tool calls": 191, "sharegpt (from/value)": 109}, 300),
    ("llamafactory/glaive_toolcall_zh_demo.json", {}, "sft", {"tool calls": 200, "sharegpt (from/value)": 100}, 300),
    ("chatlm/my_train_dataset_3k.parquet", {}, "sft", "prompt/response", 3000),
    ("chatlm/my_valid_dataset_1k.parquet", {}, "sft", "prompt/response", 1000),
    ("chatlm/my_test_dataset_2k.parquet", {}, "sft", "prompt/response", 2000),
    ("poetry/poet.tang.0.json", {"text": "paragraphs"}, "pretrain", "text", 1000),
    ("gsm8k/train.jsonl", {}, "sft", "prompt/response", 7473),
    ("gsm8k/test.jsonl", {}, "sft", "prompt/response", 1319),
    ("blimp/wh_island.jsonl", {"text": "sentence_good"}, "pretrain", "text", 1000),
    ("shakespeare/input.txt", {}, "pretrain", "text", 32777),
]


def rows_of(file: Path) -> Iterator[Any]:
    """The rows of a file, read without fledge."""
    if file.suffix == ".json":
        yield from json.loads(file.read_text(encoding="utf-8"))
    elif file.suffix == ".parquet":
        yield from pytest.importorskip("pyarrow.parquet").read_table(file).to_pylist()
    else:
        for line in file.read_text(encoding="utf-8").split("\n"):
            if line.strip():
                yield json.loads(line) if file.suffix == ".jsonl" else {"text": line}


@pytest.mark.parametrize(("name", "columns", "kind", "schema", "count"), REAL)
def test_every_row_of_every_real_file_is_parsed(
    shared_data: Path, name: str, columns: dict, kind: str, schema: str | dict, count: int
) -> None:
    read_as, schemas = source(columns=columns), Counter()
    for row in rows_of(shared_data / name):
        item = parse_row(row, read_as, kind)
        assert deserialize(serialize(item)) == item
        schemas[schema_name(row, read_as)] += 1
        assert detect_item_type(row, read_as) is type(item)
    assert schemas == ({schema: count} if isinstance(schema, str) else schema)
    assert sum(schemas.values()) == count


def test_real_labels_tool_calls_and_placeholders_are_detected(shared_data: Path) -> None:
    folder = shared_data / "llamafactory"
    reasons = Counter()
    for row in rows_of(folder / "kto_en_demo.json"):
        try:
            parse_row(row, source(), "sft")
        except RowError as error:
            reasons[error.reason] += 1
    assert reasons == {"labelled undesirable": 150}

    rows = list(rows_of(folder / "glaive_toolcall_zh_demo.json"))
    items = [parse_row(row, source(), "sft") for row in rows]
    calls = [call for item in items if isinstance(item, Conversation) for turn in item.messages for call in turn.tool_calls]
    written = [turn["value"] for row in rows for turn in row["conversations"] if turn["from"] == "function_call"]
    assert len(calls) == 216
    assert [{"name": c.name, "arguments": json.loads(c.arguments)} for c in calls] == [json.loads(text) for text in written]

    counts = Counter(
        name for row in rows_of(folder / "identity.json") for name in placeholders(parse_row(row, source(), "sft"))
    )
    assert counts == {"{{name}}": 77, "{{author}}": 60}
    for name in ("gsm8k/train.jsonl", "llamafactory/alpaca_en_demo.json"):
        assert not any(placeholders(parse_row(row, source(), "sft")) for row in rows_of(shared_data / name))
