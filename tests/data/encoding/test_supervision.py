"""Real conversations of every chat format: exactly the answers and their end tokens are trained."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as parquet
import pytest
from transformers import AutoTokenizer

from fledge.data.encoding.dialogues import encode_dialogues
from fledge.data.encoding.examples import Encoded, EncodingConfig
from fledge.data.parsing.items import Conversation, Item
from fledge.recipe.schema import AugmentConfig, Source
from fledge.tokenizer import Tokenizer, load_tokenizer
from tests.support.parsing import parse_row

ROWS = 50
CONFIG = EncodingConfig(
    max_seq_len=100_000, truncation="keep_recent", train_on_turns="all", min_tokens=0, augment=AugmentConfig(), seed=1
)
Row = dict[str, Any]


def call_text(value: str) -> str:
    """A tool call as ChatML and minimind's template write it."""
    calls = json.loads(value)
    return "\n".join(
        f"<tool_call>\n{json.dumps({key: call[key] for key in ('name', 'arguments')}, ensure_ascii=False)}\n</tool_call>"
        for call in (calls if isinstance(calls, list) else [calls])
    )


def glaive_answers(row: Row) -> list[list[str]]:
    """The answers of a glaive row: texts of `gpt` and calls of `function_call`, as one sequence."""
    turns = row["conversations"]
    texts = {"gpt": lambda value: value, "function_call": call_text}
    return [[texts[turn["from"]](turn["value"]) for turn in turns if turn["from"] in texts]]


# file -> (kind of item, the answers that each sequence of a row trains)
FORMATS: dict[str, tuple[str, Callable[[Row], list[list[str]]]]] = {
    "llamafactory/alpaca_en_demo.json": ("sft", lambda row: [[row["output"]]]),
    "llamafactory/alpaca_zh_demo.json": ("sft", lambda row: [[row["output"]]]),
    "llamafactory/identity.json": ("sft", lambda row: [[row["output"]]]),
    "llamafactory/glaive_toolcall_en_demo.json": ("sft", glaive_answers),
    "llamafactory/glaive_toolcall_zh_demo.json": ("sft", glaive_answers),
    "gsm8k/train.jsonl": ("sft", lambda row: [[row["answer"]]]),
    "chatlm/my_train_dataset_3k.parquet": ("sft", lambda row: [[row["response"]]]),
    "llamafactory/kto_en_demo.json": ("label", lambda row: [[row["messages"][-1]["content"]]]),
    "llamafactory/dpo_en_demo.json": ("preference", lambda row: [[row[side]["value"]] for side in ("chosen", "rejected")]),
    "llamafactory/dpo_zh_demo.json": ("preference", lambda row: [[row[side]["value"]] for side in ("chosen", "rejected")]),
}
WITH_TOOLS = [file for file in FORMATS if "glaive" in file]


def raw_rows(file: Path) -> list[Row]:
    """The first rows of a file."""
    if file.suffix == ".parquet":
        return parquet.read_table(file).slice(0, ROWS).to_pylist()
    text = file.read_text(encoding="utf-8")
    return json.loads(text)[:ROWS] if file.suffix == ".json" else [json.loads(line) for line in text.splitlines()[:ROWS]]


def items_of(rows: list[Row], kind: str) -> list[Item]:
    """The rows parsed as items of this kind."""
    return [parse_row(row, Source(path="real"), kind) for row in rows]


def trained(encoded: Encoded, tokenizer: Tokenizer) -> list[str]:
    """The text of the trained tokens of each sequence of the only example."""
    (example,) = encoded.examples
    return [tokenizer.decode(tokens[1:][weights[1:] > 0].tolist()) for tokens, weights in example]


def joined(answers: list[str], end: str, strip: str = "", before: str = "") -> str:
    """The answers joined, each between `before` and the end token; `strip` is removed from their beginning."""
    return "".join(before + (answer.lstrip(strip) if strip else answer) + end for answer in answers)


@pytest.fixture(scope="module")
def minimind(shared_data: Path) -> Tokenizer:
    """The tokenizer of minimind, with its chat template."""
    return load_tokenizer(shared_data / "tokenizers" / "minimind")


@pytest.mark.parametrize("file", FORMATS)
@pytest.mark.parametrize("template", ["chatml", "inst", "minimind"])
def test_exactly_the_answers_and_their_end_tokens_are_trained(
    request: pytest.FixtureRequest, shared_data: Path, template: str, file: str
) -> None:
    tokenizer: Tokenizer = request.getfixturevalue(template)
    kind, answers_of = FORMATS[file]
    rows = raw_rows(shared_data / file)
    assert len(rows) == ROWS
    results = list(encode_dialogues(items_of(rows, kind), tokenizer, CONFIG))
    end = tokenizer.decode([tokenizer.eot_id])
    for row, encoded in zip(rows, results, strict=True):
        if template == "inst" and file in WITH_TOOLS and json.loads(row["tools"]):
            assert [event.reason for event in encoded.events] == ["the chat template refuses it"]
            continue
        assert encoded.events == ()
        strip = "\n" if template == "minimind" else ""  # its template takes line breaks off the beginning of an answer
        before = " " if template == "inst" else ""
        assert trained(encoded, tokenizer) == [joined(answers, end, strip, before) for answers in answers_of(row)]


def openai_turns(item: Conversation) -> list[dict[str, Any]]:
    """Messages in the form that transformers takes."""
    turns: list[dict[str, Any]] = []
    for message in item.messages:
        turns.append({"role": message.role, "content": message.content})
        if message.tool_calls:
            calls = ({"name": call.name, "arguments": json.loads(call.arguments)} for call in message.tool_calls)
            turns[-1]["tool_calls"] = [{"type": "function", "function": call} for call in calls]
    return turns


@pytest.mark.parametrize("file", [file for file, (kind, _) in FORMATS.items() if kind == "sft"])
def test_the_whole_text_is_what_transformers_renders_with_the_same_tokenizer(
    shared_data: Path, minimind: Tokenizer, file: str
) -> None:
    theirs = AutoTokenizer.from_pretrained(shared_data / "tokenizers" / "minimind")
    items = items_of(raw_rows(shared_data / file), "sft")
    for item, encoded in zip(items, encode_dialogues(items, minimind, CONFIG), strict=True):
        assert isinstance(item, Conversation)
        tools = json.loads(item.tools) if item.tools else None
        text = theirs.apply_chat_template(openai_turns(item), tools=tools, tokenize=False)
        ((tokens, weights),) = encoded.examples[0]
        assert minimind.decode(tokens.tolist()) == text
        first = int(np.flatnonzero(weights)[0])
        answered = next(i for i, message in enumerate(item.messages) if message.role == "assistant")
        prompt = theirs.apply_chat_template(
            openai_turns(item)[:answered], tools=tools, tokenize=True, add_generation_prompt=True, return_dict=False
        )
        assert tokens[:first].tolist() == prompt


@pytest.mark.parametrize("policy", ["keep_recent", "keep_start", "split"])
def test_every_real_pair_and_conversation_is_used_or_dropped_at_any_length(
    shared_data: Path, minimind: Tokenizer, policy: str
) -> None:
    for file, kind in (("dpo_en_demo", "preference"), ("glaive_toolcall_zh_demo", "sft")):
        items = items_of(raw_rows(shared_data / "llamafactory" / f"{file}.json"), kind)
        for context in (64, 256, 1024):
            config = replace(CONFIG, max_seq_len=context, truncation=policy)
            results = list(encode_dialogues(items, minimind, config))
            assert len(results) == ROWS
            for encoded in results:
                dropped = [event for event in encoded.events if event.state == "dropped"]
                assert bool(encoded.examples) != bool(dropped)
                assert all(len(tokens) <= context + 1 for example in encoded.examples for tokens, _ in example)
                assert all(weights[1:].any() for example in encoded.examples for _, weights in example)
