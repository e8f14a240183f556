"""Preference pairs and labelled answers: completions are trained, prompts are not."""

from dataclasses import replace
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fledge.data.parsing.items import BinaryFeedback, PreferencePair
from fledge.tokenizer import Message, Tokenizer
from tests.support.conversations import CONFIG, KINDS, MARKED, TEXT, answer_texts, encode, reasons, trained
from tests.support.templates import with_template

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
    item = PreferencePair((*history, Message("user", question)), chosen=answers[0], rejected=answers[1])
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
            complete = answer_texts(tokenizer, messages, None)[-1]
            text = trained(tokenizer, (tokens, weights))
            assert text == complete or reasons(encoded, "truncated")
            assert complete.startswith(text.rstrip("\ufffd"))


def test_a_pair_that_differs_only_beyond_the_context_is_dropped(chatml: Tokenizer) -> None:
    same = "very " * 100
    item = PreferencePair((Message("user", "why?"),), same + "good", same + "bad")
    assert reasons(encode(item, chatml, CONFIG), "dropped") == ["answers equal after the cut"]


def test_a_labelled_answer_is_one_sequence_with_its_completion_trained(chatml: Tokenizer) -> None:
    prompt = (Message("user", "a"), Message("assistant", "b"), Message("user", "c"))
    encoded = encode(BinaryFeedback(prompt, "d", True), chatml, CONFIG)
    assert [trained(chatml, sequence) for sequence in encoded.examples[0]] == ["d<|im_end|>"]


def test_a_template_whose_generation_prompt_does_not_precede_answers_is_noticed(chatml: Tokenizer, tmp_path: Path) -> None:
    jinja = MARKED.replace("{% if add_generation_prompt %}<|im_start|>assistant:", "{% if add_generation_prompt %}<|im_end|>")
    tokenizer = with_template(chatml, tmp_path, jinja)
    encoded = encode(PreferencePair((Message("user", "a"),), "b", "c"), tokenizer, CONFIG)
    assert [trained(tokenizer, sequence) for sequence in encoded.examples[0]] == ["b<|im_end|>", "c<|im_end|>"]
    assert reasons(encoded, "noticed") == ["generation starts from another text than in training"]
