"""Conversations longer than the context are cut by the truncation policy of the recipe."""

import re
from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fledge.data.encoding.rendering import split_rounds
from fledge.data.parsing.items import Conversation
from fledge.data.row_events import RowEvent
from fledge.tokenizer import Message, TemplateError, Tokenizer
from tests.support.conversations import (
    CONFIG,
    KINDS,
    amount,
    answer_texts,
    conversation_of,
    conversations,
    encode,
    fitting,
    reasons,
    trained,
)


@settings(max_examples=60)
@given(item=conversations(), kind=st.sampled_from(KINDS), context=st.integers(8, 160))
def test_keep_recent_keeps_as_many_of_the_newest_rounds_as_fit(
    tokenizers: dict[str, Tokenizer], item: Conversation, kind: str, context: int
) -> None:
    """Comparison with a loop that leaves out one more round until the rest fits."""
    tokenizer = tokenizers[kind]
    item = Conversation(tuple(replace(message, weight=None) for message in item.messages), item.tools)
    encoded = encode(item, tokenizer, replace(CONFIG, max_seq_len=context))
    head, rounds = split_rounds(item.messages)
    assert [*head, *(message for turns in rounds for message in turns)] == list(item.messages)
    kept, tokens, weights = 0, [], []
    for first in range(len(rounds)):
        kept = first
        try:
            tokens, weights = tokenizer.encode_conversation([*head, *(m for r in rounds[first:] for m in r)], item.tools)
        except TemplateError:
            assert reasons(encoded, "dropped") == ["the chat template refuses it"]
            return
        if np.flatnonzero(weights)[-1] < context + 1:
            break
    lost = int(np.flatnonzero(weights)[-1]) - context
    tokens, weights = fitting(tokenizer, [*head, *(m for r in rounds[kept:] for m in r)], item.tools, context)
    if not any(weights[1:]):
        assert reasons(encoded, "dropped") == ["prompt longer than the context"]
        return
    (((kept_tokens, kept_weights),),) = encoded.examples
    assert kept_tokens.tolist() == tokens
    assert kept_weights.tolist() == weights
    assert amount(encoded, "shortened") == kept
    assert amount(encoded, "truncated") == max(0, lost)


@settings(max_examples=60)
@given(item=conversations(weights=False), kind=st.sampled_from(KINDS), context=st.integers(16, 160))
def test_split_trains_every_answer_exactly_once(
    tokenizers: dict[str, Tokenizer], item: Conversation, kind: str, context: int
) -> None:
    tokenizer = tokenizers[kind]
    encoded = encode(item, tokenizer, replace(CONFIG, max_seq_len=context, truncation="split"))
    texts = [trained(tokenizer, example[0]) for example in encoded.examples]
    if not encoded.events or not {"dropped", "truncated", "shortened"} & {event.state for event in encoded.events}:
        assert "".join(texts) == "".join(answer_texts(tokenizer, item.messages, item.tools))
    ends = [int(number) for text in texts for number in re.findall(r"#(\d)\.", text)]
    assert ends == sorted(set(ends))
    assert amount(encoded, "split") == (len(texts) if len(texts) > 1 else 0)
    if texts and len(texts) > 1 and item.messages[0].role == "system":
        prompts = [tokenizer.decode(tokens.tolist()) for ((tokens, _),) in encoded.examples]
        assert all(item.messages[0].content in prompt for prompt in prompts)


@settings(max_examples=60)
@given(item=conversations(weights=False), kind=st.sampled_from(KINDS), context=st.integers(16, 160))
def test_split_fills_each_example_with_as_many_rounds_as_fit(
    tokenizers: dict[str, Tokenizer], item: Conversation, kind: str, context: int
) -> None:
    """Comparison with a loop that adds one more round until the example does not fit."""
    tokenizer = tokenizers[kind]
    encoded = encode(item, tokenizer, replace(CONFIG, max_seq_len=context, truncation="split"))
    if reasons(encoded, "dropped") == ["the chat template refuses it"]:
        return
    head, rounds = split_rounds(item.messages)

    def encoded_rounds(first: int, stop: int) -> tuple[list[int], list[float]]:
        return tokenizer.encode_conversation([*head, *(m for turns in rounds[first:stop] for m in turns)], item.tools)

    expected, first = [], 0
    while first < len(rounds):
        stop = first + 1
        while stop < len(rounds) and np.flatnonzero(encoded_rounds(first, stop + 1)[1])[-1] <= context:
            stop += 1
        messages = [*head, *(m for turns in rounds[first:stop] for m in turns)]
        tokens, weights = fitting(tokenizer, messages, item.tools, context)
        if any(weights[1:]):
            expected.append((tokens, weights))
        first = stop
    assert [(t.tolist(), w.tolist()) for ((t, w),) in encoded.examples] == expected


@settings(max_examples=60)
@given(item=conversations(weights=False), kind=st.sampled_from(KINDS), context=st.integers(8, 160))
def test_keep_start_keeps_the_beginning_and_counts_what_is_lost(
    tokenizers: dict[str, Tokenizer], item: Conversation, kind: str, context: int
) -> None:
    tokenizer = tokenizers[kind]
    encoded = encode(item, tokenizer, replace(CONFIG, max_seq_len=context, truncation="keep_start"))
    if reasons(encoded, "dropped") == ["the chat template refuses it"]:
        return
    _, weights = tokenizer.encode_conversation(item.messages, item.tools)
    tokens, kept = fitting(tokenizer, list(item.messages), item.tools, context)
    for ((kept_tokens, kept_weights),) in encoded.examples:
        assert kept_tokens.tolist() == tokens
        assert kept_weights.tolist() == kept
        assert amount(encoded, "truncated") == max(0, int(np.flatnonzero(weights)[-1]) - context)


def test_keep_start_counts_the_answers_that_are_cut_or_lost(chatml: Tokenizer) -> None:
    item = conversation_of("one", "two", "three", "four")
    tokens, _ = chatml.encode_conversation(item.messages)
    second = len(chatml.encode_conversation(item.messages[:4])[0])
    config = replace(CONFIG, max_seq_len=second - 4, truncation="keep_start")
    (event,) = encode(item, chatml, config).events
    assert event.detail.startswith("3 of 4 answers cut or lost")
    assert event.amount == len(tokens) - 1 - (config.max_seq_len + 1)  # the line break after the last end token is no loss


def test_a_single_round_that_is_too_long_is_cut_on_the_right(chatml: Tokenizer) -> None:
    item = conversation_of("short", "long " * 50)
    encoded = encode(item, chatml, CONFIG)
    (event, cut) = encoded.events
    assert event == RowEvent("shortened", "oldest turns left out", "1 of 2 rounds", 1)
    assert (cut.state, cut.reason) == ("truncated", "answer cut to the context")
    ((tokens, weights),) = encoded.examples[0]
    assert len(tokens) == CONFIG.max_seq_len + 1
    assert weights[-1] == 1
    assert chatml.eot_id not in tokens[weights > 0]


def test_split_cuts_or_leaves_out_a_round_that_is_too_long_and_keeps_the_others(chatml: Tokenizer) -> None:
    question = Message("user", "why " * 100)
    item = Conversation(
        (*conversation_of("a").messages, question, Message("assistant", "b"), *conversation_of("c", "d " * 80).messages)
    )
    encoded = encode(item, chatml, replace(CONFIG, truncation="split"))
    texts = [trained(chatml, example[0]) for example in encoded.examples]
    assert texts[:2] == ["a<|im_end|>", "c<|im_end|>"]
    assert ("d " * 80).startswith(texts[2])
    left_out = RowEvent("shortened", "rounds left out: prompt longer than the context", "1 of 4 rounds", 1)
    assert left_out in encoded.events
    assert reasons(encoded, "truncated") == ["answer cut to the context"]
    assert amount(encoded, "split") == 3


def test_a_line_break_after_the_last_end_token_costs_no_round(chatml: Tokenizer) -> None:
    item = conversation_of("one", "two", "three")
    tokens, weights = chatml.encode_conversation(item.messages)
    assert weights[-1] == 0
    encoded = encode(item, chatml, replace(CONFIG, max_seq_len=len(tokens) - 2))
    assert encoded.events == ()
    assert len(encoded.examples[0][0][0]) == len(tokens) - 1


def test_a_prompt_that_leaves_no_room_is_dropped(chatml: Tokenizer) -> None:
    item = Conversation((Message("user", "why " * 100), Message("assistant", "because")))
    for policy in ("keep_recent", "keep_start", "split"):
        encoded = encode(item, chatml, replace(CONFIG, truncation=policy))
        assert reasons(encoded, "dropped") == ["prompt longer than the context"]


def test_tool_calls_and_their_results_stay_with_their_question() -> None:
    roles = [
        "system",
        "user",
        "assistant",
        "tool",
        "tool",
        "assistant",
        "user",
        "user",
        "assistant",
        "tool",
        "user",
        "assistant",
    ]
    head, rounds = split_rounds([Message(role, f"{number}") for number, role in enumerate(roles)])
    assert [message.content for message in head] == ["0"]
    assert [[message.content for message in turns] for turns in rounds] == [list("12345"), [*"6789", "10", "11"]]
