"""Values that cannot be read are answered with what was probably meant, and that can be read."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledge.errors import FledgeError
from fledge.recipe import load_recipe
from fledge.recipe.mistyped import ascii_form, meant_number
from fledge.recipe.units import Duration

GOOD = "stages:\n  sft:\n    data: {train: chat.jsonl}\n"


def load_error(folder: Path, text: str) -> str:
    """The error for a recipe of this text."""
    file = folder / "r.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(FledgeError) as caught:
        load_recipe([str(file)])
    return str(caught.value)


@pytest.mark.parametrize(
    ("line", "messages"),
    [
        ("duration: ３ epochs", ("write '3 epochs'",)),
        ("duration: 3轮", ("write '3 epochs'",)),
        ("duration: {epochs: 3}", ("write '3 epochs'",)),
        ("batch: {micro_batch_size: ４}", ("write 4",)),
        ("batch: {micro_batch_size: 4 rows}", ("write 4",)),
        ("batch: {gradient_accumulation_steps: 1k}", ("write 1000",)),
        ("batch: ｛micro_batch_size: 4｝", ("'｛'", "write '{'")),
        ("batch: {micro_batch_size: 4， gradient_accumulation_steps: 1}", ("'，'", "write ','")),
        ("batch: {micro_batch_size：4}", ("full-width colon",)),
        ("optimizer: {learning_rate: 1%}", ("write 0.01",)),
        ("optimizer:\n      learning_rate: 1,5e-4", ("write 1.5e-4",)),
        ("optimizer: {learning_rate: 2×10^-4}", ("write 2e-4",)),
        ("学习率: 1e-4", ("the keys there are init_from, adapter, quantization, data",)),
        ('init_from: "C:\\Users\\me"', ("a backslash begins an escape",)),
    ],
)
def test_the_meant_value_is_said(tmp_path: Path, line: str, messages: tuple[str, ...]) -> None:
    text = load_error(tmp_path, f"{GOOD}    {line}\n")
    assert all(message in text for message in messages), text


def test_a_key_of_a_word_or_another_type_has_one_problem(tmp_path: Path) -> None:
    text = load_error(tmp_path, f"{GOOD}runtime: {{compile: 否}}\n")
    assert text.startswith("1 problem") and "'auto' or a valid boolean" in text and "write false" in text


def test_names_in_full_width_quotes_sections_and_shares(tmp_path: Path) -> None:
    assert "write r" in load_error(tmp_path, f"name: “r”\n{GOOD}")
    assert "this is a share: 20 % is 0.2" in load_error(tmp_path, GOOD.replace("}", ", validation: 20}"))
    listed = load_error(tmp_path, "stages:\n  - sft:\n      data: {train: chat.jsonl}\n")
    assert "this is a section of keys" in listed and "leave out the `-`" in listed
    assert "r.yaml:1: the key 'stages' is missing, such as stages: {sft:" in load_error(tmp_path, "# nothing\n")


def test_durations_are_read_in_any_case() -> None:
    assert Duration.parse("3 Epochs") == Duration.parse("3 epochs")
    assert Duration.parse("20m TOKENS") == Duration.parse("20M tokens")


@given(st.floats(1e-6, 1e6), st.sampled_from(["{}", "{} rows", "“{}”", " {}"]))
def test_a_meant_number_is_that_number(value: float, form: str) -> None:
    text = meant_number(form.format(f"{value:.6g}"))
    assert text is not None and float(text) == pytest.approx(value, rel=1e-5)


@given(st.text())
def test_anything_has_an_ascii_form_and_perhaps_a_number(text: str) -> None:
    assert isinstance(ascii_form(text), str)
    number = meant_number(text)
    assert number is None or isinstance(float(number), float)
