"""Losses of tokens by size, position and source: against losses of each token that are computed without packing."""

import math
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fledge.data import PackedDataset
from fledge.generation import score_tokens
from fledge.objective import CausalLMObjective
from fledge.objective.token_losses import BINS, TokenLosses, histogram, percentiles, position_starts
from fledge.run import read_json
from fledge.training.validation import ValidationSet, row_batches, validate
from tests.support import small_runs
from tests.support.decoders import VOCAB, make_decoder
from tests.support.packed import pack, random_sequences

LENGTHS = [32, 9, 20, 33, 5, 17, 30, 28, 25, 31, 12, 39]
SOURCES = ("books", "letters")
SEQUENCES = random_sequences(LENGTHS)
BYTES = torch.arange(VOCAB, dtype=torch.float32) % 5


def dataset() -> PackedDataset:
    """The sequences as packed data of two sources."""
    packed = pack(SEQUENCES, packed_length=40)
    examples = replace(packed.examples, source=np.array([number % 2 for number in range(len(LENGTHS))]))
    return PackedDataset(examples, 40, pad=0, seed=1, split_documents=False, sources=SOURCES)


def measured(micro: int) -> dict[str, Any]:
    """The metrics of a small model on the data."""
    validation = ValidationSet(dataset(), CausalLMObjective(token_bytes=BYTES), 100)
    return validate(make_decoder(), validation, micro, with_distribution=True)


@pytest.mark.parametrize("micro", [1, 3, 8])
def test_every_token_counts_once_in_its_position_its_source_and_its_size(micro: int) -> None:
    scores = score_tokens(make_decoder(), [sequence.tokens.tolist() for sequence in SEQUENCES])
    rows = [
        (-logp, float(weight), position, number % 2, float(BYTES[token]))
        for number, (sequence, logps) in enumerate(zip(SEQUENCES, scores, strict=True))
        for position, (logp, weight, token) in enumerate(zip(logps, sequence.weights[1:], sequence.tokens[1:], strict=True))
        if weight > 0
    ]
    found = measured(micro)
    for group in found["loss_by_position"]:
        inside = [row for row in rows if group["from"] <= row[2] and (group["to"] is None or row[2] <= group["to"])]
        assert group["tokens"] == pytest.approx(sum(row[1] for row in inside))
        assert group["loss"] == pytest.approx(sum(row[0] * row[1] for row in inside) / group["tokens"], rel=1e-4)
    assert [group["from"] for group in found["loss_by_position"]] == [0, 16, 32]
    for number, name in enumerate(SOURCES):
        own, values = [row for row in rows if row[3] == number], found["loss_by_source"][number]
        assert values["source"] == name
        nll = sum(row[0] * row[1] for row in own)
        assert values["loss"] == pytest.approx(nll / sum(row[1] for row in own), rel=1e-4)
        assert values["bits_per_byte"] == pytest.approx(nll / math.log(2) / sum(row[1] * row[4] for row in own), rel=1e-4)
    assert sum(group["tokens"] for group in found["loss_by_position"]) == pytest.approx(found["tokens"], abs=1)
    for one in found["loss_percentiles"]:
        assert one["loss"] == pytest.approx(np.percentile([row[0] for row in rows], one["percent"]), abs=0.05)
    assert sum(found["loss_histogram"]["tokens"]) == len(rows)


def test_ranks_that_add_up_their_sums_have_those_of_one_process() -> None:
    data, model, objective = dataset(), make_decoder(), CausalLMObjective(token_bytes=BYTES)
    whole, parts = TokenLosses(data, model.device), [TokenLosses(data, model.device) for _ in range(2)]
    for number, batch in enumerate(row_batches(data, 100, 2)):
        objective.adding_to(whole).evaluate(model, batch)
        objective.adding_to(parts[number % 2]).evaluate(model, batch)
    sums = [one + other for one, other in zip(parts[0].numbers(), parts[1].numbers(), strict=True)]
    assert sums == pytest.approx(whole.numbers(), rel=1e-12)
    assert whole.summary(sums)["loss_percentiles"] == whole.summary(whole.numbers())["loss_percentiles"]


def test_a_loss_that_is_no_number_is_the_worst_and_not_the_best() -> None:
    data, model = dataset(), make_decoder()
    losses = TokenLosses(data, model.device)
    batch = next(iter(row_batches(data, 2, 2)))
    losses.add(batch, torch.full((len(batch.target_index),), math.nan), None)
    assert all(row["loss"] > 50 for row in losses.summary(losses.numbers())["loss_percentiles"])


@given(st.lists(st.floats(0, 50), min_size=1, max_size=200))
def test_percentiles_from_bins_are_near_those_of_the_losses_themselves(losses: list[float]) -> None:
    width = math.log1p(100 * 60) / BINS
    counts = np.bincount((np.log1p(100 * np.asarray(losses)) / width).astype(int), minlength=BINS)
    found = percentiles(counts, [25, 50, 75, 95])
    assert found == sorted(found)
    for share, value in zip([25, 50, 75, 95], found, strict=True):
        expected = np.percentile(losses, share, method="inverted_cdf")
        assert abs(value - expected) <= 1.01 * math.expm1(width) * (expected + 0.01)
    assert sum(histogram(counts)) == len(losses)


def test_positions_have_groups_that_double() -> None:
    assert position_starts(16) == [0] and position_starts(17) == [0, 16]
    assert position_starts(256) == [0, 16, 32, 64, 128]


def test_a_stage_writes_them_before_and_after_and_not_in_its_events(tmp_path: Path) -> None:
    small_runs.write_rows(tmp_path)
    train = [str(tmp_path / name) for name in ("known.jsonl", "codes.jsonl")]
    stage = {
        "kind": "sft", "data": {"train": train, "validation": 0.2}, "duration": "2 steps", "batch": {"micro_batch_size": 4},
    }  # fmt: skip
    run = small_runs.train(tmp_path, stage, tokenizer={"vocab_size": 400}, model=small_runs.MODEL) / "sft"
    for name in ("before", "after"):
        found = read_json(run / "eval" / f"{name}.json")
        assert len(found["loss_by_source"]) == 2 and all("bits_per_byte" in one for one in found["loss_by_source"])
        tokens = [one["tokens"] for one in found["loss_by_source"]]
        whole = sum(one["loss"] * one["tokens"] for one in found["loss_by_source"]) / sum(tokens)
        assert whole == pytest.approx(found["loss"], rel=1e-6) and sum(tokens) == found["tokens"]
        assert [one["percent"] for one in found["loss_percentiles"]] == [25, 50, 75, 95]
    assert "loss_by_position" not in (run / "events.jsonl").read_text()


@pytest.mark.slow
def test_it_takes_hardly_any_time() -> None:
    sequences = random_sequences([257] * 24)
    data, model = pack(sequences, packed_length=256), make_decoder(hidden_size=128, intermediate_size=352, num_hidden_layers=4)
    validation = ValidationSet(data, CausalLMObjective(), 100)

    def seconds(with_distribution: bool) -> float:
        started = time.perf_counter()
        validate(model, validation, 4, with_distribution=with_distribution)
        return time.perf_counter() - started

    seconds(True)
    pairs = [(seconds(False), seconds(True)) for _ in range(7)]
    assert min(after for _, after in pairs) <= 1.1 * min(before for before, _ in pairs)  # measured: see docs/evaluation.md
