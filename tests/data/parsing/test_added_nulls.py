"""Null keys that a columnar file adds to tool arguments are left out, and told; a JSON file's own nulls stay."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet

from fledge.data.parsing.items import Conversation
from fledge.data.parsing.messages import ADDED_NULLS
from fledge.data.parsing.rows import parse_conversation, read_row
from fledge.recipe.schema import Source
from tests.support.data_files import values


def row(name: str, arguments: dict[str, Any]) -> dict[str, Any]:
    """A row whose assistant calls one tool; its description says which arguments there are."""
    call = {"type": "function", "function": {"name": name, "arguments": arguments}}
    tool = {"type": "function", "function": {"name": name, "parameters": {"properties": {key: {} | {"type": "string"}
                                                                                         for key in arguments}}}}  # fmt: skip
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": None, "tool_calls": [call]},
             {"role": "tool", "content": "r"}, {"role": "assistant", "content": "!"}]  # fmt: skip
    return {"messages": turns, "tools": [tool]}


ROWS = [row("weather", {"city": "Oslo"}), row("calc", {"expr": "2*3", "options": [{"digits": 1}]})]


def read(value: Any) -> tuple[dict[str, Any], list[Any], list[str]]:
    """(arguments of the call, tools, reasons of the events) of a row."""
    parsed = read_row(value, Source(path="x"), parse_conversation)
    assert isinstance(parsed.item, Conversation) and parsed.item.tools
    arguments = json.loads(parsed.item.messages[1].tool_calls[0].arguments)
    return arguments, json.loads(parsed.item.tools), [event.reason for event in parsed.events]


def test_nulls_that_parquet_added_are_left_out_and_told(tmp_path: Path) -> None:
    parquet.write_table(pa.Table.from_pylist(ROWS), tmp_path / "rows.parquet")
    for original, stored in zip(ROWS, values(tmp_path / "rows.parquet"), strict=True):
        arguments, tools, reasons = read(stored)
        assert arguments == original["messages"][1]["tool_calls"][0]["function"]["arguments"]
        assert tools == original["tools"]
        assert reasons == [ADDED_NULLS]


def test_explicit_nulls_of_json_stay(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(json.dumps(row("calc", {"expr": None, "digits": 1})))
    (stored,) = values(tmp_path / "rows.jsonl")
    assert read(stored)[0] == {"expr": None, "digits": 1}
    assert read(stored)[2] == []
