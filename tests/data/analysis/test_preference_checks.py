"""Pairs that something simpler than quality tells apart, that contradict each other or are nearly equal are found."""

import random
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledge.data.analysis.preference_checks import Answers
from fledge.findings import Finding
from fledge.tokenizer import Tokenizer
from tests.data.analysis.test_checks import check_data
from tests.support.sources import jsonl

WORDS = ["red", "green", "blue", "cat", "dog", "tree", "moon", "sun", "sea", "sky", "fish", "bird"]
CHECKS = ("equal pairs", "contradictory pairs", "pair lengths", "first tokens")


def _pairs(count: int = 80, seed: int = 1) -> list[dict[str, str]]:
    """Pairs whose answers do not differ in length or beginning on average."""
    draw = random.Random(seed)

    def answer() -> str:
        return " ".join(draw.choice(WORDS) for _ in range(draw.randint(3, 8)))

    return [{"prompt": f"question {number}", "chosen": answer(), "rejected": answer()} for number in range(count)]


def _found(folder: Path, rows: list[dict[str, str]], tokenizer: Tokenizer) -> dict[str, Finding]:
    found = check_data("preference", jsonl(folder / "a.jsonl", rows), tokenizer, max_seq_len=128)
    return {finding.check: finding for finding in found if finding.check in CHECKS}


def test_ordinary_pairs_have_baselines_and_no_warning(tmp_path: Path, chatml: Tokenizer) -> None:
    found = _found(tmp_path, _pairs(), chatml)
    assert {finding.severity for finding in found.values()} == {"info"} and set(found) == {"pair lengths", "first tokens"}
    assert 0.5 <= found["pair lengths"].evidence["accuracy"] < 0.75 and "of unequal length" in found["pair lengths"].message


@pytest.mark.parametrize("longer", [True, False])
def test_a_length_that_tells_the_chosen_answer_is_a_warning(longer: bool, tmp_path: Path, chatml: Tokenizer) -> None:
    side = "chosen" if longer else "rejected"
    found = _found(tmp_path, [{**row, side: f"{row[side]} {'and more ' * 9}"} for row in _pairs()], chatml)["pair lengths"]
    assert found.severity == "warning" and found.evidence["accuracy"] > 0.95
    assert ("the longer answer" in found.message) == longer and "learn the length instead" in found.message


def test_a_beginning_that_tells_the_chosen_answer_is_a_warning(tmp_path: Path, chatml: Tokenizer) -> None:
    found = _found(tmp_path, [{**row, "chosen": f"Sure! {row['chosen']}"} for row in _pairs()], chatml)
    assert found["first tokens"].severity == "warning" and found["first tokens"].evidence["accuracy"] > 0.9


def test_swapped_copies_of_a_pair_are_contradictory(tmp_path: Path, chatml: Tokenizer) -> None:
    rows = _pairs()
    swapped = [{**row, "chosen": row["rejected"], "rejected": row["chosen"]} for row in rows[:3]]
    found = _found(tmp_path, [*rows, *swapped], chatml)["contradictory pairs"]
    assert found.severity == "warning" and "3 pairs say the opposite" in found.message
    assert found.where.endswith(("a.jsonl:81", "a.jsonl:1"))


def test_answers_that_are_nearly_or_quite_equal_are_told(tmp_path: Path, chatml: Tokenizer) -> None:
    near = [{**row, "chosen": "the same words " * 9 + "a", "rejected": "the same words " * 9 + "b"} for row in _pairs()]
    found = _found(tmp_path, near, chatml)["equal pairs"]
    assert "in 80 of 80 pairs the answers share more than 90%" in found.message and "sft_loss_weight" in found.hint
    equal = [{**row, "rejected": row["chosen"]} if number < 5 else row for number, row in enumerate(_pairs())]
    found = _found(tmp_path, equal, chatml)["equal pairs"]
    assert "5 of 80 rows" in found.message and "chosen equals rejected" in found.message


@given(begin=st.lists(st.integers(0, 3), max_size=6), middle=st.lists(st.integers(4, 9), min_size=1, max_size=4))
def test_the_share_of_two_answers_counts_their_common_beginning_and_end(begin: list[int], middle: list[int]) -> None:
    chosen, rejected = np.asarray(begin + middle + [99]), np.asarray([*begin, 50, 99])
    assert Answers(b"", chosen, rejected).shared == pytest.approx((len(begin) + 1) / len(chosen))
    assert Answers(b"", chosen, chosen).shared == 1
