"""Training rows that contain an evaluation text are found; other rows are not."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledge.data.cleaning.contamination import CHARACTERS, MIN_CHARACTERS, MIN_WORDS, WORDS, Contamination
from fledge.errors import FledgeError

QUESTION = "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. How many?"
CHINESE = "白日依山盡，黃河入海流。欲窮千里目，更上一層樓。請問這首詩的作者是誰，他生活在哪個朝代？"


def words(count: int, seed: int = 0) -> str:
    """Random words, separated by spaces."""
    draw = random.Random(seed)
    return " ".join("".join(draw.choices("abcdefghij", k=6)) for _ in range(count))


def characters(count: int, seed: int = 0) -> str:
    """Random Chinese characters."""
    draw = random.Random(seed)
    return "".join(chr(draw.randint(0x4E00, 0x8FFF)) for _ in range(count))


def test_question_is_found_in_any_text_of_a_row() -> None:
    contamination = Contamination.of([QUESTION, CHINESE])
    question = "She sold clips: NATALIA sold clips to 48 of her friends in April -- and then she sold half as many."
    assert (
        contamination.check(["Solve this.", f"Please: {question}", "72"])
        == "NATALIA sold clips to 48 of her friends in April -- and then she"
    )
    excerpt = contamination.check([f"讀詩：{CHINESE[:40]}"])
    assert excerpt is not None and excerpt.startswith("白日依山盡，黃河入海流。欲窮千里目")
    assert contamination.check(["Natalia sold clips to 48 of her friends in March, and then she sold half"]) is None
    assert contamination.check(["白日依山盡，黃河入海流。欲窮千里目。"]) is None


@given(st.integers(1, 40), st.integers(0, 30), st.integers(0, 30), st.booleans())
def test_detection_depends_on_the_length_of_the_evaluation_text(size: int, before: int, after: int, spaced: bool) -> None:
    make, separator, minimum = (words, " ", MIN_WORDS) if spaced else (characters, "", MIN_CHARACTERS)
    text = make(size, 1)
    contamination = Contamination.of([text, make(50, 4)])
    row = separator.join(piece for piece in (make(before, 2), text, make(after, 3)) if piece)
    is_whole = not before and not after
    assert (contamination.check([row]) is not None) == (size >= minimum or is_whole)
    assert contamination.check([make(60, 5)]) is None


@given(st.integers(0, 40), st.integers(0, 40), st.booleans())
def test_part_of_a_long_text_is_found_if_it_is_long_enough(start: int, size: int, spaced: bool) -> None:
    full = words(80, 1).split(" ") if spaced else list(characters(80, 1))
    separator, n = (" ", WORDS) if spaced else ("", CHARACTERS)
    piece = separator.join(full[start : start + size])
    row = separator.join([*(words if spaced else characters)(20, 2).split(" "), piece])
    assert (Contamination.of([separator.join(full)]).check([row]) is not None) == (size >= n)


def test_ngrams_do_not_span_several_texts_of_a_row() -> None:
    text = words(13)
    first, second = text.split(" ")[:6], text.split(" ")[6:]
    contamination = Contamination.of([text])
    assert contamination.check([" ".join(first), " ".join(second)]) is None
    assert contamination.check([" ".join(first + second)]) == text


def test_short_question_is_found_only_as_a_whole_text() -> None:
    contamination = Contamination.of(["Who are you?", "你是谁", "!!!", ""])
    assert contamination.check(["who are YOU"]) == "who are YOU"
    assert contamination.check(["你是谁？", "我是"]) == "你是谁？"
    assert contamination.check(["Tell me, who are you?", "!!!", "", "你是谁呀"]) is None


def test_check_rows_equals_check_of_each_row() -> None:
    draw = random.Random(3)
    texts = [words(draw.randint(1, 30), seed) for seed in range(40)] + [
        characters(draw.randint(1, 60), seed) for seed in range(40)
    ]
    contamination = Contamination.of(texts[::2])
    rows = [[draw.choice(texts) for _ in range(draw.randint(0, 3))] for _ in range(200)]
    excerpts = contamination.check_rows(rows)
    assert excerpts == [contamination.check(row) for row in rows]
    for row, excerpt in zip(rows, excerpts, strict=True):
        hit = [text for text in row if text in texts[::2]]
        assert (excerpt is not None) == bool(hit)
        assert excerpt is None or any(text.startswith(excerpt) for text in hit)
    assert contamination.check_rows([]) == []


def test_empty_evaluation_matches_nothing() -> None:
    assert Contamination.of([]).check([QUESTION, CHINESE, ""]) is None


def test_saved_and_loaded_hashes_give_equal_matches(tmp_path: Path) -> None:
    contamination = Contamination.of([QUESTION, CHINESE, words(9), characters(18), "hello there"])
    contamination.save(tmp_path / "evaluation.safetensors")
    loaded = Contamination.load(tmp_path / "evaluation.safetensors")
    for name in ("long", "heads", "short", "whole"):
        assert len(getattr(contamination, name)) and np.array_equal(getattr(contamination, name), getattr(loaded, name))
    rows = [[QUESTION], [CHINESE], [words(9)], [characters(18)], ["Hello there!"], [words(30, 9)]]
    assert loaded.check_rows(rows) == contamination.check_rows(rows)
    assert [excerpt is not None for excerpt in loaded.check_rows(rows)] == [True] * 5 + [False]


@pytest.mark.parametrize("content", [b"", b"no safetensors", b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "])
def test_invalid_file_is_a_user_error(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(FledgeError):
        Contamination.load(tmp_path / "x.safetensors")


def test_real_questions_are_found_in_their_own_set_and_rarely_in_another(shared_data: Path) -> None:
    def questions(split: str) -> list[str]:
        lines = (shared_data / "gsm8k" / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line)["question"] for line in lines]

    contamination = Contamination.of(questions("test"))
    assert all(excerpts for excerpts in contamination.check_rows([[f"Q: {text}\nA:"] for text in questions("test")]))
    excerpts = [excerpt for excerpt in contamination.check_rows([[text] for text in questions("train")]) if excerpt]
    assert 0 < len(excerpts) <= 10  # phrases such as "miles in 3 hours. At the same rate, how many additional hours would"


def test_real_poems_match_exactly_if_they_share_26_characters(shared_data: Path) -> None:
    poems = json.loads((shared_data / "poetry" / "poet.tang.0.json").read_text(encoding="utf-8"))
    texts = ["".join(poem["paragraphs"]) for poem in poems]
    letters = {text: "".join(character for character in text if character.isalnum()) for text in texts}
    long = [text for text in texts if len(letters[text]) >= CHARACTERS]
    contamination = Contamination.of(long[:300])
    joined = "\n".join(letters[text] for text in long[:300])
    shared = [any(piece in joined for piece in windows(letters[text])) for text in long[300:]]
    assert any(shared) and not all(shared)
    assert [excerpt is not None for excerpt in contamination.check_rows([[text] for text in long[300:]])] == shared


def windows(text: str) -> list[str]:
    """All n-grams of a text."""
    return [text[start : start + CHARACTERS] for start in range(len(text) - CHARACTERS + 1)]
