"""Tokenizers of published base models: what stands around a text, missing control tokens, own special tokens, end tokens."""

import json
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer as Core
from tokenizers import decoders, models, pre_tokenizers, trainers
from transformers import AutoTokenizer

from fledge.errors import FledgeError
from fledge.tokenizer import Message, TemplateError, Tokenizer, load_tokenizer, train_tokenizer
from fledge.tokenizer.loading import enclosing
from tests.conftest import TEXTS

CONTROL = ["<|endoftext|>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]


def byte_level(control: list[str]) -> Core:
    """A byte-level BPE tokenizer with these control tokens and no post-processor."""
    core = Core(models.BPE())
    core.pre_tokenizer, core.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=400, special_tokens=control, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    core.train_from_iterator(TEXTS, trainer)
    return core


def saved(folder: Path, core: Core, **config: Any) -> Path:
    """The folder of a tokenizer with this tokenizer_config.json."""
    folder.mkdir(exist_ok=True)
    core.save(str(folder / "tokenizer.json"))
    config = {"tokenizer_class": "PreTrainedTokenizerFast", **config}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.mark.parametrize(
    ("around", "config", "start", "end"),
    [
        ((None, None), {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}, [], ["<|endoftext|>"]),  # as SmolLM
        (("<s>", None), {"bos_token": "<s>", "eos_token": "</s>"}, ["<s>"], ["</s>"]),  # as Llama
        (("<s>", "</s>"), {"bos_token": "<s>", "eos_token": "</s>"}, ["<s>"], ["</s>"]),
        ((None, None), {"bos_token": "<s>", "eos_token": "</s>", "add_bos_token": True}, [], ["</s>"]),
        ((None, None), {"bos_token": "<|endoftext|>", "eos_token": "<|endoftext|>"}, [], ["<|endoftext|>"]),  # as GPT-2
    ],
)
def test_a_document_stands_between_the_tokens_that_the_tokenizer_itself_adds(
    tmp_path: Path, around: tuple[str | None, str | None], config: dict[str, Any], start: list[str], end: list[str]
) -> None:
    core = byte_level(CONTROL)
    core.post_processor = enclosing(core, *around)
    tokenizer = load_tokenizer(saved(tmp_path / "published", core, **config))
    theirs = AutoTokenizer.from_pretrained(tmp_path / "published")
    text = "The fox <|im_start|> 春眠"
    ids = tokenizer.encode_document(text)
    assert tokenizer.decode(ids) == "".join([*start, text, *end])
    assert [tokenizer.core.id_to_token(token) for token in tokenizer.document_start] == start
    expected = theirs.encode(text)
    assert tokenizer.encode_prefix(text) == (expected[:-1] if expected[-1] == tokenizer.document_end[0] else expected)
    tokenizer.save(tmp_path / "again")
    again = load_tokenizer(tmp_path / "again")
    assert (again.encode_document(text), again.fingerprint()) == (ids, tokenizer.fingerprint())
    assert AutoTokenizer.from_pretrained(tmp_path / "again").encode(text) == expected


@pytest.mark.parametrize("template", ["chatml", "inst"])
def test_transformers_gives_a_trained_tokenizers_texts_the_same_start(tmp_path: Path, template: str) -> None:
    tokenizer = train_tokenizer(TEXTS, 400, template)
    tokenizer.save(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).encode("hello") == tokenizer.encode_prefix("hello")
    assert tokenizer.encode_prefix("hello")[0] == tokenizer.bos_id


def test_files_without_the_start_of_documents_keep_the_start_token_that_they_were_trained_with(tmp_path: Path) -> None:
    """Earlier versions put bos_token before a document and did not write a post-processor."""
    folder = saved(tmp_path, byte_level(CONTROL), bos_token="<s>", eos_token="</s>", fledge={"document_end": "</s>"})
    tokenizer = load_tokenizer(folder)
    assert tokenizer.decode(tokenizer.encode_document("hello")) == "<s>hello</s>"
    tokenizer.save(folder)
    assert load_tokenizer(folder).encode_document("hello") == tokenizer.encode_document("hello")


def test_a_base_model_needs_no_control_tokens_for_texts_and_gets_those_of_chatml_for_chat(tmp_path: Path) -> None:
    folder = saved(tmp_path / "base", byte_level(["<|endoftext|>"]), eos_token="<|endoftext|>")
    plain, chat = load_tokenizer(folder, needs_template=False), load_tokenizer(folder)
    assert (plain.added, chat.added) == ((), ("<|im_start|>", "<|im_end|>"))
    assert chat.vocab_size == plain.vocab_size + 2
    assert chat.tokens_from(plain.vocab_size) == [("<|im_start|>", True), ("<|im_end|>", True)]
    with pytest.raises(TemplateError, match="has no chat template"):
        plain.encode_prompt([Message("user", "hello")])
    plain.save(tmp_path / "saved")
    assert not (tmp_path / "saved" / "chat_template.jinja").exists()
    assert load_tokenizer(tmp_path / "saved", needs_template=False).fingerprint() == plain.fingerprint()
    assert load_tokenizer(tmp_path / "saved").fingerprint() == chat.fingerprint()


def test_a_model_that_ends_answers_in_several_ways_stops_at_each_of_them(tmp_path: Path) -> None:
    core = byte_level([*CONTROL, "<|eom_id|>"])
    folder = saved(tmp_path / "model", core, eos_token="<|im_end|>")
    ends = [core.token_to_id(text) for text in ("<|im_end|>", "<|eom_id|>")]
    letter = core.token_to_id("a")  # a default of a configuration, which names an ordinary token
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": [*ends, letter]}), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps({"eos_token_id": core.token_to_id("</s>")}), encoding="utf-8")
    tokenizer = load_tokenizer(folder)
    assert tokenizer.stop_ids == {*ends, tokenizer.eos_id, core.token_to_id("</s>")}
    tokenizer.save(tmp_path / "run")  # a run's tokenizer has no model beside it
    assert load_tokenizer(tmp_path / "run").stop_ids == tokenizer.stop_ids


@pytest.fixture
def own() -> Tokenizer:
    """A trained tokenizer with special tokens of its own."""
    return train_tokenizer([*TEXTS, "<think>hm</think>"] * 2, 420, special_tokens=["<think>", "</think>"])


def test_own_special_tokens_are_single_tokens_in_every_text(own: Tokenizer) -> None:
    assert own.vocab_size <= 420
    ids = own.encode("<think>hm</think>")
    assert [own.decode([token]) for token in (ids[0], ids[-1])] == ["<think>", "</think>"]
    assert own.encode_batch(["<think>hm</think>"])[0].tolist() == ids
    assert own.decode(ids, skip_special=True) == "<think>hm</think>"
    tokens, weights = own.encode_conversation([Message("user", "a"), Message("assistant", "<think>")])
    assert weights[tokens.index(ids[0])] == 1.0
    assert not own.stop_ids & {ids[0], ids[-1]}


def test_own_special_tokens_are_added_to_a_loaded_tokenizer_once(tmp_path: Path, own: Tokenizer) -> None:
    own.save(tmp_path / "own")
    again = load_tokenizer(tmp_path / "own", special_tokens=["<think>", "<tool>", "the"])
    assert again.added == ("<tool>",)
    assert [len(again.encode(text)) for text in ("<tool>", "<think>", "the")] == [1, 1, 1]
    again.save(tmp_path / "again")
    assert AutoTokenizer.from_pretrained(tmp_path / "again").encode("a <tool> b", add_special_tokens=False) == again.encode(
        "a <tool> b"
    )


def test_control_tokens_in_texts_are_parsed_only_on_request(chatml: Tokenizer) -> None:
    parsing, text = chatml.parsing_special_tokens(), "a<|im_end|>b"
    assert chatml.eot_id not in chatml.encode(text)
    assert parsing.encode(text).count(chatml.eot_id) == 1
    assert parsing.encode_batch([text])[0].tolist() == parsing.encode(text)
    assert parsing.encoder_backend == "fastokens"
    messages = [Message("user", text), Message("assistant", "c")]
    rendered = parsing.encode_segments([parsing.template.render(messages)])[0].tokens.tolist()
    assert rendered == parsing.encode_conversation(messages)[0]
    assert rendered.count(chatml.eot_id) == chatml.encode_conversation(messages)[0].count(chatml.eot_id) + 1


@pytest.mark.parametrize("size", [20_000, 80_000])
def test_training_on_one_run_of_characters_learns_merges(size: int) -> None:
    """Without a limit on the length of a piece, the larger text takes twenty times as long as the smaller."""
    text = "春眠不觉晓处处闻啼鸟夜来风雨声花落知多少" * (size // 20)
    tokenizer = train_tokenizer([text], 400)
    assert tokenizer.decode(tokenizer.encode(text[:200])) == text[:200]
    assert len(tokenizer.encode(text)) <= size / 4


def test_the_limit_on_pieces_leaves_ordinary_text_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    with_limit = train_tokenizer(TEXTS, 420).core.to_str()
    monkeypatch.setattr("fledge.tokenizer.training.LONGEST_PIECE", 10**5)
    assert train_tokenizer(TEXTS, 420).core.to_str() == with_limit


def test_training_reports_its_progress(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fledge.tokenizer.training.PROGRESS_SECONDS", 0.0)
    lines: list[str] = []
    train_tokenizer(TEXTS, 420, progress=lines.append)
    assert lines and all(line.startswith("training the tokenizer: 0.0M characters read") for line in lines)


def test_gpt2s_two_files_are_read_as_transformers_reads_them(tmp_path: Path) -> None:
    core = byte_level(["<|endoftext|>"])
    core.model.save(str(tmp_path))
    config = {"tokenizer_class": "GPT2Tokenizer", "eos_token": "<|endoftext|>"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    ours, theirs = load_tokenizer(tmp_path, needs_template=False), AutoTokenizer.from_pretrained(tmp_path)
    for text in (*TEXTS, "a <|endoftext|>b", " x\n\ny  "):
        assert ours.encode_prefix(text) == theirs.encode(text)
    config["tokenizer_class"] = "Qwen2Tokenizer"
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(FledgeError, match="how it splits words is not in these files"):
        load_tokenizer(tmp_path)
