"""Files that are no tokenizer, or a damaged one: each error names the cause, the file and the way on."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fledge.errors import FledgeError
from fledge.tokenizer import Tokenizer, load_tokenizer

SETTINGS = (
    "bos_token", "eos_token", "pad_token", "unk_token", "chat_template", "fledge", "fledge.template", "fledge.specials",
    "fledge.document_end", "fledge.document_start", "fledge.stop_tokens",
)  # fmt: skip
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just("<|im_end|>"),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["content", "name", "template"]), inner, max_size=3)
    ),
    max_leaves=5,
)  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, chatml: Tokenizer) -> Path:
    """A saved tokenizer."""
    chatml.save(tmp_path)
    return tmp_path


def problem(path: Path, **options: Any) -> str:
    """The message of the error for a path."""
    with pytest.raises(FledgeError) as caught:
        load_tokenizer(path, **options)
    return str(caught.value)


@settings(max_examples=60)
@given(changes=st.dictionaries(st.sampled_from(SETTINGS), VALUES, min_size=1, max_size=2))
def test_any_value_of_a_setting_gives_a_tokenizer_or_an_error_with_its_file(
    tmp_path_factory: pytest.TempPathFactory, chatml: Tokenizer, changes: dict[str, Any]
) -> None:
    folder = tmp_path_factory.mktemp("hostile")
    chatml.core.save(str(folder / "tokenizer.json"))
    config: dict[str, Any] = {"eos_token": "<|im_end|>", "fledge": {}}
    for key, value in changes.items():
        section, _, name = key.rpartition(".")
        if isinstance(config.get("fledge"), dict) or not section:
            (config["fledge"] if section else config)[name] = value
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    try:
        load_tokenizer(folder)
    except FledgeError as error:
        assert error.where is not None


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("eos_token", 5, "eos_token: Input should be a valid string (found: int)"),
        ("eos_token", {"content": ["</s>"]}, "eos_token: Input should be a valid string (found: list)"),
        ("pad_token", "x" * 10_000, "pad_token: String should have at most 512 characters"),
        ("chat_template", 7, "chat_template: Input should be a valid string"),
        ("chat_template", [{"name": "default"}], "chat_template: expected a text, or a list of objects with name and template"),
        ("fledge", {"specials": [1]}, "fledge.specials.0: Input should be a valid string"),
    ],
)
def test_a_setting_of_the_wrong_type_is_named_with_its_file(folder: Path, key: str, value: Any, expected: str) -> None:
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|im_end|>", key: value}), encoding="utf-8")
    (folder / "chat_template.jinja").unlink()
    message = problem(folder)
    assert f"{folder / 'tokenizer_config.json'}: {expected}" in message


def test_deep_nesting_and_end_tokens_of_the_wrong_type_are_errors(folder: Path) -> None:
    (folder / "tokenizer_config.json").write_text('{"a":' + "[" * 100_000, encoding="utf-8")
    assert "cannot be read as JSON" in problem(folder)
    (folder / "tokenizer_config.json").write_text('{"eos_token": "<|im_end|>"}', encoding="utf-8")
    (folder / "generation_config.json").write_text('{"eos_token_id": "2"}', encoding="utf-8")
    assert f"{folder / 'generation_config.json'}: eos_token_id" in problem(folder)


@pytest.mark.parametrize(
    ("vocabulary", "expected"),
    [
        ({"a": 4_294_967_295}, "the token 'a' has the id 4,294,967,295, although there are only 1 tokens"),
        ({}, "this tokenizer has no tokens"),
        ({"a": 0, "b": 0}, "several tokens have the same id"),
    ],
)
def test_a_tokenizer_with_absurd_ids_is_an_error(tmp_path: Path, vocabulary: dict[str, int], expected: str) -> None:
    values = {"version": "1.0", "added_tokens": [], "model": {"type": "BPE", "vocab": vocabulary, "merges": []}}
    (tmp_path / "tokenizer.json").write_text(json.dumps(values), encoding="utf-8")
    assert expected in problem(tmp_path)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("tokenizer.model", "a SentencePiece model (tokenizer.model)"),
        ("vocab.txt", "a WordPiece vocabulary (vocab.txt)"),
        ("qwen.tiktoken", "a vocabulary of tiktoken (qwen.tiktoken)"),
    ],
)
def test_other_formats_are_named_with_the_command_that_converts_them(tmp_path: Path, name: str, expected: str) -> None:
    (tmp_path / name).write_bytes(b"\x0a\x07")
    message = problem(tmp_path)
    assert expected in message and f"AutoTokenizer.from_pretrained('{tmp_path}').save_pretrained('{tmp_path}')" in message


def test_a_path_without_a_tokenizer_names_the_key_that_was_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert "check model.path" in problem(Path("nowhere"), key="model.path")
    message = problem(Path("Owner/Model-0.6B"), key="stages.sft.init_from")
    assert message.startswith("stages.sft.init_from: ") and "hf download Owner/Model-0.6B" in message
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text("{}", encoding="utf-8")
    assert "set tokenizer.path" in problem(tmp_path / "model", key="model.path")
    (tmp_path / "run" / "tokenizer").mkdir(parents=True)
    (tmp_path / "run" / "tokenizer" / "tokenizer.json").write_text("{}", encoding="utf-8")
    assert "there is one in" in problem(tmp_path / "run")


def test_weights_pointers_and_unreadable_files_are_named(tmp_path: Path, folder: Path) -> None:
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"\x08\0\0\0\0\0\0\0{}")
    assert "these are weights, not a tokenizer" in problem(weights)
    (folder / "tokenizer.json").write_text("version https://git-lfs.github.com/spec/v1\noid sha256:0\n", encoding="utf-8")
    assert "Git LFS pointer" in problem(folder) and "git lfs pull" in problem(folder)
    (folder / "tokenizer.json").unlink()
    os.mkfifo(folder / "tokenizer.json")
    assert "there is no tokenizer.json here" in problem(folder)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission_is_named_as_such(folder: Path) -> None:
    (folder / "tokenizer.json").chmod(0)
    assert "Permission denied" in problem(folder)
