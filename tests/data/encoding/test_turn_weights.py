"""Turn weights and `train_on_turns` decide which answers are trained."""

from dataclasses import replace
from pathlib import Path

import pytest

from fledge.tokenizer import Tokenizer
from tests.support.conversations import CONFIG, KINDS, amount, answer_texts, conversation_of, encode, reasons, trained
from tests.support.templates import with_template


@pytest.mark.parametrize("kind", KINDS)
def test_weights_of_turns_multiply_and_zero_is_not_trained(tokenizers: dict[str, Tokenizer], kind: str) -> None:
    tokenizer = tokenizers[kind]
    item = conversation_of("one", "two", "three", weights=(0.0, 0.5, None))
    ((tokens, weights),) = encode(item, tokenizer, replace(CONFIG, max_seq_len=500)).examples[0]
    by_weight = {w: tokenizer.decode(tokens[weights == w].tolist()) for w in (0.5, 1.0)}
    texts = answer_texts(tokenizer, item.messages, None)
    assert by_weight == {0.5: texts[1], 1.0: texts[2]}
    nothing = conversation_of("one", "two", weights=(0.0, 0.0))
    assert reasons(encode(nothing, tokenizer, CONFIG), "dropped") == ["nothing to train"]


@pytest.mark.parametrize("policy", ["keep_recent", "keep_start", "split"])
def test_only_the_last_answer_is_trained_when_requested(tokenizers: dict[str, Tokenizer], policy: str) -> None:
    for kind in KINDS:
        item = conversation_of(*(f"answer {number}" for number in range(8)))
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
    assert encode(conversation_of("a", "b"), tokenizer, CONFIG).examples
    for item, config in (
        (conversation_of("a", "b", weights=(0.0, 1.0)), CONFIG),
        (conversation_of("a", "b"), replace(CONFIG, train_on_turns="last")),
    ):
        assert reasons(encode(item, tokenizer, config), "dropped") == ["template does not tell turns apart"]
    one = encode(conversation_of("a", weights=(0.5,)), tokenizer, replace(CONFIG, train_on_turns="last"))
    assert set(one.examples[0][0][1].tolist()) == {0.5}
