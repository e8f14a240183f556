"""Recipes that are no recipes, or that YAML cannot read: the cause is named, with its line, at once and in little memory."""

import os
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledge.errors import FledgeError
from fledge.recipe import load_recipe
from fledge.recipe.sections.base import check_name

GOOD = "stages:\n  sft:\n    data: {train: a.jsonl}\n"
ROWS = '{"prompt": "a", "response": "b"}\n{"prompt": "c", "response": "d"}\n'
LETTERS = "abcdefghij"
BOMB = "a: &a [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in pairwise(LETTERS)
)
CHAIN = "x0: &x0 [1]\n" + "".join(f"x{number}: &x{number} [*x{number - 1}]\n" for number in range(1, 3000))
MISTAKES = [
    ("name：x\n" + GOOD, 1, "a full-width colon 「：」 stands after a key"),
    ("name: x\nseed：7\n" + GOOD, 2, "a full-width colon"),
    ("stages:\n  sft:\n    data：\n      train: a\n", 3, "a full-width colon"),
    ("stages:\n  sft:\n    data: a.jsonl\n      duration：3 epochs\n", 3, "a full-width colon"),
    ("name：x", 1, "a full-width colon"),
    ("seed:7\n" + GOOD, 1, "no blank stands after a colon"),
    ("stages:\n\tsft:\n", 2, "a tab stands before the key"),
    ("name: “x\na: ”: 3\n", 2, "write ordinary quotes"),
    ("a: 1\n---\nb: 2\n", 2, "a second document begins here"),
    ("name: x\n  seed: 3\n" + GOOD, 2, "indent keys of one section equally"),
    ("name: a\0b\n" + GOOD, 1, "the character U+0000"),
    ("seed: 1\nname: a\x1b[31m\n" + GOOD, 2, "the character U+001B"),
    ("a: " + "[" * 100_000, 1, "nested more than 60 deep"),
    ("a:\n" + "".join(f"{' ' * depth}a:\n" for depth in range(1, 400)), 60, "nested more than 60 deep"),
    ("a: &x [*x]\n" + GOOD, 1, "'*x' is inside of what it repeats"),
    ("a: &x {b: {c: *x}}\n" + GOOD, 1, "'*x' is inside of what it repeats"),
    ("name: !!python/object/apply:os.system ['true']\n" + GOOD, 1, "the tag '!!python/object/apply:os.system' means nothing"),
    ("model: !mine {hidden_size: 64}\n" + GOOD, 1, "the tag '!mine' means nothing"),
    ("name: !!binary aGk=\n" + GOOD, 1, "cannot read 'aGk=' as !!binary"),
    ("[a, b]: 3\n" + GOOD, 1, "a key is one word"),
    ('name: "\\ud800"\n' + GOOD, 1, "half a character"),
    (GOOD + "    length: 3\n", 4, "write duration: 3 epochs, or '3 steps'"),
    (GOOD + "    duration: 3\n", 4, "write duration: 3 epochs; or '3 steps'"),
]
DATA = [ROWS, '[{"prompt": "a"}]', "问题,回答\n你好,你好！\n3,4\n", "q,a\nwhat: x,b\n", "q\ta\n1\t2: 3\n"]


def load_error(file: Path, *overrides: tuple[str, str]) -> str:
    """The message of the error that loading raises."""
    with pytest.raises(FledgeError) as caught:
        load_recipe([str(file)], overrides)
    return caught.value.text()


@pytest.mark.parametrize(("text", "line", "message"), MISTAKES)
def test_a_mistake_is_named_with_its_line(tmp_path: Path, text: str, line: int, message: str) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(text, encoding="utf-8")
    error = load_error(file)
    assert message in error and f"{file}:{line}:" in error


@pytest.mark.parametrize("text", DATA)
def test_data_in_place_of_a_recipe_is_called_data(tmp_path: Path, text: str) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(text, encoding="utf-8")
    assert "this is data, not a recipe" in load_error(file) and f"data: {{train: {file}}}" in load_error(file)


def test_a_file_with_the_name_of_data_is_not_read(tmp_path: Path) -> None:
    (tmp_path / "rows.parquet").write_bytes(b"PAR1\0\0")
    assert "this is data, not a recipe" in load_error(tmp_path / "rows.parquet")


@pytest.mark.parametrize(
    ("text", "message"), [(BOMB, "keys and values when its aliases are followed"), (CHAIN, "nested more than 60 deep")]
)
def test_aliases_cannot_fill_the_memory(tmp_path: Path, text: str, message: str) -> None:
    (tmp_path / "r.yaml").write_text(text + GOOD)
    assert message in load_error(tmp_path / "r.yaml")


def test_aliases_within_the_limits_are_followed(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(
        "stages:\n  sft: &s\n    data: {train: a.jsonl}\n  again:\n    kind: sft\n    data: {train: [a.jsonl]}\n"
        "    batch: &b {micro_batch_size: 3}\n  third:\n    kind: sft\n    data: {train: a.jsonl}\n    batch: *b\n"
    )
    assert load_recipe([str(tmp_path / "r.yaml")]).stages["third"].batch.micro_batch_size == 3


def test_what_is_no_regular_file_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.yaml")
    for file in (tmp_path / "pipe.yaml", Path("/dev/zero")):
        assert "a recipe is a regular file" in load_error(file)
    (tmp_path / "big.yaml").write_bytes(b"a: " + b"x" * 3_000_000)
    assert "too large for a recipe: 2.9 MiB" in load_error(tmp_path / "big.yaml")
    (tmp_path / "gbk.yaml").write_bytes("seed: 1\nname: 我\n".encode("gbk"))
    assert f"{tmp_path / 'gbk.yaml'}:2: this recipe is not UTF-8" in load_error(tmp_path / "gbk.yaml")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "recipe.yaml").write_text(GOOD)
    assert f"a run is resumed by its recipe: {tmp_path / 'run' / 'recipe.yaml'}" in load_error(tmp_path / "run")


def test_a_byte_order_mark_is_no_mistake(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_bytes(b"\xef\xbb\xbf" + GOOD.encode())
    assert list(load_recipe([str(tmp_path / "r.yaml")]).stages) == ["sft"]


def test_a_flag_that_is_not_utf_8_is_named(tmp_path: Path) -> None:
    (tmp_path / "r.yaml").write_text(GOOD)
    assert "--name: the value is not UTF-8" in load_error(tmp_path / "r.yaml", ("name", "a\udcff"))


@pytest.mark.parametrize("name", ["我的模型", "run-1", "Ünï_2.b", "модель", "3"])
def test_names_of_all_scripts_are_allowed(name: str) -> None:
    assert check_name(name) == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", "../x", "a/b", "a\\b", ".x", "-x", "_x", "a b", "a\nb", "a\x1b", "a\u202eb", "我" * 61, "a:b"]
)
def test_names_that_are_no_folder_or_word_are_refused(name: str) -> None:
    with pytest.raises(ValueError, match="a name has"):
        check_name(name)


@given(st.text(max_size=30))
def test_a_name_is_a_folder_below_and_stays_on_its_line(name: str) -> None:
    try:
        check_name(name)
    except ValueError:
        return
    assert Path(name).name == name and name.isprintable() and name[0] not in ".-"


@given(st.text(st.sampled_from("ab:：-[]{}&*!,\"'#|>%@`\n\t \\?~0.")))
def test_any_text_loads_or_raises_an_error_of_ours(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    file = tmp_path_factory.getbasetemp() / "any.yaml"
    file.write_text(text, encoding="utf-8")
    with suppress(FledgeError):
        load_recipe([str(file)])
