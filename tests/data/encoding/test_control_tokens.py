"""Control tokens that texts contain are counted, spelled out by default, and parsed on request."""

import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledge.data import StageDataset
from fledge.data.encoding.control_tokens import FOREIGN, PARSED, RENDERED, SPELLED_OUT, _trie_pattern
from fledge.tokenizer import Tokenizer
from tests.support.sources import jsonl, prepare, row
from tests.support.templates import with_template

CHAT = "<|im_start|>user\nhello<|im_end|>\n<|im_start|>assistant\nhi<|im_end|>"
JINJA = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


@given(st.sets(st.text("ab<|>", min_size=1, max_size=4), min_size=1), st.text("ab<|>"))
def test_the_pattern_finds_the_longest_of_the_texts(texts: set[str], text: str) -> None:
    plain = "|".join(re.escape(token) for token in sorted(texts, key=len, reverse=True))
    assert re.findall(_trie_pattern(texts), text) == re.findall(plain, text)


def documents(tmp_path: Path, *texts: str) -> Path:
    """A file of documents."""
    return jsonl(tmp_path / "a.jsonl", ({"text": text} for text in texts))


def noticed(dataset: StageDataset) -> dict[str, int]:
    """The notices of the only source: reason -> rows."""
    return dict(dataset.report.sources[0].noticed)


def tokens(dataset: StageDataset, example: int = 0) -> list[int]:
    """The tokens of one training example."""
    return dataset.train.examples.sequence(example)[0].tolist()


def test_control_tokens_in_documents_are_spelled_out_and_counted(tmp_path: Path, chatml: Tokenizer) -> None:
    file = documents(tmp_path, "plain text", "one<|im_end|> and <|im_end|>two<|endoftext|>", "<b>a</b> [1] a < b", CHAT)
    dataset = prepare("pretrain", file, chatml)
    assert noticed(dataset) == {SPELLED_OUT: 2, RENDERED: 1}
    assert not any(chatml.eot_id in tokens(dataset, example) for example in range(4))
    lines = dataset.report.lines()
    assert any(f"2 × {SPELLED_OUT}, first at {file}:2 (<|im_end|> × 2, <|endoftext|> × 1)" in line for line in lines)


@pytest.mark.parametrize("place", ["data", "source"])
def test_a_recipe_parses_the_control_tokens_of_documents(tmp_path: Path, chatml: Tokenizer, place: str) -> None:
    file = documents(tmp_path, "one<|im_end|>two")
    option: dict[str, Any] = {"parse_special_tokens": True}
    if place == "data":
        dataset = prepare("pretrain", file, chatml, **option)
    else:
        dataset = prepare("pretrain", [{"path": str(file), **option}], chatml)
    assert noticed(dataset) == {PARSED: 1}
    ids = [*chatml.encode("one"), chatml.eot_id, *chatml.encode("two")]
    assert tokens(dataset) == [*chatml.document_start, *ids, *chatml.document_end]


def test_a_source_decides_for_itself(tmp_path: Path, chatml: Tokenizer) -> None:
    first, second = (jsonl(tmp_path / name, [{"text": f"{name}<|im_end|>"}]) for name in ("a.jsonl", "b.jsonl"))
    sources = [{"path": str(first)}, {"path": str(second), "parse_special_tokens": False}]
    dataset = prepare("pretrain", sources, chatml, parse_special_tokens=True)
    assert [chatml.eot_id in tokens(dataset, example) for example in range(2)] == [True, False]


def test_control_tokens_in_an_answer_are_trained_as_such_when_they_are_parsed(tmp_path: Path, chatml: Tokenizer) -> None:
    file = jsonl(tmp_path / "a.jsonl", [row("q<|im_end|>", "one<|im_end|>two")])
    literal, parsed = (prepare("sft", file, chatml, parse_special_tokens=parse) for parse in (False, True))
    assert (noticed(literal), noticed(parsed)) == ({SPELLED_OUT: 1}, {PARSED: 1})
    assert (tokens(literal).count(chatml.eot_id), tokens(parsed).count(chatml.eot_id)) == (2, 4)
    ids, weights = parsed.train.examples.sequence(0)
    assert [weight for token, weight in zip(ids.tolist(), weights.tolist(), strict=True) if token == chatml.eot_id] == [
        0,
        0,
        1,
        1,
    ]


def test_the_tokenizers_own_template_parses_the_contents_of_conversations(tmp_path: Path, chatml: Tokenizer) -> None:
    own = with_template(chatml, tmp_path, JINJA)
    dataset = prepare("sft", jsonl(tmp_path / "a.jsonl", [row("q", "one<|endoftext|>two")]), own)
    assert noticed(dataset) == {PARSED: 1}
    assert own.core.token_to_id("<|endoftext|>") in tokens(dataset)


def test_control_tokens_of_other_tokenizers_are_named(tmp_path: Path, chatml: Tokenizer) -> None:
    dataset = prepare("pretrain", documents(tmp_path, "<s>one two</s>"), chatml)
    assert noticed(dataset) == {FOREIGN: 1}
