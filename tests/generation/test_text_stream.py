"""Streamed text: whole characters only, and all pieces together are the decoded text."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer as Core
from tokenizers import decoders, models, pre_tokenizers

from fledge.generation import TextStream, decode_stream
from fledge.tokenizer import Tokenizer, train_tokenizer
from fledge.tokenizer.native_templates import CHATML

BYTE_LEVEL = train_tokenizer(["hello world, 你好世界 " * 4], 300)


def _sentencepiece_like() -> Tokenizer:
    """A tokenizer in the style of Llama 2: "▁" for a space, bytes for unknown characters, no space at the start of a text."""
    words = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abcdefgh你好", "▁a", "▁b", "ab", "▁ab"]
    vocab = {word: number for number, word in enumerate(words)}
    merges = [("▁", "a"), ("▁", "b"), ("a", "b"), ("▁", "ab")]
    core = Core(models.BPE(vocab=vocab, merges=merges, unk_token="<unk>", byte_fallback=True))
    core.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first")
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return Tokenizer(core, CHATML, bos=None, eos="</s>", pad="</s>")


SENTENCEPIECE_LIKE = _sentencepiece_like()
BOTH = pytest.mark.parametrize("tokenizer", [BYTE_LEVEL, SENTENCEPIECE_LIKE], ids=["byte-level", "sentencepiece"])


@BOTH
@given(st.text(max_size=30))
@settings(deadline=None, max_examples=80)
def test_streamed_pieces_join_to_the_decoded_text(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    pieces = list(decode_stream(tokenizer, ids))
    assert "".join(pieces) == tokenizer.decode(ids, skip_special=True)
    assert not any("\ufffd" in piece for piece in pieces) or "\ufffd" in text
    assert all(pieces)


@BOTH
@given(st.text(alphabet="ab 你é😀", max_size=40), st.integers(0, 40))
@settings(deadline=None, max_examples=80)
def test_special_tokens_add_nothing_to_the_text_wherever_they_are(tokenizer: Tokenizer, text: str, index: int) -> None:
    ids = tokenizer.encode(text)
    ids = [*ids[:index], tokenizer.eot_id, *ids[index:]]
    joined = "".join(decode_stream(tokenizer, ids))
    if "\ufffd" not in tokenizer.decode(ids, skip_special=True):
        assert joined == tokenizer.decode(ids, skip_special=True)


@BOTH
def test_a_character_of_several_tokens_appears_with_its_last_one(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a😀")
    stream = TextStream(tokenizer)
    pieces = [stream.add(token) for token in ids]
    assert pieces[-1] == "😀" and "".join(pieces[:-1]).strip() == "a"
    assert pieces.count("") >= 3 and stream.finish() == ""


@BOTH
def test_an_incomplete_character_at_the_end_is_not_lost(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a😀")[:-1]
    assert "\ufffd" in "".join(decode_stream(tokenizer, ids))
