"""Training rows that hold an evaluation text are found wherever it stands; others are not."""

import json
import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledge.data.cleaning.contamination import CHARACTERS, LEAST_CHARACTERS, LEAST_WORDS, WORDS, Contamination
from fledge.errors import FledgeError

QUESTION = "Natalia sold clips to 48 of her friends in April, and then she sold half as many clips in May. How many?"
CHINESE = "白日依山盡，黃河入海流。欲窮千里目，更上一層樓。請問這首詩的作者是誰，他生活在哪個朝代？"


def words(count: int, seed: int = 0) -> str:
    draw = random.Random(seed)
    return " ".join("".join(draw.choices("abcdefghij", k=6)) for _ in range(count))


def characters(count: int, seed: int = 0) -> str:
    draw = random.Random(seed)
    return "".join(chr(draw.randint(0x4E00, 0x8FFF)) for _ in range(count))


def test_a_question_is_found_inside_any_text_of_a_row() -> None:
    held = Contamination.of([QUESTION, CHINESE])
    asked = "She sold clips: NATALIA sold clips to 48 of her friends in April -- and then she sold half as many."
    assert (
        held.check(["Solve this.", f"Please: {asked}", "72"])
        == "NATALIA sold clips to 48 of her friends in April -- and then she"
    )
    found = held.check([f"讀詩：{CHINESE[:40]}"])
    assert found is not None and found.startswith("白日依山盡，黃河入海流。欲窮千里目")
    assert held.check(["Natalia sold clips to 48 of her friends in March, and then she sold half"]) is None
    assert held.check(["白日依山盡，黃河入海流。欲窮千里目。"]) is None


@given(st.integers(1, 40), st.integers(0, 30), st.integers(0, 30), st.booleans())
def test_what_is_found_depends_on_the_length_of_the_evaluation_text(size: int, before: int, after: int, spaced: bool) -> None:
    make, joint, least = (words, " ", LEAST_WORDS) if spaced else (characters, "", LEAST_CHARACTERS)
    text = make(size, 1)
    held = Contamination.of([text, make(50, 4)])
    row = joint.join(part for part in (make(before, 2), text, make(after, 3)) if part)
    alone = not before and not after
    assert (held.check([row]) is not None) == (size >= least or alone)
    assert held.check([make(60, 5)]) is None


@given(st.integers(0, 40), st.integers(0, 40), st.booleans())
def test_a_part_of_a_long_text_is_found_if_it_is_long_enough(start: int, size: int, spaced: bool) -> None:
    full = words(80, 1).split(" ") if spaced else list(characters(80, 1))
    joint, n = (" ", WORDS) if spaced else ("", CHARACTERS)
    part = joint.join(full[start : start + size])
    row = joint.join([*(words if spaced else characters)(20, 2).split(" "), part])
    assert (Contamination.of([joint.join(full)]).check([row]) is not None) == (size >= n)


def test_ngrams_do_not_reach_over_the_texts_of_a_row() -> None:
    text = words(13)
    first, second = text.split(" ")[:6], text.split(" ")[6:]
    held = Contamination.of([text])
    assert held.check([" ".join(first), " ".join(second)]) is None
    assert held.check([" ".join(first + second)]) == text


def test_short_questions_are_found_only_as_whole_texts() -> None:
    held = Contamination.of(["Who are you?", "你是谁", "!!!", ""])
    assert held.check(["who are YOU"]) == "who are YOU"
    assert held.check(["你是谁？", "我是"]) == "你是谁？"
    assert held.check(["Tell me, who are you?", "!!!", "", "你是谁呀"]) is None


def test_many_rows_at_once_give_what_each_gives_alone() -> None:
    draw = random.Random(3)
    texts = [words(draw.randint(1, 30), seed) for seed in range(40)] + [
        characters(draw.randint(1, 60), seed) for seed in range(40)
    ]
    held = Contamination.of(texts[::2])
    rows = [[draw.choice(texts) for _ in range(draw.randint(0, 3))] for _ in range(200)]
    found = held.check_rows(rows)
    assert found == [held.check(row) for row in rows]
    for row, excerpt in zip(rows, found, strict=True):
        hit = [text for text in row if text in texts[::2]]
        assert (excerpt is not None) == bool(hit)
        assert excerpt is None or any(text.startswith(excerpt) for text in hit)
    assert held.check_rows([]) == []


def test_nothing_is_held_by_an_empty_evaluation() -> None:
    assert Contamination.of([]).check([QUESTION, CHINESE, ""]) is None


def test_saved_hashes_find_the_same(tmp_path: Path) -> None:
    held = Contamination.of([QUESTION, CHINESE, words(9), characters(18), "hello there"])
    held.save(tmp_path / "evaluation.safetensors")
    loaded = Contamination.load(tmp_path / "evaluation.safetensors")
    for name in ("long", "heads", "short", "whole"):
        assert len(getattr(held, name)) and np.array_equal(getattr(held, name), getattr(loaded, name))
    rows = [[QUESTION], [CHINESE], [words(9)], [characters(18)], ["Hello there!"], [words(30, 9)]]
    assert loaded.check_rows(rows) == held.check_rows(rows)
    assert [found is not None for found in loaded.check_rows(rows)] == [True] * 5 + [False]


@pytest.mark.parametrize("content", [b"", b"no safetensors", b"\x08\x00\x00\x00\x00\x00\x00\x00{}      "])
def test_a_file_that_is_not_ours_is_an_error_of_the_users(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(FledgeError):
        Contamination.load(tmp_path / "x.safetensors")


def test_real_questions_are_found_in_their_own_set_and_hardly_in_another(shared_data: Path) -> None:
    def questions(part: str) -> list[str]:
        lines = (shared_data / "gsm8k" / f"{part}.jsonl").read_text(encoding="utf-8").splitlines()
        return [json.loads(line)["question"] for line in lines]

    held = Contamination.of(questions("test"))
    assert all(found for found in held.check_rows([[f"Q: {text}\nA:"] for text in questions("test")]))
    found = [excerpt for excerpt in held.check_rows([[text] for text in questions("train")]) if excerpt]
    assert 0 < len(found) <= 10  # phrases such as "miles in 3 hours. At the same rate, how many additional hours would"


def test_real_poems_are_found_exactly_where_they_share_26_characters(shared_data: Path) -> None:
    poems = json.loads((shared_data / "poetry" / "poet.tang.0.json").read_text(encoding="utf-8"))
    texts = ["".join(poem["paragraphs"]) for poem in poems]
    bare = {text: "".join(character for character in text if character.isalnum()) for text in texts}
    long = [text for text in texts if len(bare[text]) >= CHARACTERS]
    held = Contamination.of(long[:300])
    together = "\n".join(bare[text] for text in long[:300])
    shared = [any(part in together for part in windows(bare[text])) for text in long[300:]]
    assert any(shared) and not all(shared)
    assert [found is not None for found in held.check_rows([[text] for text in long[300:]])] == shared


def windows(text: str) -> list[str]:
    return [text[start : start + CHARACTERS] for start in range(len(text) - CHARACTERS + 1)]
