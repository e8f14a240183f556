"""Conversations for encoder–decoders: an example for each answer, with the turns before it as its source."""

from dataclasses import replace

from fledge.data.encoding.dialogues import encode_dialogues
from fledge.data.encoding.examples import Encoded, EncodingConfig
from fledge.data.parsing.items import Conversation, Item, PreferencePair
from fledge.recipe.schema import AugmentConfig
from fledge.tokenizer import Message, train_tokenizer
from tests.conftest import TEXTS

TOKENIZER = train_tokenizer(TEXTS, 400, "seq2seq")
CONFIG = EncodingConfig(
    max_seq_len=60, truncation="keep_recent", train_on_turns="all", min_tokens=0, augment=AugmentConfig(), seed=0
)


def encode(item: Item, config: EncodingConfig = CONFIG) -> Encoded:
    """The encoding of one item."""
    (encoded,) = encode_dialogues([item], TOKENIZER, config)
    return encoded


def texts(encoded: Encoded) -> list[list[str]]:
    """The texts of the sequences of each example."""
    return [[TOKENIZER.decode(tokens.tolist()) for tokens, _ in example] for example in encoded.examples]


def conversation(*contents: str, weights: tuple[float | None, ...] = ()) -> Conversation:
    """Questions and answers in turn; `weights` of the answers."""
    messages = [
        Message("assistant" if number % 2 else "user", content, (), weights[number // 2] if weights and number % 2 else None)
        for number, content in enumerate(contents)
    ]
    return Conversation(tuple(messages))


def test_each_answer_is_an_example() -> None:
    encoded = encode(conversation("a?", "A", "b?", "B", "c?", "C"))
    assert texts(encoded) == [["a?</s><pad>A</s>"], ["a?\nA\nb?</s><pad>B</s>"], ["a?\nA\nb?\nB\nc?</s><pad>C</s>"]]
    for (tokens, weights), answer in zip((example[0] for example in encoded.examples), "ABC", strict=True):
        assert TOKENIZER.decode(tokens[weights > 0].tolist()) == f"{answer}</s>"
    (event,) = encoded.events
    assert (event.state, event.detail) == ("split", "3 examples")


def test_only_the_last_answer_makes_one_example() -> None:
    config = replace(CONFIG, train_on_turns="last")
    assert texts(encode(conversation("a?", "A", "b?", "B"), config)) == [["a?\nA\nb?</s><pad>B</s>"]]


def test_answers_of_weight_zero_make_no_example_and_others_keep_theirs() -> None:
    encoded = encode(conversation("a?", "A", "b?", "B", weights=(0.0, 0.5)))
    ((_, weights),) = encoded.examples[0]
    assert len(encoded.examples) == 1 and set(weights.tolist()) == {0.0, 0.5}
    nothing = encode(conversation("a?", "A", weights=(0.0,)))
    assert nothing.examples == () and nothing.events[0].reason == "nothing to train"


def test_a_source_that_is_too_long_loses_its_oldest_turns_and_that_is_told_once() -> None:
    long = conversation("first question?", "first answer", "b?", "B", "c?", "C")
    encoded = encode(long, replace(CONFIG, max_seq_len=14, truncation="split"))
    written = texts(encoded)
    assert written[-1] == ["b?\nB\nc?</s><pad>C</s>"]
    states = [event.state for event in encoded.events]
    assert states.count("shortened") == 1 and "split" in states


def test_an_answer_without_room_is_counted() -> None:
    encoded = encode(conversation("a?", "A", "春眠不觉晓，处处闻啼鸟。" * 3, "B"), replace(CONFIG, max_seq_len=20))
    assert texts(encoded) == [["a?</s><pad>A</s>"]]
    (event,) = encoded.events
    assert event.state == "shortened" and event.reason == "rounds left out: prompt longer than the context"
    assert event.detail == "1 of 2 answers"


def test_both_answers_of_a_pair_have_the_same_source() -> None:
    pair = PreferencePair((Message("user", "a?"), Message("assistant", "A"), Message("user", "b?")), "good", "bad")
    assert texts(encode(pair)) == [["a?\nA\nb?</s><pad>good</s>", "a?\nA\nb?</s><pad>bad</s>"]]
