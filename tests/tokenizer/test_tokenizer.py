"""Tokenizers: encoding, training, saving and loading."""

import json
import random
from collections.abc import Callable, Sequence
from itertools import groupby
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
from fledge.tokenizer.fast_encoder import VerifiedFastEncoder
from fledge.tokenizer.native_templates import CHATML
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
def test_decoding_gives_back_any_text_byte_for_byte(chatml: Tokenizer, text: str) -> None:
    assert chatml.decode(chatml.encode(text)) == text


@given(st.integers(0, 10**12))
def test_every_digit_is_a_single_token(chatml: Tokenizer, number: int) -> None:
    assert [chatml.decode([token]) for token in chatml.encode(str(number))] == list(str(number))


def test_frequent_numbers_are_not_merged_into_one_token() -> None:
    tokenizer = train_tokenizer(["in 2024 and 2024, 2024 again"] * 50, 400)
    assert len(tokenizer.encode("2024")) == 4
    assert len(tokenizer.encode(" again")) == 1


@pytest.fixture(scope="session")
def thinking() -> Tokenizer:
    """A tokenizer with an added token that is not special, and with an added token that takes the spaces around it."""
    tokenizer = train_tokenizer(TEXTS, 420, "chatml")
    core = tokenizer.core
    core.add_tokens([AddedToken("<think>", special=False), AddedToken("[/INST]", special=True, lstrip=True, rstrip=True)])
    return Tokenizer(core, CHATML, bos="<|endoftext|>", eos="<|endoftext|>", pad="<|endoftext|>")


@pytest.fixture(scope="session", params=["chatml", "inst", "thinking"])
def any_tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    """Each kind of tokenizer."""
    return request.getfixturevalue(request.param)


def as_lists(arrays: Sequence[np.ndarray]) -> list[list[int]]:
    """The int32 arrays as lists."""
    assert all(array.dtype == np.int32 for array in arrays)
    return [array.tolist() for array in arrays]


@settings(max_examples=150)
@given(st.lists(TRICKY, max_size=5))
def test_a_batch_of_texts_has_the_ids_of_each_single_text(any_tokenizer: Tokenizer, texts: list[str]) -> None:
    assert any_tokenizer.encoder_backend == "fastokens"
    assert as_lists(any_tokenizer.encode_batch(texts)) == [any_tokenizer.encode(text) for text in texts]
    assert as_lists(any_tokenizer.encode_documents(texts)) == [any_tokenizer.encode_document(text) for text in texts]


SEGMENTS = st.builds(
    TextSegment, TRICKY, st.sampled_from([0.0, 0.5, 1.0]), st.booleans(), st.none() | st.integers(0, 5)
)  # fmt: skip


def merged(runs: list[tuple[float, int, str]]) -> list[tuple[float, int, str]]:
    """The runs without white space, which some control tokens take in; neighbours of equal weight and turn are made one."""
    texts = [(*key, "".join(text.split())) for *key, text in runs]
    return [
        (*key, "".join(text for *_, text in run)) for key, run in groupby(filter(lambda t: t[2], texts), lambda run: run[:2])
    ]


@settings(max_examples=150)
@given(batch=st.lists(st.lists(SEGMENTS, max_size=5), max_size=4))
def test_a_batch_of_renderings_has_the_tokens_of_each_single_rendering(
    any_tokenizer: Tokenizer, batch: list[list[TextSegment]]
) -> None:
    encodings = any_tokenizer.encode_segments(batch)
    assert [(encoding.tokens.tolist(), encoding.weights.tolist()) for encoding in encodings] == [
        any_tokenizer.encode_rendering(rendering) for rendering in batch
    ]
    for encoding, rendering in zip(encodings, batch, strict=True):
        written = groupby(rendering, lambda segment: (segment.weight, -1 if segment.turn is None else segment.turn))
        expected = [(*key, "".join(segment.text for segment in run)) for key, run in written]
        triples = zip(encoding.weights.tolist(), encoding.turns.tolist(), encoding.tokens.tolist(), strict=True)
        encoded = groupby(triples, lambda triple: triple[:2])
        decoded = [(*key, any_tokenizer.decode([token for *_, token in run])) for key, run in encoded]
        assert merged(decoded) == merged(expected)
        assert (encoding.tokens.dtype, encoding.weights.dtype, encoding.turns.dtype) == (np.int32, np.float32, np.int32)


def test_encoding_a_batch_with_a_lone_surrogate_raises_an_error(any_tokenizer: Tokenizer) -> None:
    for _ in range(2):  # at first use and later
        with pytest.raises(UnicodeEncodeError):
            any_tokenizer.encode_batch(["fine", "half \ud800"])
        assert any_tokenizer.encoder_backend == "fastokens"


def test_a_text_on_which_the_fast_encoder_fails_is_encoded_by_the_exact_one(chatml: Tokenizer) -> None:
    """A million spaces are too many for the regular expression of fastokens."""
    texts = ["before", " " * 1_000_000, "after"]
    assert as_lists(chatml.encode_batch(texts)) == [chatml.encode(text) for text in texts]
    assert chatml.encoder_backend == "fastokens"


def with_end_token(core: Core) -> Tokenizer:
    """A tokenizer of another library model, with an end token."""
    core.add_special_tokens(["<end>"])
    return Tokenizer(core, CHATML, bos=None, eos="<end>", pad="<end>")


def letters() -> list[str]:
    """A small vocabulary."""
    return ["<unk>", *"abcdefghijklmnopqrstuvwxyz", *(f"##{letter}" for letter in "abc")]


def wordpiece() -> Core:
    """A WordPiece model."""
    core = Core(models.WordPiece({text: i for i, text in enumerate(letters())}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return core


def unigram() -> Core:
    """A Unigram model."""
    core = Core(models.Unigram([(text, -1.0 - i) for i, text in enumerate(letters())], 0, byte_fallback=False))
    core.pre_tokenizer = pre_tokenizers.Metaspace()
    return core


def stripped() -> Core:
    """A BPE model whose normalizer removes accents and capitals."""
    core = Core.from_str(train_tokenizer(TEXTS, 420).core.to_str())
    core.normalizer = normalizers.Sequence([normalizers.StripAccents(), normalizers.Lowercase()])
    return core


def spelled() -> Core:
    """A BPE model whose normalizer replaces characters."""
    core = Core(models.BPE({text: i for i, text in enumerate([*letters(), "ab", "▁"])}, [("a", "b")], unk_token="<unk>"))
    core.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Replace(" ", "▁")])
    core.decoder = decoders.Replace("▁", " ")
    return core


@pytest.mark.parametrize("core", [wordpiece, unigram, stripped, spelled])
def test_batches_of_any_other_tokenizer_model_have_the_exact_ids(core: Callable[[], Core]) -> None:
    """fastokens where it agrees with tokenizers, else tokenizers, with the reason."""
    tokenizer = with_end_token(core())
    texts = ["abc cab", "Zwölf Boxkämpfer, 12 + 30", "ａｂ ﬁ", "<end>a<end>", *TEXTS]
    assert as_lists(tokenizer.encode_batch(texts)) == [tokenizer.encode(text) for text in texts]
    assert (tokenizer.encoder_backend == "fastokens") == (tokenizer.encoder_fallback_reason == "")
    if core in (wordpiece, unigram):
        assert tokenizer.encoder_backend == "tokenizers"
        assert "fastokens cannot load it" in tokenizer.encoder_fallback_reason


def test_a_fast_encoder_that_disagrees_is_not_used(chatml: Tokenizer) -> None:
    """The fast encoder of one tokenizer is compared with the exact encoder of another one: every check must fail."""
    other = train_tokenizer(["".join(random.Random(1).choices("abc 好", k=300))], 420)
    encoder = VerifiedFastEncoder(chatml.core, other.core)
    assert (encoder.name, encoder.reason) == ("tokenizers", "fastokens gives other ids than tokenizers")
    texts = ["caba abcc", "好"]
    assert encoder.encode(texts, True)[0].tolist() == [i for text in texts for i in other.encode(text)]


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
        assert as_lists(any_tokenizer.encode_batch(texts)) == [any_tokenizer.encode(text) for text in texts]


def test_a_document_is_enclosed_by_start_and_end_tokens(inst: Tokenizer, chatml: Tokenizer) -> None:
    assert inst.decode(inst.encode_document("hello")) == "<s>hello</s>"
    assert chatml.decode(chatml.encode_document("hello")) == "<|endoftext|>hello<|endoftext|>"
    assert inst.decode(inst.encode_document("hello"), skip_special=True) == "hello"


def test_control_tokens_inside_a_document_are_encoded_as_text(chatml: Tokenizer) -> None:
    tokens = chatml.encode_document("a<|endoftext|>b<|im_end|>")
    assert tokens.count(chatml.eos_id) == 2  # its start and its end
    assert chatml.eot_id not in tokens


@pytest.mark.parametrize("template", ["chatml", "inst"])
def test_training_twice_gives_the_same_tokenizer(template: str) -> None:
    one, two = (train_tokenizer(iter(TEXTS), 400, template) for _ in range(2))
    assert one.core.to_str() == two.core.to_str()
    assert one.fingerprint() == two.fingerprint()
    assert one.vocab_size == 400


def test_training_without_text_raises_an_error() -> None:
    for texts in ([], ["", ""]):
        with pytest.raises(FledgeError, match="no text"):
            train_tokenizer(texts, 400)


def test_no_token_is_longer_than_24_bytes() -> None:
    tokenizer = train_tokenizer(["abcdefghijklmnopqrstuvwxyzabcdefghijklmnopqrstuvwxyz"] * 20, 600)
    assert max(len(text) for text in tokenizer.core.get_vocab() if not text.startswith("<|")) <= 24


@pytest.mark.parametrize("template", ["chatml", "inst"])
def test_a_saved_tokenizer_is_loaded_unchanged(tmp_path: Path, template: str) -> None:
    tokenizer = train_tokenizer(TEXTS, 400, template)
    tokenizer.save(tmp_path)
    for path in (tmp_path, tmp_path / "tokenizer.json"):
        again = load_tokenizer(path)
        assert again.fingerprint() == tokenizer.fingerprint()
        assert again.template == tokenizer.template
        assert again.encode_conversation(TALK) == tokenizer.encode_conversation(TALK)
        ids = ("pad", "bos_id", "eos_id", "eot_id", "vocab_size", "stop_ids", "added", "document_start", "document_end")
        assert [getattr(again, name) for name in ids] == [getattr(tokenizer, name) for name in ids]
    again.save(tmp_path / "second")
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / "second" / file).read_bytes() == (tmp_path / file).read_bytes()


@pytest.mark.parametrize("template", ["chatml", "inst"])
def test_transformers_loads_a_saved_tokenizer_with_equal_special_tokens(tmp_path: Path, template: str) -> None:
    tokenizer = train_tokenizer(TEXTS, 400, template)
    tokenizer.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert (theirs.eos_token_id, theirs.pad_token_id) == (tokenizer.eot_id, tokenizer.pad)
    assert theirs.bos_token_id == tokenizer.bos_id
    for text in TEXTS:
        assert theirs.encode(text, add_special_tokens=False) == tokenizer.encode(text)


def test_the_fingerprint_changes_with_the_template(tmp_path: Path, chatml: Tokenizer, inst: Tokenizer) -> None:
    chatml.save(tmp_path)
    assert load_tokenizer(tmp_path, "inst").fingerprint() != chatml.fingerprint()
    assert inst.fingerprint() != chatml.fingerprint()


def test_control_tokens_that_a_template_needs_are_added_and_counted(tmp_path: Path, chatml: Tokenizer) -> None:
    chatml.save(tmp_path)
    again = load_tokenizer(tmp_path, "inst")
    assert (chatml.added, again.added) == ((), ("<s>", "</s>", "[INST]", "[/INST]", "<<SYS>>", "<</SYS>>"))
    assert again.vocab_size == chatml.vocab_size + 6
    assert again.decode([again.eot_id]) == "</s>"
    assert again.stop_ids == {again.eos_id, again.eot_id, chatml.eot_id}  # the end of a turn that the model knows stays one


def test_the_error_for_a_missing_or_broken_tokenizer_names_the_file(tmp_path: Path) -> None:
    for path, what in ((tmp_path, "there is no tokenizer.json here"), (tmp_path / "nowhere", "there is no such file")):
        with pytest.raises(FledgeError, match=f"{path}: {what}"):
            load_tokenizer(path)
    (tmp_path / "tokenizer.json").write_text('{"model": 3', encoding="utf-8")
    with pytest.raises(FledgeError, match=r"tokenizer\.json: not a readable tokenizer\.json"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("text", ["{", "[1]"])
def test_the_error_for_a_broken_configuration_names_the_file(tmp_path: Path, chatml: Tokenizer, text: str) -> None:
    chatml.save(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(text, encoding="utf-8")
    with pytest.raises(FledgeError, match=r"tokenizer_config\.json"):
        load_tokenizer(tmp_path)


def test_a_tokenizer_without_an_end_token_raises_an_error(tmp_path: Path) -> None:
    Core(models.BPE(vocab={"a": 0}, merges=[])).save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(FledgeError, match="no token that ends a text is configured"):
        load_tokenizer(tmp_path)


def test_requesting_the_tokenizers_template_raises_an_error_when_it_has_none(tmp_path: Path, chatml: Tokenizer) -> None:
    chatml.core.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(FledgeError, match="own chat template, but it has none"):
        load_tokenizer(tmp_path, "tokenizer")
    assert load_tokenizer(tmp_path).template.name == "chatml"


def test_a_template_that_is_not_valid_jinja_raises_an_error_on_loading(tmp_path: Path, chatml: Tokenizer) -> None:
    chatml.core.save(str(tmp_path / "tokenizer.json"))
    config = {"eos_token": "<|endoftext|>", "chat_template": "{% for m in %}"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(FledgeError, match="not valid Jinja"):
        load_tokenizer(tmp_path)
