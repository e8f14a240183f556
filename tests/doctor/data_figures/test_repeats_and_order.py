"""Copies, entropies, the order of reading, sources."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledge.data import PackedDataset
from fledge.data.dataset import packed_dataset
from fledge.data.storage import ConcatenatedArrays, Examples
from fledge.diagnosis.data_figures import read_sequences
from fledge.diagnosis.data_figures.entropy import entropy_figures
from fledge.diagnosis.data_figures.hashes import example_hashes, hash_of, is_copy, window_hashes
from fledge.doctor.data_figures import dataset_figures
from fledge.doctor.data_figures.loading import UpdateSize, read_batches
from fledge.tokenizer import Tokenizer
from tests.doctor.data_figures.support import dialogues, sentence, values
from tests.support.documents import documents
from tests.support.sources import jsonl, prepare, row


def examples_of(sequences: list[list[int]], per_example: int = 1, labels: np.ndarray | None = None) -> Examples:
    """Examples of these tokens, each array of the stream holding a few of them."""
    cut = len(sequences) // (2 * per_example) * per_example
    parts = [part for part in (sequences[:cut], sequences[cut:]) if part]
    arrays = tuple(np.asarray([token for one in part for token in one], np.uint16) for part in parts)
    offsets = np.concatenate(([0], np.cumsum([len(one) for one in sequences]))).astype(np.int64)
    stream = ConcatenatedArrays(arrays)
    weights = ConcatenatedArrays(tuple(np.ones(len(array), np.float32) for array in arrays))
    return Examples(tokens=stream, weights=weights, offsets=offsets, sequences_per_example=per_example, labels=labels)


SEQUENCES = st.lists(st.lists(st.integers(0, 3), min_size=1, max_size=6), min_size=2, max_size=24)


@given(SEQUENCES, st.integers(1, 2))
def test_hashes_are_equal_exactly_where_examples_are(sequences: list[list[int]], per_example: int) -> None:
    sequences = sequences[: len(sequences) // per_example * per_example]
    examples = examples_of(sequences, per_example)
    joined = [
        tuple(token for one in sequences[first : first + per_example] for token in one)
        for first in range(0, len(sequences), per_example)
    ]
    copies = [one in joined[:place] for place, one in enumerate(joined)]
    assert is_copy(example_hashes(examples, examples.count)).tolist() == copies


def test_the_answer_to_another_prompt_is_no_part_of_a_labelled_answer() -> None:
    examples = examples_of([[1, 2, 3], [1, 9], [1, 2, 3], [1, 7, 7]], 2, np.asarray([True, False]))
    assert is_copy(example_hashes(examples, 2)).tolist() == [False, True]


@given(st.lists(st.integers(0, 2), max_size=60), st.integers(1, 5))
def test_hashes_of_runs(tokens: list[int], size: int) -> None:
    runs = [tuple(tokens[place : place + size]) for place in range(len(tokens) - size + 1)]
    hashes = window_hashes(np.asarray(tokens, np.int64), size).tolist()
    assert len(hashes) == len(runs) and len(set(hashes)) == len(set(runs))


def test_hashes_do_not_depend_on_the_type_of_the_tokens() -> None:
    tokens = np.asarray([3, 1, 4], np.uint16)
    assert hash_of(tokens) == hash_of(tokens.astype(np.int64))


def test_copies_of_examples_and_runs_of_them(chatml: Tokenizer, tmp_path: Path) -> None:
    rows = dialogues(60)
    data = prepare("sft", jsonl(tmp_path / "rows.jsonl", [*rows, *rows[:40]]), chatml, max_seq_len=256)
    found = values(dataset_figures(data, chatml))
    assert found["duplicate_share"] == pytest.approx(0.4)
    own = prepare("sft", jsonl(tmp_path / "own.jsonl", rows), chatml, max_seq_len=256)
    assert found["repeated_ngrams"] > values(dataset_figures(own, chatml))["repeated_ngrams"] + 0.3


def test_validation_rows_that_are_trained(chatml: Tokenizer, tmp_path: Path) -> None:
    rows, held = jsonl(tmp_path / "rows.jsonl", dialogues(60)), dialogues(30, seed=5)
    overlap = [*held[:20], *dialogues(60)[:10]]
    paths = jsonl(tmp_path / "held.jsonl", overlap)
    data = prepare("sft", rows, chatml, max_seq_len=256, validation=str(paths))
    assert values(dataset_figures(data, chatml))["validation_overlap"] == pytest.approx(1 / 3)


def test_the_commonest_answer_and_answers_about_the_model(chatml: Tokenizer, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    equal = [row(sentence(draw), "I am a helpful AI assistant.") for _ in range(30)]
    rows = [*equal, *(row(sentence(draw), sentence(draw)) for _ in range(30))]
    found = values(dataset_figures(prepare("sft", jsonl(tmp_path / "rows.jsonl", rows), chatml), chatml))
    assert found["largest_answer_share"] == found["identity_share"] == 0.5
    assert found["frequent_other_answers"] == 0.0


def test_answers_of_few_classes_are_all_frequent(chatml: Tokenizer, tmp_path: Path) -> None:
    draw = np.random.default_rng(0)
    rows = [row(sentence(draw), "yes" if number % 3 else "no") for number in range(60)]
    found = values(dataset_figures(prepare("sft", jsonl(tmp_path / "rows.jsonl", rows), chatml), chatml))
    assert found["largest_answer_share"] == pytest.approx(2 / 3) and found["frequent_other_answers"] == 1.0
    one = [row(sentence(draw), "yes") for _ in range(60)]
    alone = values(dataset_figures(prepare("sft", jsonl(tmp_path / "one.jsonl", one), chatml), chatml))
    assert alone["largest_answer_share"] == 1.0 and "frequent_other_answers" not in alone


# -- entropies ----------------------------------------------------------------------------------------------------------


def drawn(kinds: int, count: int, length: int, seed: int = 0, follows: float = 0.0) -> Examples:
    """Sequences of tokens drawn evenly from `kinds`; with the probability `follows`, a token is the one before plus 1."""
    draw = np.random.default_rng(seed)
    rows = []
    for _ in range(count):
        tokens = draw.integers(0, kinds, length)
        for place in range(1, length):
            if draw.random() < follows:
                tokens[place] = (tokens[place - 1] + 1) % kinds
        rows.append(tokens.tolist())
    return examples_of(rows)


def entropies(examples: Examples, vocab_size: int = 64) -> dict[str, float]:
    packed = PackedDataset(examples, 64, 0, 1, split_documents=False)
    batches = [packed.batch(number, 1) for number in range(len(packed))]
    return values(entropy_figures(read_sequences(batches, examples, splits=False), vocab_size))


def test_entropies_of_known_distributions() -> None:
    even = entropies(drawn(16, 400, 40))
    assert even["unigram_entropy"] == pytest.approx(np.log(16), abs=0.02)
    assert np.log(16) < even["bigram_entropy"] < np.log(16) + 0.15
    chained = entropies(drawn(16, 400, 40, follows=0.9))
    next_one = 0.9 + 0.1 / 16
    truth = -next_one * np.log(next_one) - 15 * (0.1 / 16) * np.log(0.1 / 16)
    assert truth < chained["bigram_entropy"] < truth + 0.1
    assert chained["unigram_entropy"] == pytest.approx(np.log(16), abs=0.02)


def test_little_data_does_not_give_too_small_entropies() -> None:
    found = entropies(drawn(64, 30, 20))
    assert found["unigram_entropy"] > np.log(64) - 0.02 and found["bigram_entropy"] > np.log(64) - 0.02
    assert entropies(drawn(64, 10, 20)) == {}


def test_copies_do_not_lower_the_entropies() -> None:
    rows = [drawn(64, 60, 20, seed=3).sequence(number)[0].tolist() for number in range(60)]
    once, often = entropies(examples_of(rows)), entropies(examples_of(rows * 8))
    assert often["bigram_entropy"] > once["bigram_entropy"] - 0.3
    assert often["bigram_entropy"] > 3.5


# -- order --------------------------------------------------------------------------------------------------------------


def in_order(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let nothing be shuffled, as a fault of the trainer would."""
    from fledge.data.dataset import packing

    for module in (packed_dataset, packing):
        monkeypatch.setattr(module, "permutation", lambda count, *key: np.arange(count))


def lengths_file(tmp_path: Path, is_sorted: bool) -> Path:
    draw = np.random.default_rng(1)
    rows = [row(sentence(draw), sentence(draw, 2, 40)) for _ in range(200)]
    return jsonl(tmp_path / "rows.jsonl", sorted(rows, key=lambda one: len(one["response"])) if is_sorted else rows)


def test_rows_that_are_shuffled_have_no_order(chatml: Tokenizer, tmp_path: Path) -> None:
    found = values(dataset_figures(prepare("sft", lengths_file(tmp_path, True), chatml, max_seq_len=256), chatml))
    assert abs(found["order_z"]) < 3.5 and abs(found["file_order_correlation"]) < 0.5


@pytest.mark.parametrize("is_sorted", [True, False])
def test_rows_in_the_order_of_their_file(
    chatml: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_sorted: bool
) -> None:
    in_order(monkeypatch)
    found = values(dataset_figures(prepare("sft", lengths_file(tmp_path, is_sorted), chatml, max_seq_len=256), chatml))
    assert found["file_order_correlation"] > 0.9
    assert (found["order_z"] > 5 and found["order_correlation"] > 0.5) == is_sorted


def test_sources_one_after_the_other(chatml: Tokenizer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = [jsonl(tmp_path / f"{name}.jsonl", dialogues(count, seed=count)) for name, count in (("a", 150), ("b", 50))]
    train = [{"path": str(path)} for path in paths]
    shuffled = dataset_figures(prepare("sft", train, chatml, max_seq_len=64), chatml)
    assert shuffled["data/largest_source_share"].value == 0.75 and "a.jsonl" in shuffled["data/largest_source_share"].note
    assert shuffled["data/order_z"].value < 3.5
    in_order(monkeypatch)
    found = dataset_figures(prepare("sft", train, chatml, max_seq_len=64), chatml)
    assert found["data/order_z"].value > 5 and "by source" in found["data/order_z"].note


def test_documents(chatml: Tokenizer, tmp_path: Path) -> None:
    data = prepare("pretrain", jsonl(tmp_path / "rows.jsonl", documents(80)), chatml, max_seq_len=64)
    found = values(dataset_figures(data, chatml))
    assert found["batch_shift"] == 1 and found["batch_targets_fit"] == found["target_share"] == 1.0
    assert found["batch_differs"] == 0.0 and found["duplicate_share"] == pytest.approx(3 / 83)
    assert abs(found["order_z"]) < 3.5 and "ends_present" not in found and "template_differs" not in found


def test_batches_that_the_loader_refuses_are_read_all_the_same(chatml: Tokenizer, tmp_path: Path) -> None:
    from tests.doctor.data_figures.support import changed

    data = prepare("sft", jsonl(tmp_path / "rows.jsonl", dialogues(40)), chatml, max_seq_len=64)
    empty = changed(data, lambda tokens, weights: (tokens, 0 * weights))
    batches = read_batches(empty.train, UpdateSize(8, 4), 1000)
    assert sorted(number for batch in batches for number in batch.examples) == list(range(40))
