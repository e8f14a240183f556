"""Augmentation changes prompts at random, reproducibly, and leaves answers alone."""

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from fledge.data.encoding.augment import augment
from fledge.data.encoding.dialogues import encode_dialogues
from fledge.data.encoding.rendering import split_rounds
from fledge.data.parsing.items import Conversation, PreferencePair
from fledge.recipe.schema import AugmentConfig
from fledge.tokenizer import Message, Tokenizer
from tests.support.conversations import CONFIG, conversation_of, conversations, encode, reasons, trained


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
    items = [conversation_of(f"answer {number}", "more", "end") for number in range(1000)]
    config = replace(CONFIG, max_seq_len=500, augment=AugmentConfig(drop_last_turns=0.3, noise=0.2, noise_rate=0.3))
    encoded = list(encode_dialogues(items, chatml, config))
    ended = sum("ended after an earlier round" in reasons(e, "changed") for e in encoded)
    typed = sum("typing errors in questions" in reasons(e, "changed") for e in encoded)
    assert 240 < ended < 360
    assert 150 < typed < 250
    again = list(encode_dialogues(items, chatml, replace(config, seed=8)))
    assert [e.events for e in encoded] != [e.events for e in again]
    plain = list(encode_dialogues(items, chatml, replace(config, augment=AugmentConfig())))
    for varied, unaugmented in zip(encoded, plain, strict=True):
        assert trained(chatml, unaugmented.examples[0][0]).startswith(trained(chatml, varied.examples[0][0]))
        unchanged = np.array_equal(varied.examples[0][0][0], unaugmented.examples[0][0][0])
        assert unchanged == (not varied.events)


def test_augmentation_leaves_out_no_round_of_a_pair(chatml: Tokenizer) -> None:
    prompt = (*conversation_of("a", "b", "c").messages, Message("user", "please tell me more about that"))
    config = replace(CONFIG, max_seq_len=500, augment=AugmentConfig(drop_last_turns=0.99, noise=0.99, noise_rate=0.5))
    encoded = encode(PreferencePair(prompt, "good", "bad"), chatml, config)
    assert reasons(encoded, "changed") == ["typing errors in questions"]
    texts = [chatml.decode(tokens.tolist()) for tokens, _ in encoded.examples[0]]
    assert [text.count("<|im_start|>assistant") for text in texts] == [4, 4]
    assert texts[0].replace("good", "bad") == texts[1]
