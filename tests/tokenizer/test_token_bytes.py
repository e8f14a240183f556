"""Bytes per token: their sum over a text is the size of the text, so that bits per byte can be compared between
tokenizers."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Core
from tokenizers import decoders, models, pre_tokenizers

from fledge.tokenizer import Tokenizer
from fledge.tokenizer.native_templates import NATIVE

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@given(text=TEXT)
@example(text="春眠不觉晓，处处闻啼鸟。The quick brown fox 42")
@example(text="👩‍👩‍👧‍👦 🇨🇳 é é \u200b\ufeff\x00")
@example(text="<|im_start|>user\n<|im_end|> is text here")
@example(text=" \n\t\r\n  \u3000")
def test_token_bytes_sum_to_the_size_of_any_text(chatml: Tokenizer, text: str) -> None:
    sizes = chatml.token_bytes()
    assert sizes is not None
    assert sum(sizes[token] for token in chatml.encode(text)) == len(text.encode())
    assert sum(sizes[token] for token in chatml.encode_document(text)) == len(text.encode())


def test_token_bytes_are_the_decoded_size_and_zero_for_control_tokens(chatml: Tokenizer, inst: Tokenizer) -> None:
    for tokenizer in (chatml, inst):
        sizes = tokenizer.token_bytes()
        assert sizes is not None and len(sizes) == tokenizer.vocab_size
        control = {token_id for token_id, token in tokenizer.core.get_added_tokens_decoder().items() if token.special}
        assert {tokenizer.eos_id, tokenizer.eot_id, tokenizer.pad} <= control
        assert all(sizes[token_id] == 0 for token_id in control)
        complete = 0
        for token_id in range(tokenizer.vocab_size):
            text = tokenizer.decode([token_id])
            if token_id not in control and "\ufffd" not in text:
                assert sizes[token_id] == len(text.encode()), text
                complete += 1
            elif token_id not in control:
                assert 1 <= sizes[token_id] <= 12  # part of a character
        assert complete > 200


def test_added_tokens_that_are_not_special_count_their_bytes(chatml: Tokenizer) -> None:
    core = Core.from_str(chatml.core.to_str())
    core.add_tokens(["你好世界"])
    tokenizer = Tokenizer(core, chatml.template, bos=None, eos=chatml.eos, pad=chatml.pad_text)
    sizes, token_id = tokenizer.token_bytes(), core.token_to_id("你好世界")
    assert sizes is not None and token_id is not None and sizes[token_id] == 12
    assert sum(sizes[token] for token in tokenizer.encode("说你好世界！")) == len("说你好世界！".encode())


@pytest.mark.parametrize("decoder", [None, decoders.WordPiece()])
def test_token_bytes_are_none_when_the_tokenizer_is_not_byte_level(decoder: object) -> None:
    core = Core(models.WordLevel({"a": 0, "b": 1, "<unk>": 2}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    if decoder is not None:
        core.decoder = decoder  # type: ignore[assignment]
    tokenizer = Tokenizer(core, NATIVE["chatml"], bos=None, eos="<|im_end|>", pad="<|im_end|>")
    assert tokenizer.token_bytes() is None
