"""Encoding, training, saving and loading."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer as Core
from tokenizers import models
from transformers import AutoTokenizer

from fledge.errors import FledgeError
from fledge.tokenizer import Message, Tokenizer, load_tokenizer, train_tokenizer
from tests.conftest import TEXTS

UNICODE = st.text(st.characters(codec="utf-8"), max_size=60)
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


@given(st.lists(UNICODE, max_size=5))
def test_a_batch_of_documents_encodes_like_each_alone(chatml: Tokenizer, texts: list[str]) -> None:
    assert chatml.encode_documents(texts) == [chatml.encode_document(text) for text in texts]


def test_a_document_lies_between_its_start_and_end_tokens(inst: Tokenizer, chatml: Tokenizer) -> None:
    assert inst.decode(inst.encode_document("hello")) == "<s>hello</s>"
    assert chatml.decode(chatml.encode_document("hello")) == "<|endoftext|>hello<|endoftext|>"
    assert inst.decode(inst.encode_document("hello"), skip_special=True) == "hello"


def test_control_tokens_in_a_document_stay_text(chatml: Tokenizer) -> None:
    tokens = chatml.encode_document("a<|endoftext|>b<|im_end|>")
    assert tokens.count(chatml.document_end) == 2  # its start and its end
    assert chatml.turn_end not in tokens


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
        ids = ("pad", "document_start", "document_end", "turn_end", "vocab_size", "stop_ids", "added")
        assert [getattr(again, name) for name in ids] == [getattr(made, name) for name in ids]
    again.save(tmp_path / "second")
    for file in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / "second" / file).read_bytes() == (tmp_path / file).read_bytes()


@pytest.mark.parametrize("template", ["chatml", "inst"])
def test_transformers_loads_what_was_saved_with_the_same_special_tokens(tmp_path: Path, template: str) -> None:
    made = train_tokenizer(TEXTS, 400, template)
    made.save(tmp_path)
    theirs = AutoTokenizer.from_pretrained(tmp_path)
    assert (theirs.eos_token_id, theirs.pad_token_id) == (made.turn_end, made.pad)
    assert theirs.bos_token_id == made.document_start
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
    assert again.decode([again.turn_end]) == "</s>"
    assert again.stop_ids == {again.document_end, again.turn_end}


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
