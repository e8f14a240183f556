"""`fledge data show`: trained text is visible, with and without colours."""

from io import StringIO
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from fledge.inspect.show import CONTEXT, TRAINED, paint
from fledge.tokenizer import Tokenizer
from tests.inspect.conftest import Fledge, write
from tests.support.sources import jsonl


def text_with_brackets(tokenizer: Tokenizer, text: str, weights: list[float]) -> str:
    """The painted text without colours, where brackets mark trained text."""
    tokens = np.asarray(tokenizer.encode(text))
    assert len(tokens) == len(weights), tokens
    return paint(tokenizer, tokens, np.asarray(weights, np.float32), brackets=True).plain


def test_trained_text_is_in_brackets_when_there_are_no_colours(chatml: Tokenizer) -> None:
    assert text_with_brackets(chatml, "12345", [0, 0, 1, 1, 0]) == "12⟦34⟧5"
    assert text_with_brackets(chatml, "12345", [1, 1, 0, 0, 1]) == "1⟦2⟧34⟦5⟧"
    assert text_with_brackets(chatml, "123", [0, 0, 0]) == "123"


def test_a_weight_other_than_1_is_printed_before_its_text(chatml: Tokenizer) -> None:
    assert text_with_brackets(chatml, "123456", [0, 0.5, 0.5, 1, 1, 0]) == "1⟦[0.5]2345⟧6"
    assert text_with_brackets(chatml, "1234", [0, 1, 0.25, 0]) == "1⟦2[0.25]3⟧4"


def test_colours_follow_the_weights(chatml: Tokenizer) -> None:
    tokens = np.asarray(chatml.encode("123"))
    text = paint(chatml, tokens, np.asarray([0, 0, 1], np.float32))
    assert [str(span.style).split(" underline")[0] for span in text.spans] == [CONTEXT, CONTEXT, TRAINED]
    out = StringIO()
    Console(file=out, force_terminal=True, color_system="standard").print(text)
    assert "\x1b[30;42m3" in out.getvalue()


def test_control_characters_are_shown_as_visible_pictures(chatml: Tokenizer) -> None:
    tokens = np.asarray(chatml.encode("a\x1b[31m\x07\nb\tc\x7f"))
    assert paint(chatml, tokens, np.zeros(len(tokens), np.float32)).plain == "a␛[31m␇⏎\nb⇥c␡"


def test_a_character_of_several_tokens_stands_at_its_last_token(chatml: Tokenizer) -> None:
    tokens = np.asarray(chatml.encode("龘a 黃"))
    assert len(tokens) > 4
    assert paint(chatml, tokens, np.zeros(len(tokens), np.float32), brackets=True).plain == "龘a 黃"
    assert paint(chatml, tokens, np.zeros(len(tokens), np.float32)).plain.replace("·", "") == "龘a 黃"
    assert paint(chatml, tokens[:1], np.zeros(1, np.float32), brackets=True).plain == "·"  # cut inside of a character


def test_a_control_token_looks_different_from_the_same_text_spelled_out(chatml: Tokenizer) -> None:
    tokens = np.asarray([*chatml.encode("a<|im_end|>"), chatml.eot_id])
    weights = np.zeros(len(tokens), np.float32)
    assert paint(chatml, tokens, weights, brackets=True).plain == "a<|im_end|>«<|im_end|>»"
    styles = {str(span.style) for span in paint(chatml, tokens, weights).spans if "blue" in str(span.style)}
    assert len(styles) == 1


def test_white_space_is_visible_where_it_could_be_missed(chatml: Tokenizer) -> None:
    tokens = np.asarray([*chatml.encode(" a b  \n\tc\xa0 "), chatml.eot_id])
    painted = paint(chatml, tokens, np.zeros(len(tokens), np.float32), brackets=True)
    assert painted.plain == " a b␠␠⏎\n⇥c⍽␠«<|im_end|>»"


def test_each_example_shows_the_location_of_its_row(fledge: Fledge, recipe: Path, folder: Path) -> None:
    code, output, _ = fledge("show", recipe, "--stage", "sft", "--limit", "2")
    assert code == 0 and output.count("example ") == 2
    assert f"trained · {folder / 'talks.jsonl'}:" in output.replace("\n", "")
    assert "⟦" in output and "«<|im_end|>»⟧" in output


def test_a_preference_pair_shows_both_answers(fledge: Fledge, built: Path) -> None:
    code, output, _ = fledge("show", built, "--stage", "dpo", "--offset", "2", "--limit", "1")
    assert code == 0 and "example 2 chosen" in output and "example 2 rejected" in output
    assert "⟦yes, 2 it is«<|im_end|>»⟧" in output and "⟦no, not 2 at all«<|im_end|>»⟧" in output


def test_one_row_is_shown_by_its_location_without_a_stage(fledge: Fledge, recipe: Path) -> None:
    code, output, _ = fledge("show", recipe, "--row", "talks.jsonl:2")
    assert code == 0 and "1 plus 1 is 2" in output and "2 plus 1 is 3" not in output


def test_the_weight_of_a_single_turn_is_shown(fledge: Fledge, tree: dict[str, Any], tmp_path: Path) -> None:
    turns = [{"role": "user", "content": "a?"}, {"role": "assistant", "content": "bcd", "weight": 0.5}]
    file = jsonl(tmp_path / "a.jsonl", [{"messages": turns}])
    stages = {"sft": {"data": {"train": str(file), "validation": 0, "max_seq_len": 96}}}
    code, output, _ = fledge("show", write(tmp_path / "r.yaml", {**tree, "stages": stages}))
    assert code == 0 and "⟦[0.5]bcd«<|im_end|>»⟧" in output


def test_missing_stages_examples_and_rows_raise_errors(fledge: Fledge, recipe: Path) -> None:
    for words, expected in (
        ((recipe,), "say which stage"),
        ((recipe, "--stage", "sft", "--offset", "99"), "there is no example 99: the stage has"),
        ((recipe, "--stage", "sft", "--limit", "0"), "--limit must be above 0"),
        ((recipe, "--row", "talks.jsonl:22"), "this row gives no example"),
        ((recipe, "--row", "talks.jsonl:99"), "no source has this row"),
    ):
        code, _, messages = fledge("show", *words)
        assert code == 2 and expected in messages, words
