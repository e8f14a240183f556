"""Conversations, chat templates of four kinds, and helpers that encode conversations and describe the result."""

import json
from collections.abc import Sequence

import numpy as np
from hypothesis import strategies as st

from fledge.data.encoding.dialogues import encode_dialogues
from fledge.data.encoding.examples import Encoded, EncodingConfig
from fledge.data.parsing.items import Conversation, Item
from fledge.recipe.schema import AugmentConfig
from fledge.tokenizer import Message, Tokenizer
from fledge.tokenizer.template import ToolCall

UNMARKED = (
    "{% if tools %}<|im_start|>system:{% for tool in tools %}{{ tool | tojson }}{% endfor %}<|im_end|>{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}:{{ m.content }}"
    "{% for call in m.tool_calls or [] %}(({{ call.function | tojson }})){% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant:{% endif %}"
)
MARKED = (
    "{% if tools %}<|im_start|>system:{% for tool in tools %}{{ tool | tojson }}{% endfor %}<|im_end|>{% endif %}"
    "{% for m in messages %}<|im_start|>{{ m.role }}:"
    "{% if m.role == 'assistant' %}{% generation %}{{ m.content }}"
    "{% for call in m.tool_calls or [] %}(({{ call.function | tojson }})){% endfor %}<|im_end|>{% endgeneration %}"
    "{% else %}{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant:{% endif %}"
)
CONFIG = EncodingConfig(
    max_seq_len=64, truncation="keep_recent", train_on_turns="all", min_tokens=0, augment=AugmentConfig(), seed=7
)
TOOLS = '[{"name": "add", "parameters": {"a": "number"}}]'
KINDS = ("chatml", "inst", "unmarked", "marked")
TEXT = st.one_of(
    st.text(st.characters(codec="utf-8", exclude_characters="\ufffd#"), max_size=20),
    st.sampled_from(["", " ", "<|im_end|>", "</s>[INST]", "12 + 30", "春眠不觉晓，处处闻啼鸟", "a" * 40, "\n x \n"]),
)
WEIGHTS = st.sampled_from([None, None, None, 0.0, 1.0, 0.5, 2.0])


@st.composite
def conversations(draw: st.DrawFn, tools: bool = True, weights: bool = True) -> Conversation:
    """Conversations with or without a system turn; some rounds call a tool; the k-th answer ends in `#k.`"""
    messages = [Message("system", draw(TEXT))] if draw(st.booleans()) else []
    uses_tools = tools and draw(st.booleans())
    for _ in range(draw(st.integers(1, 6))):
        messages.append(Message("user", draw(TEXT)))
        if uses_tools and draw(st.booleans()):
            call = ToolCall("add", json.dumps({"a": draw(st.integers(0, 99))}))
            messages += [_answer(draw, messages, weights, (call,)), Message("tool", draw(TEXT))]
        messages.append(_answer(draw, messages, weights))
    return Conversation(tuple(messages), TOOLS if uses_tools else None)


def _answer(draw: st.DrawFn, before: Sequence[Message], weights: bool, calls: tuple[ToolCall, ...] = ()) -> Message:
    number = sum(message.role == "assistant" for message in before)
    return Message("assistant", f"{draw(TEXT)}#{number}.", calls, draw(WEIGHTS) if weights else None)


def conversation_of(*answers: str, weights: Sequence[float | None] = ()) -> Conversation:
    """A conversation of one round for each answer, with weights for the answers."""
    messages = []
    for number, (answer, weight) in enumerate(zip(answers, weights or [None] * len(answers), strict=True)):
        messages += [Message("user", f"question {number}"), Message("assistant", answer, (), weight)]
    return Conversation(tuple(messages))


def encode(item: Item, tokenizer: Tokenizer, config: EncodingConfig) -> Encoded:
    """Encode one item."""
    (encoded,) = encode_dialogues([item], tokenizer, config)
    return encoded


def trained(tokenizer: Tokenizer, sequence: tuple[np.ndarray, np.ndarray]) -> str:
    """The text of the trained tokens of a sequence."""
    tokens, weights = sequence
    return tokenizer.decode(tokens[1:][weights[1:] > 0].tolist())


def answer_texts(tokenizer: Tokenizer, messages: Sequence[Message], tools: str | None) -> list[str]:
    """The text that each assistant turn trains, from the rendering of the whole conversation by the template."""
    pieces = tokenizer.template.render(messages, tools)
    return [
        "".join(piece.text for piece in pieces if piece.weight and piece.turn == turn)
        for turn, message in enumerate(messages)
        if message.role == "assistant"
    ]


def reasons(encoded: Encoded, state: str) -> list[str]:
    """The reasons of the events with this state."""
    return [event.reason for event in encoded.events if event.state == state]


def amount(encoded: Encoded, state: str) -> int:
    """The sum of the amounts of the events with this state."""
    return sum(event.amount for event in encoded.events if event.state == state)


def fitting(tokenizer: Tokenizer, messages: list[Message], tools: str | None, context: int) -> tuple[list[int], list[float]]:
    """Tokens and weights of the beginning that fits into the context; a cut tool call has weight 0."""
    ((tokens, weights, turns, _),) = tokenizer.encode_segments([tokenizer.template.render(messages, tools)])
    limit, kept = context + 1, weights.copy()
    if len(turns) > limit and turns[limit] == turns[limit - 1] >= 0 and messages[turns[limit]].tool_calls:
        kept[turns == turns[limit]] = 0
    return tokens[:limit].tolist(), kept[:limit].tolist()
