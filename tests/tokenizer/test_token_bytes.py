"""What a token stands for, in bytes: their sum over a text is the text's own size, so bits per byte can be compared."""

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Core
from tokenizers import decoders, models, pre_tokenizers

from fledge.tokenizer import Tokenizer
from fledge.tokenizer.template import NATIVE

TEXT = st.text(st.characters(exclude_categories=["Cs"]), max_size=60)


@given(text=TEXT)
@example(text="春眠不觉晓，处处闻啼鸟。The quick brown fox 42")
@example(text="👩‍👩‍👧‍👦 🇨🇳 é é \u200b\ufeff\x00")
@example(text="<|im_start|>user\n<|im_end|> is text here")
@example(text=" \n\t\r\n  \u3000")
def test_bytes_of_the_tokens_of_any_text_are_the_bytes_of_the_text(chatml: Tokenizer, text: str) -> None:
    sizes = chatml.token_bytes()
    assert sizes is not None
    assert sum(sizes[token] for token in chatml.encode(text)) == len(text.encode())
    assert sum(sizes[token] for token in chatml.encode_document(text)) == len(text.encode())


def test_every_token_is_as_long_as_it_decodes_and_control_tokens_are_nothing(chatml: Tokenizer, inst: Tokenizer) -> None:
    for tokenizer in (chatml, inst):
        sizes = tokenizer.token_bytes()
        assert sizes is not None and len(sizes) == tokenizer.vocab_size
        control = {number for number, token in tokenizer.core.get_added_tokens_decoder().items() if token.special}
        assert {tokenizer.eos_id, tokenizer.eot_id, tokenizer.pad} <= control
        assert all(sizes[number] == 0 for number in control)
        whole = 0
        for number in range(tokenizer.vocab_size):
            text = tokenizer.decode([number])
            if number not in control and "\ufffd" not in text:
                assert sizes[number] == len(text.encode()), text
                whole += 1
            elif number not in control:
                assert 1 <= sizes[number] <= 12  # part of a character
        assert whole > 200


def test_added_text_counts_as_text(chatml: Tokenizer) -> None:
    core = Core.from_str(chatml.core.to_str())
    core.add_tokens(["你好世界"])
    made = Tokenizer(core, chatml.template, bos=None, eos=chatml.eos, pad=chatml.pad_text)
    sizes, number = made.token_bytes(), core.token_to_id("你好世界")
    assert sizes is not None and number is not None and sizes[number] == 12
    assert sum(sizes[token] for token in made.encode("说你好世界！")) == len("说你好世界！".encode())


@pytest.mark.parametrize("decoder", [None, decoders.WordPiece()])
def test_a_tokenizer_that_is_not_byte_level_has_no_fixed_bytes(decoder: object) -> None:
    core = Core(models.WordLevel({"a": 0, "b": 1, "<unk>": 2}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()  # type: ignore[assignment]
    if decoder is not None:
        core.decoder = decoder  # type: ignore[assignment]
    made = Tokenizer(core, NATIVE["chatml"], bos=None, eos="<|im_end|>", pad="<|im_end|>")
    assert made.token_bytes() is None
