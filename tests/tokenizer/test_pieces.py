"""The texts of tokens: joined they are the text, whatever the tokens."""

from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Core
from tokenizers import decoders, models, normalizers

from fledge.tokenizer import Tokenizer
from fledge.tokenizer.loading import NO_TEMPLATE
from fledge.tokenizer.pieces import token_texts


@given(st.text(st.characters(codec="utf-8", exclude_characters="\ufffd"), max_size=30), st.data())
def test_joined_they_are_the_text_of_any_tokens(chatml: Tokenizer, text: str, data: st.DataObject) -> None:
    ids = chatml.encode(text)
    place = data.draw(st.integers(0, len(ids)))
    texts = token_texts(chatml, [*ids[:place], chatml.eot_id, *ids[place:]])
    assert len(texts) == len(ids) + 1 and texts[place] == ("<|im_end|>", True)
    assert "".join(text for text, _ in texts[:place]) == chatml.decode(ids[:place])
    assert "".join(text for text, _ in texts[place + 1 :]) == chatml.decode(ids[place:])


def test_blanks_of_sentencepiece_are_kept() -> None:
    letters = {
        text: number for number, text in enumerate(["<unk>", "</s>", "▁", "a", "b", *(f"<0x{b:02X}>" for b in range(256))])
    }
    core = Core(models.BPE(letters, [], unk_token="<unk>", byte_fallback=True))
    core.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    core.add_special_tokens(["</s>"])
    tokenizer = Tokenizer(core, NO_TEMPLATE, bos=None, eos="</s>", pad="</s>")
    ids = [*tokenizer.encode("ab a好"), tokenizer.eos_id, *tokenizer.encode("b")]
    texts = [text for text, _ in token_texts(tokenizer, ids)]
    assert "".join(texts) == " ab a好</s> b"
    assert texts[5:8] == ["", "", "好"]
