"""Items become training examples: what fits is kept, what does not fit is an event."""

from collections.abc import Iterator
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fledge.data.encoding.dialogues import encode_dialogues
from fledge.data.encoding.documents import encode_documents
from fledge.data.encoding.examples import EncodingConfig
from fledge.data.formats import FORMATS
from fledge.data.parsing.items import Conversation, Document
from fledge.recipe.schema import AugmentConfig, PreferenceStage, PretrainStage, SftStage
from fledge.tokenizer import Message, Tokenizer
from tests.support.conversations import (
    CONFIG,
    KINDS,
    TEXT,
    answer_texts,
    conversation_of,
    conversations,
    encode,
    reasons,
    trained,
)


@settings(max_examples=100)
@given(
    item=conversations(), kind=st.sampled_from(KINDS), context=st.integers(8, 160),
    policy=st.sampled_from(["keep_recent", "keep_start", "split"]), train_on_turns=st.sampled_from(["all", "last"]),
)  # fmt: skip
def test_every_conversation_gives_valid_examples_or_a_reason(
    tokenizers: dict[str, Tokenizer], item: Conversation, kind: str, context: int, policy: str, train_on_turns: str
) -> None:
    tokenizer = tokenizers[kind]
    config = replace(CONFIG, max_seq_len=context, truncation=policy, train_on_turns=train_on_turns)
    encoded = encode(item, tokenizer, config)
    assert bool(encoded.examples) != bool(reasons(encoded, "dropped"))
    allowed = {1.0 if message.weight is None else message.weight for message in item.messages} | {0.0, 1.0}
    for example in encoded.examples:
        ((tokens, weights),) = example
        assert (tokens.dtype, weights.dtype) == (np.int32, np.float32)
        assert len(tokens) == len(weights) <= context + 1
        assert weights[1:].any()
        assert set(weights.tolist()) <= allowed
        written = trained(tokenizer, example[0]).rstrip("\ufffd")
        texts = answer_texts(tokenizer, item.messages, item.tools)
        weighted = [m.weight != 0 for m in item.messages if m.role == "assistant"]
        trained_answers = [text for text, is_trained in zip(texts, weighted, strict=True) if is_trained]
        assert written in "".join(trained_answers if train_on_turns == "all" else texts[-1:])
    if train_on_turns == "last" and not reasons(encoded, "truncated"):
        expected = answer_texts(tokenizer, item.messages, item.tools)[-1:] if encoded.examples else []
        assert [trained(tokenizer, example[0]) for example in encoded.examples] == expected


def test_an_item_that_the_template_rejects_is_dropped_with_its_message(inst: Tokenizer) -> None:
    item = Conversation((Message("user", "a"), Message("assistant", "b"), Message("tool", "c"), Message("assistant", "d")))
    (event,) = encode(item, inst, CONFIG).events
    assert (event.state, event.reason) == ("dropped", "the chat template refuses it")
    assert "does not support role 'tool'" in event.detail


@given(texts=st.lists(TEXT, max_size=8), least=st.integers(0, 12))
def test_documents_are_kept_whole_or_dropped_as_too_short(inst: Tokenizer, texts: list[str], least: int) -> None:
    config = replace(CONFIG, min_tokens=least, max_seq_len=8)
    for text, encoded in zip(texts, encode_documents(map(Document, texts), inst, config), strict=True):
        if len(inst.encode(text)) < max(1, least):
            assert reasons(encoded, "dropped") == ["too short"]
        else:
            (((tokens, weights),),) = encoded.examples
            assert tokens.tolist() == inst.encode_document(text)
            assert weights.tolist() == [1.0] * len(tokens)


def test_conversations_below_min_tokens_are_dropped(chatml: Tokenizer) -> None:
    item = conversation_of("a")
    size = len(chatml.encode_conversation(item.messages)[0])
    assert encode(item, chatml, replace(CONFIG, min_tokens=size)).examples
    assert reasons(encode(item, chatml, replace(CONFIG, min_tokens=size + 1)), "dropped") == ["too short"]


def test_text_without_a_utf8_form_is_dropped_and_its_neighbours_are_kept(chatml: Tokenizer) -> None:
    broken, fine = conversation_of("a\ud800"), conversation_of("b")
    documents = [Document("good text"), Document("bad \udc00 text"), Document("more text")]
    texts = [reasons(encoded, "dropped") for encoded in encode_dialogues([fine, broken, fine], chatml, CONFIG)]
    assert texts == [[], ["not valid Unicode"], []]
    texts = [reasons(e, "dropped") for e in encode_documents(documents, chatml, CONFIG)]
    assert texts == [[], ["not valid Unicode"], []]


@pytest.mark.parametrize("kind", KINDS)
def test_an_item_is_encoded_the_same_in_a_batch_and_alone(tokenizers: dict[str, Tokenizer], kind: str) -> None:
    items = [conversation_of(*(f"{number} {answer}" for answer in range(number % 4 + 1))) for number in range(40)]
    config = replace(CONFIG, max_seq_len=40, truncation="split")
    together = list(encode_dialogues(items, tokenizers[kind], config))
    for item, encoded in zip(items, together, strict=True):
        alone = encode(item, tokenizers[kind], config)
        assert alone.events == encoded.events
        for ours, theirs in zip(alone.examples, encoded.examples, strict=True):
            assert all(np.array_equal(a, b) for a, b in zip(ours[0], theirs[0], strict=True))


def test_items_are_encoded_in_batches_of_limited_size(chatml: Tokenizer) -> None:
    read = 0

    def endless() -> Iterator[Document]:
        nonlocal read
        while True:
            read += 1
            yield Document("春眠不觉晓" * (20_000 if read > 2000 else 1))

    stream = encode_documents(endless(), chatml, replace(CONFIG, min_tokens=0))
    assert all(encoded.examples for encoded in islice(stream, 1500))
    assert read == 2000
    assert all(encoded.examples for encoded in islice(stream, 501))
    assert 2001 < read < 2100  # fewer at once where texts are long


def test_the_format_and_the_recipe_decide_how_a_stage_is_encoded() -> None:
    data = {"train": "x.jsonl", "max_seq_len": 99, "train_on_turns": "last", "truncation": "split"}
    stages = [
        PretrainStage(kind="pretrain", data=data),
        SftStage(kind="sft", data=data),
        PreferenceStage(kind="preference", data=data),
    ]
    configs = [FORMATS[stage.kind].encoding_config(stage.data, 3) for stage in stages]
    assert [config.min_tokens for config in configs] == [10, 0, 0]
    assert configs[1] == EncodingConfig(
        max_seq_len=99, truncation="split", train_on_turns="last", min_tokens=0, augment=AugmentConfig(), seed=3
    )
    named = SftStage(kind="sft", data={**data, "clean": {"min_tokens": 5}, "augment": {"noise": 0.5}})
    config = FORMATS["sft"].encoding_config(named.data, 3)
    assert (config.min_tokens, config.augment) == (5, AugmentConfig(noise=0.5))
