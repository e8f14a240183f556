"""Rows of chat data in the usual schemas, and the messages that they contain."""

from typing import Any

import pytest

from fledge.data.parsing.columns import RowError
from fledge.recipe.schema import Source
from fledge.tokenizer import Message
from tests.support.parsing import parse_row

KINDS = ("pretrain", "sft", "preference", "label")
Q, A, S = Message("user", "q"), Message("assistant", "a"), Message("system", "s")
TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
FROM = [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]
GOOD, BAD = ({"role": "assistant", "content": text} for text in ("good", "bad"))
FROM_GOOD, FROM_BAD = ({"from": "gpt", "value": text} for text in ("good", "bad"))
MORE = [*TURNS, {"role": "user", "content": "more"}]
DESCRIBED = [{"name": "add", "parameters": {"数": [1.5, None]}}]


def source(**keys: Any) -> Source:
    """A source with these keys."""
    return Source(path="x", **keys)


def call(name: str = "add", arguments: Any = '{"x": 1}', **more: Any) -> dict:
    """A tool call in OpenAI's form."""
    return {"type": "function", "function": {"name": name, "arguments": arguments}, **more}


def reason(row: Any, kind: str, **keys: Any) -> tuple[str, str]:
    """Reason and detail of the RowError for this row."""
    with pytest.raises(RowError) as caught:
        parse_row(row, source(**keys), kind)
    return caught.value.reason, caught.value.detail
