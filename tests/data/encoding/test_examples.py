"""From items to sequences: what fits is kept, what does not is an event, and only answers are trained."""

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fledge.data.encoding.augment import augment
from fledge.data.encoding.dialogues import encode_dialogues
from fledge.data.encoding.documents import encode_documents
from fledge.data.encoding.examples import Encoded, EncodingConfig
from fledge.data.encoding.rendering import split_rounds
from fledge.data.formats import FORMATS
from fledge.data.parsing.items import BinaryFeedback, Conversation, Document, Item, PreferencePair
from fledge.data.row_events import RowEvent
from fledge.recipe.schema import AugmentConfig, PreferenceStage, PretrainStage, SftStage
from fledge.tokenizer import Message, TemplateError, Tokenizer, load_tokenizer
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


@pytest.fixture(scope="session")
def tokenizers(chatml: Tokenizer, inst: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tokenizer]:
    """One tokenizer for each kind of template."""
    tokenizers = {"chatml": chatml, "inst": inst}
    for name, jinja in (("unmarked", UNMARKED), ("marked", MARKED)):
        tokenizers[name] = with_template(chatml, tmp_path_factory.mktemp(name), jinja)
    return tokenizers


def with_template(tokenizer: Tokenizer, folder: Path, jinja: str) -> Tokenizer:
    tokenizer.core.save(str(folder / "tokenizer.json"))
    config = {"eos_token": "<|im_end|>", "tokenizer_class": "PreTrainedTokenizerFast", "chat_template": jinja}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return load_tokenizer(folder)


TEXT = st.one_of(
    st.text(st.characters(codec="utf-8", exclude_characters="\ufffd#"), max_size=20),
    st.sampled_from(["", " ", "<|im_end|>", "</s>[INST]", "12 + 30", "春眠不觉晓，处处闻啼鸟", "a" * 40, "\n x \n"]),
)
WEIGHTS = st.sampled_from([None, None, None, 0.0, 1.0, 0.5, 2.0])


@st.composite
def conversations(draw: st.DrawFn, tools: bool = True, weights: bool = True) -> Conversation:
    """A system turn or none, then rounds, some of which call a tool. The k-th answer ends in `#k.`"""
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


def encode(item: Item, tokenizer: Tokenizer, config: EncodingConfig) -> Encoded:
    (encoded,) = encode_dialogues([item], tokenizer, config)
    return encoded


def trained(tokenizer: Tokenizer, sequence: tuple[np.ndarray, np.ndarray]) -> str:
    tokens, weights = sequence
    return tokenizer.decode(tokens[1:][weights[1:] > 0].tolist())


def answer_texts(tokenizer: Tokenizer, messages: Sequence[Message], tools: str | None) -> list[str]:
    """What each assistant turn trains, by the template's own account of the whole conversation."""
    pieces = tokenizer.template.render(messages, tools)
    return [
        "".join(piece.text for piece in pieces if piece.weight and piece.turn == turn)
        for turn, message in enumerate(messages)
        if message.role == "assistant"
    ]


def reasons(encoded: Encoded, state: str) -> list[str]:
    return [event.reason for event in encoded.events if event.state == state]


def amount(encoded: Encoded, state: str) -> int:
    return sum(event.amount for event in encoded.events if event.state == state)


@settings(max_examples=100)
@given(
    item=conversations(), kind=st.sampled_from(KINDS), context=st.integers(8, 160),
    policy=st.sampled_from(["keep_recent", "keep_start", "split"]), train_on_turns=st.sampled_from(["all", "last"]),
)  # fmt: skip
def test_every_conversation_becomes_valid_examples_or_says_why_not(
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


def fitting(tokenizer: Tokenizer, messages: list[Message], tools: str | None, context: int) -> tuple[list[int], list[float]]:
    """Tokens and weights of what fits: the beginning; half a tool call has no weight."""
    ((tokens, weights, turns),) = tokenizer.encode_segments([tokenizer.template.render(messages, tools)])
    limit, kept = context + 1, weights.copy()
    if len(turns) > limit and turns[limit] == turns[limit - 1] >= 0 and messages[turns[limit]].tool_calls:
        kept[turns == turns[limit]] = 0
    return tokens[:limit].tolist(), kept[:limit].tolist()


@settings(max_examples=60)
@given(item=conversations(), kind=st.sampled_from(KINDS), context=st.integers(8, 160))
def test_keep_recent_keeps_as_many_of_the_newest_rounds_as_fit(
    tokenizers: dict[str, Tokenizer], item: Conversation, kind: str, context: int
) -> None:
    """Against the plain way: leave out one more round until what is left fits."""
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
    """Against the plain way: add one more round until it does not fit."""
    tokenizer = tokenizers[kind]
    encoded = encode(item, tokenizer, replace(CONFIG, max_seq_len=context, truncation="split"))
    if reasons(encoded, "dropped") == ["the chat template refuses it"]:
        return
    head, rounds = split_rounds(item.messages)

    def whole(first: int, stop: int) -> tuple[list[int], list[float]]:
        return tokenizer.encode_conversation([*head, *(m for turns in rounds[first:stop] for m in turns)], item.tools)

    expected, first = [], 0
    while first < len(rounds):
        stop = first + 1
        while stop < len(rounds) and np.flatnonzero(whole(first, stop + 1)[1])[-1] <= context:
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
    item = talk("one", "two", "three", "four")
    tokens, _ = chatml.encode_conversation(item.messages)
    second = len(chatml.encode_conversation(item.messages[:4])[0])
    config = replace(CONFIG, max_seq_len=second - 4, truncation="keep_start")
    (event,) = encode(item, chatml, config).events
    assert event.detail.startswith("3 of 4 answers cut or lost")
    assert event.amount == len(tokens) - 1 - (config.max_seq_len + 1)  # the line break after the last end token is no loss


def talk(*answers: str, weights: Sequence[float | None] = ()) -> Conversation:
    """Rounds of a question and one of these answers."""
    messages = []
    for number, (answer, weight) in enumerate(zip(answers, weights or [None] * len(answers), strict=True)):
        messages += [Message("user", f"question {number}"), Message("assistant", answer, (), weight)]
    return Conversation(tuple(messages))


def test_a_round_that_is_too_long_alone_is_cut_on_the_right(chatml: Tokenizer) -> None:
    item = talk("short", "long " * 50)
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
    item = Conversation((*talk("a").messages, question, Message("assistant", "b"), *talk("c", "d " * 80).messages))
    encoded = encode(item, chatml, replace(CONFIG, truncation="split"))
    texts = [trained(chatml, example[0]) for example in encoded.examples]
    assert texts[:2] == ["a<|im_end|>", "c<|im_end|>"]
    assert ("d " * 80).startswith(texts[2])
    left_out = RowEvent("shortened", "rounds left out: prompt longer than the context", "1 of 4 rounds", 1)
    assert left_out in encoded.events
    assert reasons(encoded, "truncated") == ["answer cut to the context"]
    assert amount(encoded, "split") == 3


def test_a_line_break_after_the_last_end_token_costs_no_round(chatml: Tokenizer) -> None:
    item = talk("one", "two", "three")
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


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_turns_multiply_and_zero_is_not_trained(tokenizers: dict[str, Tokenizer], kind: str) -> None:
    tokenizer = tokenizers[kind]
    item = talk("one", "two", "three", weights=(0.0, 0.5, None))
    ((tokens, weights),) = encode(item, tokenizer, replace(CONFIG, max_seq_len=500)).examples[0]
    by_weight = {w: tokenizer.decode(tokens[weights == w].tolist()) for w in (0.5, 1.0)}
    texts = answer_texts(tokenizer, item.messages, None)
    assert by_weight == {0.5: texts[1], 1.0: texts[2]}
    nothing = talk("one", "two", weights=(0.0, 0.0))
    assert reasons(encode(nothing, tokenizer, CONFIG), "dropped") == ["nothing to train"]


@pytest.mark.parametrize("policy", ["keep_recent", "keep_start", "split"])
def test_only_the_last_answer_is_trained_where_that_is_asked_for(tokenizers: dict[str, Tokenizer], policy: str) -> None:
    for kind in KINDS:
        item = talk(*(f"answer {number}" for number in range(8)))
        config = replace(CONFIG, max_seq_len=80, train_on_turns="last", truncation=policy)
        encoded = encode(item, tokenizers[kind], config)
        if policy == "keep_start":
            assert reasons(encoded, "dropped") == ["prompt longer than the context"]
            continue
        texts = [trained(tokenizers[kind], example[0]) for example in encoded.examples]
        assert texts == answer_texts(tokenizers[kind], item.messages, None)[-1:]
        assert amount(encoded, "shortened") > 0


def test_turn_weights_need_a_template_that_marks_turns(chatml: Tokenizer, tmp_path: Path) -> None:
    jinja = (
        "{% generation %}{% for m in messages %}{% if m.role == 'assistant' %}{{ m.content }}<|im_end|>{% endif %}{% endfor %}"
        "{% endgeneration %}"
    )
    tokenizer = with_template(chatml, tmp_path, jinja)
    assert encode(talk("a", "b"), tokenizer, CONFIG).examples
    for item, config in (
        (talk("a", "b", weights=(0.0, 1.0)), CONFIG),
        (talk("a", "b"), replace(CONFIG, train_on_turns="last")),
    ):
        assert reasons(encode(item, tokenizer, config), "dropped") == ["template does not tell turns apart"]
    one = encode(talk("a", weights=(0.5,)), tokenizer, replace(CONFIG, train_on_turns="last"))
    assert set(one.examples[0][0][1].tolist()) == {0.5}


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


PROMPTS = st.lists(st.tuples(TEXT, TEXT), max_size=4).map(
    lambda pairs: [Message(role, text) for pair in pairs for role, text in zip(("user", "assistant"), pair, strict=True)]
)


@settings(max_examples=60)
@given(
    history=PROMPTS, question=TEXT, answers=st.tuples(TEXT, TEXT).map(lambda two: (f"{two[0]}#1", f"{two[1]}#2")),
    kind=st.sampled_from(KINDS), context=st.integers(8, 100), policy=st.sampled_from(["keep_recent", "keep_start", "split"]),
)  # fmt: skip
def test_only_the_completions_of_a_pair_are_trained_and_share_one_prompt(
    tokenizers: dict[str, Tokenizer], history: list[Message], question: str, answers: tuple[str, str], kind: str,
    context: int, policy: str,
) -> None:  # fmt: skip
    tokenizer = tokenizers[kind]
    item = PreferencePair((*history, Message("user", question)), *answers)
    config = replace(CONFIG, max_seq_len=context, truncation=policy)
    encoded = encode(item, tokenizer, config)
    assert bool(encoded.examples) != bool(reasons(encoded, "dropped"))
    for example in encoded.examples:
        starts = [int(np.flatnonzero(weights)[0]) for _, weights in example]
        assert starts[0] == starts[1]
        assert np.array_equal(example[0][0][: starts[0]], example[1][0][: starts[0]])
        assert not np.array_equal(example[0][0], example[1][0])
        for (tokens, weights), answer in zip(example, answers, strict=True):
            assert len(tokens) == len(weights) <= context + 1
            messages = [*item.prompt, Message("assistant", answer)]
            whole = answer_texts(tokenizer, messages, None)[-1]
            text = trained(tokenizer, (tokens, weights))
            assert text == whole or reasons(encoded, "truncated")
            assert whole.startswith(text.rstrip("\ufffd"))


def test_a_pair_that_differs_only_beyond_the_context_is_dropped(chatml: Tokenizer) -> None:
    same = "very " * 100
    item = PreferencePair((Message("user", "why?"),), same + "good", same + "bad")
    assert reasons(encode(item, chatml, CONFIG), "dropped") == ["answers equal after the cut"]


def test_a_labelled_answer_is_one_sequence_with_its_completion_trained(chatml: Tokenizer) -> None:
    prompt = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"))
    encoded = encode(BinaryFeedback(prompt, "d", True), chatml, CONFIG)
    assert [trained(chatml, sequence) for sequence in encoded.examples[0]] == ["d<|im_end|>"]


def test_a_template_whose_generation_prompt_does_not_precede_answers_drops_pairs(chatml: Tokenizer, tmp_path: Path) -> None:
    jinja = MARKED.replace("{% if add_generation_prompt %}<|im_start|>assistant:", "{% if add_generation_prompt %}<|im_end|>")
    tokenizer = with_template(chatml, tmp_path, jinja)
    encoded = encode(PreferencePair((Message("user", "a"),), "b", "c"), tokenizer, CONFIG)
    assert reasons(encoded, "dropped") == ["the chat template refuses it"]


def test_what_a_template_refuses_is_dropped_with_its_message(inst: Tokenizer) -> None:
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


def test_conversations_shorter_than_asked_for_are_dropped(chatml: Tokenizer) -> None:
    item = talk("a")
    size = len(chatml.encode_conversation(item.messages)[0])
    assert encode(item, chatml, replace(CONFIG, min_tokens=size)).examples
    assert reasons(encode(item, chatml, replace(CONFIG, min_tokens=size + 1)), "dropped") == ["too short"]


def test_text_without_a_utf8_form_is_dropped_and_its_neighbours_are_kept(chatml: Tokenizer) -> None:
    broken, fine = talk("a\ud800"), talk("b")
    documents = [Document("good text"), Document("bad \udc00 text"), Document("more text")]
    texts = [reasons(encoded, "dropped") for encoded in encode_dialogues([fine, broken, fine], chatml, CONFIG)]
    assert texts == [[], ["not valid Unicode"], []]
    texts = [reasons(e, "dropped") for e in encode_documents(documents, chatml, CONFIG)]
    assert texts == [[], ["not valid Unicode"], []]


@pytest.mark.parametrize("kind", KINDS)
def test_an_item_is_encoded_the_same_in_a_batch_and_alone(tokenizers: dict[str, Tokenizer], kind: str) -> None:
    items = [talk(*(f"{number} {part}" for part in range(number % 4 + 1))) for number in range(40)]
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


@given(item=conversations(), seed=st.integers(0, 2**32 - 1), share=st.sampled_from([0.0, 0.5, 0.99]))
def test_augmentation_depends_on_seed_and_content_and_never_changes_answers(
    item: Conversation, seed: int, share: float
) -> None:
    config = AugmentConfig(drop_last_turns=share, noise=share, noise_rate=0.5)
    _, rounds = split_rounds(item.messages)
    kept, ended, letters = augment(rounds, config, seed)
    assert augment(rounds, config, seed) == (kept, ended, letters)
    assert 1 <= len(kept) == len(rounds) - ended
    changed = 0
    for before, after in zip(rounds, kept, strict=False):
        for old, new in zip(before, after, strict=True):
            changed += old != new
            if old.role != "user":
                assert old == new
            else:
                assert (old.role, old.weight) == (new.role, new.weight)
                left = [[c for c in text if not c.isalpha()] for text in (old.content, new.content)]
                assert left[0] == left[1]  # digits, punctuation and spaces stay in order
                assert bool(old.content.strip()) == bool(new.content.strip())
    assert bool(letters) >= bool(changed)
    if not share:
        assert (kept, letters) == (rounds, 0)


def test_augmentation_changes_about_the_requested_share_of_conversations(chatml: Tokenizer) -> None:
    items = [talk(f"answer {number}", "more", "end") for number in range(1000)]
    config = replace(CONFIG, max_seq_len=500, augment=AugmentConfig(drop_last_turns=0.3, noise=0.2, noise_rate=0.3))
    encoded = list(encode_dialogues(items, chatml, config))
    ended = sum("ended after an earlier round" in reasons(e, "changed") for e in encoded)
    typed = sum("typing errors in questions" in reasons(e, "changed") for e in encoded)
    assert 240 < ended < 360
    assert 150 < typed < 250
    again = list(encode_dialogues(items, chatml, replace(config, seed=8)))
    assert [e.events for e in encoded] != [e.events for e in again]
    plain = list(encode_dialogues(items, chatml, replace(config, augment=AugmentConfig())))
    for varied, whole in zip(encoded, plain, strict=True):
        assert trained(chatml, whole.examples[0][0]).startswith(trained(chatml, varied.examples[0][0]))
        unchanged = np.array_equal(varied.examples[0][0][0], whole.examples[0][0][0])
        assert unchanged == (not varied.events)


def test_augmentation_leaves_out_no_round_of_a_pair(chatml: Tokenizer) -> None:
    prompt = (*talk("a", "b", "c").messages, Message("user", "please tell me more about that"))
    config = replace(CONFIG, max_seq_len=500, augment=AugmentConfig(drop_last_turns=0.99, noise=0.99, noise_rate=0.5))
    encoded = encode(PreferencePair(prompt, "good", "bad"), chatml, config)
    assert reasons(encoded, "changed") == ["typing errors in questions"]
    texts = [chatml.decode(tokens.tolist()) for tokens, _ in encoded.examples[0]]
    assert [text.count("<|im_start|>assistant") for text in texts] == [4, 4]
    assert texts[0].replace("good", "bad") == texts[1]
