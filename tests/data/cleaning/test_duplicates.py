"""Equal rows are found by a hash; near duplicates by shared n-grams, with measured recall and without false positives."""

import importlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledge.data.cleaning import duplicates, ngrams
from fledge.data.cleaning.duplicates import (
    bands_of,
    candidates,
    content_hash,
    first_occurrences,
    near_duplicates,
    numpy_signatures,
    signature_backend,
    signatures,
)
from fledge.data.cleaning.ngrams import jaccard, shingles

REPOSITORY = Path(__file__).parents[3]
MIXED = st.text(st.sampled_from("abAB12 ,.-_\n你好世界春風Ｗé"), max_size=60)


@pytest.fixture(scope="module")
def bench() -> Iterator[ModuleType]:
    """The benchmark, whose documents and edits are used here too."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(REPOSITORY / "benchmarks"))
        yield importlib.import_module("near_duplicates")


@pytest.fixture(scope="module")
def data() -> Path:
    """The folder of real data; without it the benchmark makes its own sentences."""
    return Path(os.environ.get("FLEDGE_DATA") or REPOSITORY.parent / "shared" / "data")


def sets_of(texts: list[str]) -> list[np.ndarray]:
    """The n-gram sets of texts."""
    flat, offsets = shingles(texts)
    return [np.unique(row) for row in np.split(flat, offsets[1:-1].astype(np.int64))] if texts else []


def expected_sets(text: str) -> set[tuple[str, ...]]:
    """The n-grams of a text, in plain Python: of words, or of characters where most units are Chinese characters."""
    units = re.findall(r"[一-鿿]|[^\W_一-鿿]+", text.replace("Ｗ", "w").lower())
    n = 5 if 2 * sum("一" <= unit <= "鿿" for unit in units) > len(units) else 3
    if not units:
        return {(text,)}
    return {tuple(units[start : start + n]) for start in range(max(1, len(units) - n + 1))}


def expected_jaccard(a: str, b: str) -> float:
    """The Jaccard similarity by `expected_sets`."""
    one, other = expected_sets(a), expected_sets(b)
    return len(one & other) / len(one | other)


def edits_of(text: str, count: int) -> list[str]:
    """Copies with one other word each."""
    words = text.split(" ")
    return [" ".join([*words[:at], f"changed{at}", *words[at + 1 :]]) for at in range(5, 5 + count)]


# -- equal rows ---------------------------------------------------------------------------------------------------------


@given(st.lists(st.binary(max_size=1), max_size=40))
def test_first_occurrence_is_the_first_equal_row(rows: list[bytes]) -> None:
    hashes = np.array([content_hash(row) for row in rows], np.uint64).reshape(-1, 2)
    assert first_occurrences(hashes).tolist() == [rows.index(row) for row in rows]


def test_content_hash_is_128_bits_in_two_numbers() -> None:
    high, low = content_hash(b"fledge")
    assert content_hash(b"fledge") == (high, low) != content_hash(b"fledgE")
    assert 0 <= low < 2**64 and 0 <= high < 2**64 and high != low


@pytest.mark.parametrize(("name", "count"), [("alpaca_en_demo", 14), ("alpaca_zh_demo", 8)])
def test_equal_rows_of_real_data_are_found_by_hash_and_by_ngrams(shared_data: Path, name: str, count: int) -> None:
    rows = json.loads((shared_data / "llamafactory" / f"{name}.json").read_text(encoding="utf-8"))
    hashes = np.array([content_hash(json.dumps(row).encode()) for row in rows], np.uint64)
    first = first_occurrences(hashes)
    assert np.count_nonzero(first != np.arange(len(rows))) == count
    sets = sets_of(["\n".join(row.values()) for row in rows])
    flat, offsets = np.concatenate(sets), np.cumsum([0, *map(len, sets)]).astype(np.uint64)
    kept = near_duplicates(signatures(flat, offsets), 0.8, lambda a, b: jaccard(sets[a], sets[b]))
    assert kept.tolist() == first.tolist()


# -- n-grams ------------------------------------------------------------------------------------------------------------


@given(MIXED, MIXED)
def test_similarity_is_the_jaccard_index_of_word_or_character_ngrams(a: str, b: str) -> None:
    one, other = sets_of([a, b])
    assert jaccard(one, other) == pytest.approx(expected_jaccard(a, b))
    assert len(one) == len(expected_sets(a))


@given(st.lists(MIXED, max_size=8))
def test_ngrams_of_a_text_do_not_depend_on_other_texts(texts: list[str]) -> None:
    flat, offsets = shingles(texts)
    assert offsets.tolist() == np.cumsum([0, *(len(shingles([text])[0]) for text in texts)]).tolist()
    assert flat.tolist() == [value for text in texts for value in shingles([text])[0].tolist()]


def test_case_width_and_punctuation_are_ignored() -> None:
    (a, b, c), (d, e) = (
        sets_of(["The quick, brown FOX!", "the quick — brown fox", "Ｔｈｅ quick brown fox"]),
        sets_of(["春眠不覺曉，處處聞啼鳥。", "春眠不覺曉 處處聞啼鳥"]),
    )
    assert jaccard(a, b) == jaccard(a, c) == jaccard(d, e) == 1


def test_text_without_letters_is_hashed_raw() -> None:
    flat, offsets = shingles(["", "!!!", "hello", "???", "!!!"])
    assert offsets.tolist() == [0, 1, 2, 3, 4, 5]
    assert len(set(flat.tolist())) == 4 and flat[1] == flat[4]


def test_text_longer_than_one_chunk_has_all_its_ngrams() -> None:
    text = "".join(chr(0x4E00 + (i * i * 7 + i // 13) % 5000) for i in range(ngrams.MAX_CHARACTERS + 500))
    flat, _ = shingles(["before", text, "after"])
    assert len(flat) == 1 + len(text) - 4 + 1
    border = text[ngrams.MAX_CHARACTERS - 20 : ngrams.MAX_CHARACTERS + 20]
    assert set(shingles([border])[0].tolist()) <= set(flat.tolist())
    units = ngrams.units(["x", text, "after it"])
    assert units.positions.tolist() == [0, *range(len(text)), 0, 6]


# -- signatures ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sign", [signatures, numpy_signatures])
def test_signatures_estimate_similarity(sign: object, bench: ModuleType, data: Path) -> None:
    assert callable(sign)
    texts, copies = bench.planted(600, data)
    signs, sets = sign(*shingles(texts)), sets_of(texts)
    assert signs.shape == (600, 128) and signs.dtype == np.uint32
    errors = [np.mean(signs[row] == signs[first]) - jaccard(sets[row], sets[first]) for row, first in copies.items()]
    assert abs(np.mean(errors)) < 0.02 and np.std(errors) < 0.06  # √(s(1 − s)/128) is at most 0.044
    from_sets = sign(np.concatenate([row_set for row_set in sets]), np.cumsum([0, *map(len, sets)]).astype(np.uint64))
    assert np.array_equal(signs, from_sets)  # neither order nor repetitions count


def test_without_rensa_equal_duplicates_are_found_and_the_backend_name_differs(monkeypatch: pytest.MonkeyPatch) -> None:
    words = " ".join(f"word{i}" for i in range(200))
    texts = [words, "something else entirely, of other words", *edits_of(words, 3)]
    sets = sets_of(texts)
    name = signature_backend()
    monkeypatch.setitem(sys.modules, "rensa", None)
    duplicates._rensa_minhash.cache_clear()
    try:
        assert signature_backend() != name and signature_backend().endswith("numpy")
        kept = near_duplicates(signatures(*shingles(texts)), 0.8, lambda a, b: jaccard(sets[a], sets[b]))
    finally:
        duplicates._rensa_minhash.cache_clear()
    assert kept.tolist() == [0, 1, 0, 0, 0]


def test_no_texts_give_no_signatures() -> None:
    signs = signatures(*shingles([]))
    assert signs.shape == (0, 128) and candidates(signs, 0.8).shape == (0, 2)
    assert near_duplicates(signs, 0.8, lambda a, b: 1.0).tolist() == []


def test_signatures_do_not_depend_on_hash_randomisation() -> None:
    code = (
        "from fledge.data.cleaning.duplicates import *\nfrom fledge.data.cleaning.ngrams import *\nimport hashlib\n"
        "texts = ['春眠不覺曉，處處聞啼鳥' * i + ' the quick brown fox' * (9 - i) for i in range(9)]\n"
        "flat, offsets = shingles(texts)\nprint(hashlib.sha256(signatures(flat, offsets).tobytes()).hexdigest())"
    )
    runs = [[sys.executable, "-c", code]] * 2
    outputs = {
        subprocess.run(run, env={**os.environ, "PYTHONHASHSEED": seed}, capture_output=True, check=True).stdout
        for run, seed in zip(runs, "12", strict=True)
    }
    assert len(outputs) == 1


# -- candidates and near duplicates -------------------------------------------------------------------------------------


@given(st.floats(0.05, 1))
def test_bands_reach_the_recall_at_the_threshold(threshold: float) -> None:
    bands, rows = bands_of(threshold)
    assert bands * rows <= 128
    assert rows == 1 or 1 - (1 - threshold**rows) ** bands >= duplicates.MIN_RECALL


@pytest.mark.parametrize("threshold", [0.7, 0.8])
def test_planted_copies_are_found_and_nothing_else(threshold: float, bench: ModuleType, data: Path) -> None:
    texts, copies = bench.planted(3000, data)
    sets = sets_of(texts)
    kept = near_duplicates(bench.signatures_of(texts), threshold, lambda a, b: jaccard(sets[a], sets[b]))
    near = [row for row, first in copies.items() if jaccard(sets[row], sets[first]) >= threshold]
    assert len(near) > 100
    assert np.mean([kept[row] != row for row in near]) >= 0.97
    for row in np.flatnonzero(kept != np.arange(len(kept))).tolist():
        assert kept[row] < row and kept[kept[row]] == kept[row]
        assert jaccard(sets[row], sets[kept[row]]) >= threshold


@pytest.mark.parametrize("kind", ["readme", "english", "chinese"])
@pytest.mark.parametrize("threshold", [0.7, 0.8])
def test_unrelated_paragraphs_are_never_duplicates(kind: str, threshold: float, bench: ModuleType, data: Path) -> None:
    texts = bench.unrelated(data, 1000)[kind]
    assert len(texts) == 1000
    assert bench.representatives(texts, bench.signatures_of(texts), threshold).tolist() == list(range(1000))


def test_similarity_is_not_transitive() -> None:
    """b is near a, c is near b but not near a: c stays."""
    words = [f"word{i}" for i in range(300)]
    a = " ".join(words)
    b = " ".join([*words[:270], *(f"b{i}" for i in range(30))])
    c = " ".join([*(f"c{i}" for i in range(30)), *words[30:270], *(f"b{i}" for i in range(30))])
    sets = sets_of([a, b, c])
    assert jaccard(sets[0], sets[1]) > 0.8 and jaccard(sets[1], sets[2]) > 0.8 and jaccard(sets[0], sets[2]) < 0.75
    kept = near_duplicates(signatures(*shingles([a, b, c])), 0.8, lambda x, y: jaccard(sets[x], sets[y]))
    assert kept.tolist() == [0, 0, 2]


def test_earliest_row_represents_all_copies_and_work_stays_linear() -> None:
    base = " ".join(f"word{i}" for i in range(200))
    texts = ["first of all, something else"] + [base] * 2000 + edits_of(base, 100)
    sets = sets_of(texts)
    measured = []

    def measure(row: int, kept: int) -> float:
        measured.append((row, kept))
        return jaccard(sets[row], sets[kept])

    kept = near_duplicates(signatures(*shingles(texts)), 0.8, measure)
    assert kept.tolist() == [0, 1] + [1] * 2099
    assert len(measured) == 2099


def test_many_rows_with_shared_boilerplate_are_paired_sparsely() -> None:
    shared = " ".join(f"license{i}" for i in range(60))
    texts = [f"{shared} " + " ".join(f"own{n}x{i}" for i in range(60)) for n in range(3000)]
    pairs = candidates(signatures(*shingles(texts)), 0.3)
    assert len(pairs) <= 3000 * (duplicates.NEIGHBOURS + 1) * bands_of(0.3)[0]
    assert len(pairs) < 3000 * 2999 / 8
    assert (pairs[:, 0] < pairs[:, 1]).all() and len(np.unique(pairs, axis=0)) == len(pairs)


def test_signatures_may_be_a_memory_map(tmp_path: Path) -> None:
    base = " ".join(f"word{i}" for i in range(100))
    texts = [base, "another text about other things", base.upper()]
    signs = signatures(*shingles(texts))
    np.save(tmp_path / "signatures.npy", signs)
    mapped = np.load(tmp_path / "signatures.npy", mmap_mode="r")
    assert candidates(mapped, 0.8).tolist() == candidates(signs, 0.8).tolist() == [[0, 2]]
