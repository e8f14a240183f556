"""Text appears as soon as it is whole, and adds up to the whole."""

from hypothesis import given, settings
from hypothesis import strategies as st

from fledge.chat import pieces
from fledge.tokenizer import train_tokenizer

TOKENIZER = train_tokenizer(["hello world, 你好世界 " * 4], 300)


@given(st.text(max_size=30))
@settings(deadline=None, max_examples=80)
def test_streamed_pieces_join_to_the_decoded_text(text: str) -> None:
    ids = TOKENIZER.encode(text)
    shown = list(pieces(TOKENIZER, ids))
    assert "".join(shown) == TOKENIZER.decode(ids, skip_special=True)
    assert not any("\ufffd" in piece for piece in shown) or "\ufffd" in text
