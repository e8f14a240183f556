"""Encoding, training, saving and loading."""

import json
import random
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Core
from transformers import AutoTokenizer

from fledge.errors import FledgeError
from fledge.tokenizer import Message, TextSegment, Tokenizer, load_tokenizer, train_tokenizer
from fledge.tokenizer.template import CHATML
from fledge.tokenizer.tokenizer import VerifiedFastEncoder
from tests.conftest import TEXTS

UNICODE = st.text(st.characters(codec="utf-8"), max_size=60)
CONTROL = (
    "<|im_end|>",
    "<|im_start|>",
    "<|endoftext|>",
    "</s>",
    "<s>",
    "[/INST]",
    "<<SYS>>",
    "<think>",
    " ",
    "\n",
    "x",
    "好",
    "é",
)
TRICKY = st.one_of(UNICODE, st.lists(st.sampled_from(CONTROL), max_size=8).map("".join))
TALK = [Message("user", "你好 12"), Message("assistant", "hello 34")]


@given(UNICODE)
def test_any_text_comes_back_byte_for_byte(chatml: Tokenizer, text: str) -> None:
    assert chatml.decode(chatml.encode(text)) == text


@given(st.integers(0, 10**12))
def test_every_digit_is_a_token_of_its_own(chatml: Tokenizer, number: int) -> None:
    assert [chatml.decode([token]) for token in chatml.encode(str(number))] == list(str(number))


def test_digits_stay_single_however_often_a_number_is_seen() -> None:
    tokenizer = train_tokenizer(["in 2024 and 2024, 2024 again"] * 50, 400)
    assert len(tokenizer.encode("2024")) == 4
    assert len(tokenizer.encode(" again")) == 1


@pytest.fixture(scope="session")
def thinking() -> Tokenizer:
    """A tokenizer with an added token that is not special, and one that takes the spaces around it."""
    tokenizer = train_tokenizer(TEXTS, 420, "chatml")
    core = tokenizer.core
    core.add_tokens([AddedToken("<think>", special=False), AddedToken("[/INST]", special=True, lstrip=True, rstrip=True)])
    return Tokenizer(core, CHATML, bos="<|endoftext|>", eos="<|endoftext|>", pad="<|endoftext|>")


@pytest.fixture(scope="session", params=["chatml", "inst", "thinking"])
def any_tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return request.getfixturevalue(request.param)


def lists(arrays: Sequence[np.ndarray]) -> list[list[int]]:
    assert all(array.dtype == np.int32 for array in arrays)
    return [array.tolist() for array in arrays]


@settings(max_examples=150)
@given(st.lists(TRICKY, max_size=5))
def test_a_batch_encodes_like_each_alone(any_tokenizer: Tokenizer, texts: list[str]) -> None:
    assert any_tokenizer.encoder_backend == "fastokens"
    assert lists(any_tokenizer.encode_batch(texts)) == [any_tokenizer.encode(text) for text in texts]
    assert lists(any_tokenizer.encode_documents(texts)) == [any_tokenizer.encode_document(text) for text in texts]


PIECES = st.builds(
    TextSegment, TRICKY, st.sampled_from([0.0, 0.5, 1.0]), st.booleans(), st.none() | st.integers(0, 5)
)  # fmt: skip


@settings(max_examples=150)
@given(batch=st.lists(st.lists(PIECES, max_size=5), max_size=4))
def test_many_renderings_encode_like_each_alone(any_tokenizer: Tokenizer, batch: list[list[TextSegment]]) -> None:
    found = any_tokenizer.encode_segments(batch)
    assert [(e.tokens.tolist(), e.weights.tolist()) for e in found] == [any_tokenizer.encode_pieces(p) for p in batch]
    for encoding, pieces in zip(found, batch, strict=True):
        sizes = [len(any_tokenizer.encode_pieces([piece])[0]) for piece in pieces]
        turns = [-1 if piece.turn is None else piece.turn for piece in pieces]
        assert encoding.turns.tolist() == np.repeat(np.array(turns, np.int32), sizes).tolist()
        assert (encoding.tokens.dtype, encoding.weights.dtype, encoding.turns.dtype) == (np.int32, np.float32, np.int32)


def test_text_without_a_utf8_form_is_refused_by_batches(any_tokenizer: Tokenizer) -> None:
    for _ in range(2):  # at first use and later
        with pytest.raises(UnicodeEncodeError):
            any_tokenizer.encode_batch(["fine", "half \ud800"])
        assert any_tokenizer.encoder_backend == "fastokens"


def test_a_text_that_the_fast_encoder_gives_up_on_is_encoded_all_the_same(chatml: Tokenizer) -> None:
    """A million spaces are more than its regular expression can take."""
    texts = ["before", " " * 1_000_000, "after"]
    assert lists(chatml.encode_batch(texts)) == [chatml.encode(text) for text in texts]
    assert chatml.encoder_backend == "fastokens"


def built(core: Core) -> Tokenizer:
    core.add_special_tokens(["<end>"])
    return Tokenizer(core, CHATML, bos=None, eos="<end>", pad="<end>")


def letters() -> list[str]:
    return ["<unk>", *"abcdefghijklmnopqrstuvwxyz", *(f"##{letter}" for letter in "abc")]


def wordpiece() -> Core:
    core = Core(models.WordPiece({text: i for i, text in enumerate(letters())}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return core


def unigram() -> Core:
    core = Core(models.Unigram([(text, -1.0 - i) for i, text in enumerate(letters())], 0, byte_fallback=False))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    return core


def stripped() -> Core:
    core = Core.from_str(train_tokenizer(TEXTS, 420).core.to_str())
    core.normalizer = normalizers.Sequence([normalizers.StripAccents(), normalizers.Lowercase()])
    return core


def spelled() -> Core:
    core = Core(models.BPE({text: i for i, text in enumerate([*letters(), "ab", "▁"])}, [("a", "b")], unk_token="<unk>"))
    core.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Replace("▁", " ")
    return core


@pytest.mark.parametrize("core", [wordpiece, unigram, stripped, spelled])
def test_any_other_kind_of_tokenizer_gives_its_own_ids(core: Callable[[], Core]) -> None:
    """Whichever library is taken: the fast one where it agrees, else the other, with the reason."""
    tokenizer = built(core())
    texts = ["abc cab", "Zwölf Boxkämpfer, 12 + 30", "ａｂ ﬁ", "<end>a<end>", *TEXTS]
    assert lists(tokenizer.encode_batch(texts)) == [tokenizer.encode(text) for text in texts]
    assert (tokenizer.encoder_backend == "fastokens") == (tokenizer.coder_reason == "")
    if core in (wordpiece, unigram):
        assert tokenizer.encoder_backend == "tokenizers"
        assert "fastokens cannot load it" in tokenizer.coder_reason


def test_a_fast_encoder_that_disagrees_is_not_used(chatml: Tokenizer) -> None:
    """Its own tokenizer, but compared with another one: every check must notice."""
    other = train_tokenizer(["".join(random.Random(1).choices("abc 好", k=300))], 420)
    hard = VerifiedFastEncoder(chatml.core, other.core)
    assert (hard.name, hard.reason) == ("tokenizers", "fastokens gives other ids than tokenizers")
    texts = ["caba abcc", "好"]
    assert hard.encode(texts, True)[0].tolist() == [i for text in texts for i in other.encode(text)]


@pytest.mark.slow
def test_the_fast_encoder_agrees_on_random_text(any_tokenizer: Tokenizer) -> None:
    draw = random.Random(5)
    ranges = [(0, 0x7F), (0x80, 0x2FF), (0x300, 0x36F), (0x600, 0xFFF), (0x2000, 0x2FFF), (0x3000, 0x9FFF), (0xAC00, 0xD7A3),
              (0xFF00, 0xFFEF), (0x1F300, 0x1FAFF), (0xE000, 0x10FFFF)]  # fmt: skip
    for _ in range(40):
        texts = []
        for _ in range(50):
            chosen = draw.sample(ranges, draw.randint(1, 4))
            text = "".join(chr(draw.randint(*draw.choice(chosen))) for _ in range(draw.randint(0, 400)))
            texts.append(draw.choice(CONTROL).join([text, " " * draw.randint(0, 40), text[::-1], "\n" * draw.randint(0, 9)]))
        assert lists(any_tokenizer.encode_batch(texts)) == [any_tokenizer.encode(text) for text in texts]


def test_a_document_lies_between_its_start_and_end_tokens(inst: Tokenizer, chatml: Tokenizer) -> None:
    assert inst.decode(inst.encode_document("hello")) == "<s>hello</s>"
    assert chatml.decode(chatml.encode_document("hello")) == "<|endoftext|>hello<|endoftext|>"
    assert inst.decode(inst.encode_document("hello"), skip_special=True) == "hello"


def test_control_tokens_in_a_document_stay_text(chatml: Tokenizer) -> None:
    tokens = chatml.encode_document("a<|endoftext|>b<|im_end|>")
    assert tokens.count(chatml.eos_id) == 2  # its start and its end
    assert chatml.eot_id not in tokens


@pytest.mark.parametrize("template", ["chatml", "inst"])
def test_training_twice_gives_the_same_tokenizer(template: str) -> None:
    one, two = (train_tokenizer(iter(TEXTS), 400, template) for _ in range(2))
    assert one.core.to_str() == two.core.to_str()
    assert one.fingerprint() == two.fingerprint()
    assert one.vocab_size == 400


def test_training_says_when_there_is_no_text() -> None:
    for texts in ([], ["", ""]):
        with pytest.raises(FledgeError, match="no text"):
            train_tokenizer(texts, 400)


def test_no_token_is_longer_than_24_bytes() -> None:
    tokenizer = train_tokenizer(["abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyz"] * 20, 600)
    assert max(len(text) for text in tokenizer.core.get_vocab() if not text.startswith("<|")) <= 24


@pytest.mark.parametrize("template", ["chatml", "inst"])
def test_a_saved_tokenizer_loads_as_it_was(tmp_path: Path, template: str) -> None:
    made = train_tokenizer(TEXTS, 400, template)
    made.save(tmp_path)
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        again = load_tokenizer(path)
        assert again.fingerprint() == made.fingerprint()
        assert again.template == made.template
        assert again.encode_conversation(TALK) == made.encode_conversation(TALK)
        ids = ("pad", "bos_id", "eos_id", "eot_id", "vocab_size", "stop_ids", "added")
        assert [getattr(again, name) for name in ids] == [getattr(made, name) for name in ids]
    again.save(tmp_path / "second")
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / "second" / file).read_bytes() == (tmp_path / file).read_bytes()


@pytest.mark.parametrize("template", ["chatml", "inst"])
def test_transformers_loads_what_was_saved_with_the_same_special_tokens(tmp_path: Path, template: str) -> None:
    made = train_tokenizer(TEXTS, 400, template)
    made.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert (theirs.eos_token_id, theirs.pad_token_id) == (made.eot_id, made.pad)
    assert theirs.bos_token_id == made.bos_id
    for text in TEXTS:
        assert theirs.encode(text, add_special_tokens=False) == made.encode(text)


def test_the_fingerprint_changes_with_the_template(tmp_path: Path, chatml: Tokenizer, inst: Tokenizer) -> None:
    chatml.save(tmp_path)
    assert load_tokenizer(tmp_path, "inst").fingerprint() != chatml.fingerprint()
    assert inst.fingerprint() != chatml.fingerprint()


def test_a_template_that_needs_new_control_tokens_adds_and_counts_them(tmp_path: Path, chatml: Tokenizer) -> None:
    chatml.save(tmp_path)
    again = load_tokenizer(tmp_path, "inst")
    assert (chatml.added, again.added) == (0, 6)
    assert again.vocab_size == chatml.vocab_size + 6
    assert again.decode([again.eot_id]) == "</s>"
    assert again.stop_ids == {again.eos_id, again.eot_id}


def test_a_missing_or_broken_tokenizer_is_named(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(FledgeError, match=f"{path}: there is no tokenizer.json here"):
            load_tokenizer(path)
    (tmp_path / "tokenizer.json").write_text('{"model": 3', encoding="utf-8")
    with pytest.raises(FledgeError, match=r"tokenizer\.json: not a readable tokenizer\.json"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_a_broken_configuration_is_named(tmp_path: Path, chatml: Tokenizer, text: str) -> None:
    chatml.save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(text, encoding="utf-8")
    with pytest.raises(FledgeError, match=r"tokenizer_config\.json"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_without_an_end_token_is_refused(tmp_path: Path) -> None:
    Core(models.BPE(vocab={"a": 0}, merges=[])).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(FledgeError, match="no token is named that ends a text"):
        load_tokenizer(tmp_path)


def test_asking_for_a_template_that_is_not_there_is_refused(tmp_path: Path, chatml: Tokenizer) -> None:
    chatml.core.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(FledgeError, match="own chat template, but it has none"):
        load_tokenizer(tmp_path, "tokenizer")
    assert load_tokenizer(tmp_path).template.name == "chatml"


def test_a_template_that_is_not_jinja_is_refused_on_loading(tmp_path: Path, chatml: Tokenizer) -> None:
    chatml.core.save(str(tmp_path / "tokenizer.json"))
    config = {"eos_token": "<|endoftext|>", "chat_template": "{% for m in %}"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(FledgeError, match="not valid Jinja"):
        load_tokenizer(tmp_path)
