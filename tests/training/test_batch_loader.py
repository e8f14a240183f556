"""Batches are made in a thread, one step ahead, and are equal to those made when they are needed."""

import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fledge.data import Batch, PackedDataset, Skipped
from fledge.data.dataset.mixing import Mixture, SourceQuota
from fledge.plan.horizon import TrainingHorizon
from fledge.training.batch_loader import BatchLoader
from fledge.training.batch_source import DatasetSource, StepBatch
from tests.support.packed import Sequence, pack, random_sequences

CPU = torch.device("cpu")
LENGTHS = [32, 9, 20, 33, 5, 17, 30, 28, 25, 31, 12, 39]
HORIZON = TrainingHorizon(
    steps=6, rows=22, micro_batch_size=2, gradient_accumulation_steps=2, initial_accumulation_steps=2
)  # eight rows an epoch; the last batch is half full
WARMING = TrainingHorizon(
    steps=6, rows=34, micro_batch_size=2, gradient_accumulation_steps=4, initial_accumulation_steps=1, batch_warmup_steps=4
)
TENSORS = ("input_ids", "targets", "loss_weights", "position_ids", "documents", "sequence_ids")


class RecordingDataset(PackedDataset):
    """Packed data that records which thread reads which rows, and may fail or be slow."""

    reads: list[tuple[str, int]]
    fails_at: int | None = None
    seconds = 0.0

    def batch(self, first: int, count: int, stop: int | None = None, skipped: Skipped = ()) -> Batch:
        """Record the read, wait, and return the batch; OSError from row `fails_at` on."""
        self.reads.append((threading.current_thread().name, first))
        time.sleep(self.seconds)
        if self.fails_at is not None and first >= self.fails_at:
            raise OSError("the file is gone")
        return super().batch(first, count, stop, skipped)


def _data() -> PackedDataset:
    return pack(random_sequences(LENGTHS), packed_length=40)


def _recording(**changes: Any) -> RecordingDataset:
    data = _data()
    dataset = RecordingDataset(data.examples, data.packed_length, data.pad, data.seed, data.split_documents)
    dataset.reads = []
    for name, value in changes.items():
        setattr(dataset, name, value)
    return dataset


def _loader(data: PackedDataset, horizon: TrainingHorizon = HORIZON, micro_batch_size: int | None = None) -> BatchLoader:
    source = DatasetSource(data, horizon, micro_batch_size or horizon.micro_batch_size, lambda batch: batch.weight)
    return BatchLoader(source, horizon.steps, CPU)


@pytest.fixture
def loaders() -> Iterator[Any]:
    """Makes loaders, and closes them after the test."""
    opened: list[BatchLoader] = []

    def make(*arguments: Any) -> BatchLoader:
        opened.append(_loader(*arguments))
        return opened[-1]

    yield make
    for loader in opened:
        loader.close()


def _set_micro_batch_size(loader: BatchLoader, size: int) -> None:
    assert isinstance(loader.source, DatasetSource)
    loader.source.micro_batch_size = size
    loader.drop_prefetched()


def _expected(data: PackedDataset, horizon: TrainingHorizon, step: int, size: int) -> StepBatch:
    """The batch by its definition: the rows of the stream after the rows of all earlier steps."""
    first = sum(horizon.micro_batch_size * horizon.accumulation_steps_at(number) for number in range(step))
    stop = min(horizon.rows, first + horizon.micro_batch_size * horizon.accumulation_steps_at(step))
    every = [data.batch(row, size, stop) for row in range(first, stop, size)]
    some = tuple(batch for batch in every if int((batch.loss_weights > 0).sum()))
    return StepBatch(
        step=step,
        rows=(first, stop),
        local_rows=(first, stop),
        batches=some,
        num_micro_steps=len(every),
        padding_batch=None,
        normalizer=sum(float(batch.loss_weights.double().sum()) for batch in some),
        num_tokens=sum(int((batch.documents > 0).sum()) for batch in every),
        num_target_tokens=sum(int((batch.loss_weights > 0).sum()) for batch in every),
        by_source=tuple(int(n) for n in np.sum([batch.tokens_by_source for batch in every], axis=0)),
        epoch=data.epochs_after(stop),
    )


def _assert_same(got: StepBatch, expected: StepBatch) -> None:
    assert replace(got, batches=()) == replace(expected, batches=())
    assert len(got.batches) == len(expected.batches)
    for one, two in zip(got.batches, expected.batches, strict=True):
        assert all(torch.equal(getattr(one, name), getattr(two, name)) for name in TENSORS)
        assert (one.num_sequences, one.examples, one.tokens_by_source) == (
            two.num_sequences,
            two.examples,
            two.tokens_by_source,
        )


@pytest.mark.parametrize("horizon", [HORIZON, WARMING], ids=["even", "batch warm-up"])
@pytest.mark.parametrize("order", [range(6), (3, 0, 5, 4, 4, 1, 2)], ids=["in order", "any order"])
def test_every_batch_equals_its_definition(horizon: TrainingHorizon, order: Any, loaders: Any) -> None:
    loader, data = loaders(_data(), horizon), _data()
    for step in order:
        _assert_same(loader.batch(step)[0], _expected(data, horizon, step, horizon.micro_batch_size))


@given(order=st.lists(st.integers(0, 5), min_size=1, max_size=8), sizes=st.lists(st.sampled_from([1, 2, 4]), min_size=8))
def test_neither_the_order_of_steps_nor_the_micro_batch_size_changes_a_batch(order: list[int], sizes: list[int]) -> None:
    data = _data()
    loader = _loader(data, WARMING, 2)
    try:
        for step, size in zip(order, sizes, strict=False):
            _set_micro_batch_size(loader, size)
            _assert_same(loader.batch(step)[0], _expected(data, WARMING, step, size))
    finally:
        loader.close()


def test_a_halved_micro_batch_reads_the_same_rows_in_the_same_order(loaders: Any) -> None:
    complete, halved = loaders(_data()), loaders(_data())
    halved.batch(0)
    _set_micro_batch_size(halved, 1)  # after the next batch was begun
    for step in range(HORIZON.steps):
        one, two = complete.batch(step)[0], halved.batch(step)[0]
        assert replace(one, batches=(), num_micro_steps=0, normalizer=0) == replace(
            two, batches=(), num_micro_steps=0, normalizer=0
        )
        assert one.normalizer == pytest.approx(two.normalizer)
        assert all(len(batch.input_ids) == 1 for batch in two.batches)
        for name in ("input_ids", "targets", "loss_weights", "documents"):
            rows = [torch.cat([getattr(micro_batch, name) for micro_batch in batch.batches]) for batch in (one, two)]
            assert torch.equal(*rows)


def test_the_next_batch_is_made_in_another_thread_while_the_step_computes(loaders: Any) -> None:
    data = _recording()
    loader = loaders(data)
    loader.batch(0)
    deadline = time.monotonic() + 10
    while len(data.reads) < 4 and time.monotonic() < deadline:
        time.sleep(0.005)
    assert [first for _, first in data.reads] == [0, 2, 4, 6]  # nobody has asked for the second batch yet
    assert {name for name, first in data.reads if first >= 4} == {"fledge-data_0"}
    assert threading.current_thread().name != "fledge-data_0"
    loader.batch(1)
    loader.batch(2)
    assert [first for _, first in data.reads].count(4) == 1  # and it was not made again


def test_a_slow_step_waits_for_no_data_and_a_fast_one_reports_how_long_it_waited(loaders: Any) -> None:
    loader = loaders(_recording(seconds=0.05))
    assert loader.batch(0)[1] >= 0.1  # two micro-batches, nothing made ahead
    assert loader.batch(1)[1] >= 0.05  # the second batch had just begun
    time.sleep(0.4)
    assert loader.batch(2)[1] < 0.05
    assert sum(loader.batch(step)[1] for step in (3, 4)) > 0.1


def test_an_error_in_the_thread_is_raised_when_its_batch_is_needed(loaders: Any) -> None:
    loader = loaders(_recording(fails_at=4))
    assert loader.batch(0)[0].step == 0
    with pytest.raises(OSError, match="the file is gone"):
        loader.batch(1)


def test_closing_ends_the_thread_after_at_most_one_batch() -> None:
    before = threading.active_count()
    data = _recording(seconds=0.05)
    loader = _loader(data, HORIZON, 2)
    loader.batch(0)
    assert threading.active_count() == before + 1
    loader.close()
    assert threading.active_count() == before
    assert len(data.reads) <= 4


def test_nothing_is_made_after_the_last_batch(loaders: Any) -> None:
    data = _recording()
    loader = loaders(data)
    batch, _ = loader.batch(5)
    assert batch.num_tokens and batch.epoch == 22 / 8
    loader.close()
    assert max(first for _, first in data.reads) == 20


class ModelDependentSource:
    """A source whose batches depend on the weights, as with an on-policy objective: it cannot be read ahead."""

    prefetchable = False

    def __init__(self, source: DatasetSource) -> None:
        self.source, self.steps_done = source, 0
        self.calls: list[tuple[int, int, str]] = []

    def batch(self, step: int) -> StepBatch:
        """Record the call and return the batch of the step."""
        self.calls.append((step, self.steps_done, threading.current_thread().name))
        return self.source.batch(step)


def test_a_source_that_depends_on_the_model_is_never_read_ahead() -> None:
    source = ModelDependentSource(DatasetSource(_data(), HORIZON, 2, lambda batch: batch.weight))
    loader = BatchLoader(source, HORIZON.steps, CPU)
    try:
        for step in range(4):
            _assert_same(loader.batch(step)[0], _expected(_data(), HORIZON, step, 2))
            source.steps_done += 1
    finally:
        loader.close()
    assert source.calls == [(step, step, threading.current_thread().name) for step in range(4)]


def test_micro_batches_without_targets_are_left_out_and_their_tokens_counted(loaders: Any) -> None:
    sequences = [Sequence(s.tokens, s.weights if number % 2 else 0 * s.weights) for number, s in
                 enumerate(random_sequences([40] * 8))]  # fmt: skip
    data = pack(sequences, packed_length=40)
    horizon = TrainingHorizon(steps=1, rows=8, micro_batch_size=1, gradient_accumulation_steps=8, initial_accumulation_steps=8)
    batch, _ = loaders(data, horizon).batch(0)
    assert len(batch.batches) == 4 and all(micro_batch.num_target_tokens for micro_batch in batch.batches)
    assert batch.num_tokens == 8 * 39
    assert batch.num_target_tokens == sum(micro_batch.num_target_tokens for micro_batch in batch.batches) > 0


def test_a_mixture_counts_its_sources_and_draws_other_examples_in_each_epoch(loaders: Any) -> None:
    plain = pack(random_sequences([30] * 12), 40)
    source = np.repeat([0, 1], 6)
    examples = replace(plain.examples, source=source.astype(np.int16))
    tokens = np.full(12, 30)
    mixture = Mixture(source, tokens, (SourceQuota(name="many"), SourceQuota(name="few", max_rows=2)), seed=5)

    def data() -> PackedDataset:
        return PackedDataset(examples, 40, 0, 1, False, mixture=mixture, sources=("many", "few"))

    horizon = TrainingHorizon(
        steps=6, rows=24, micro_batch_size=2, gradient_accumulation_steps=2, initial_accumulation_steps=2
    )  # three epochs of eight rows
    loader = loaders(data(), horizon)
    batches = [loader.batch(step)[0] for step in range(6)]
    for batch in batches:
        _assert_same(batch, _expected(data(), horizon, batch.step, 2))
    assert [batch.epoch for batch in batches] == [0.5, 1, 1.5, 2, 2.5, 3]
    assert np.sum([batch.by_source for batch in batches], axis=0).tolist() == [3 * 6 * 29, 3 * 2 * 29]
    few = [{e for w in batches[i : i + 2] for b in w.batches for e in b.examples if e >= 6} for i in (0, 2, 4)]
    assert all(len(epoch) == 2 for epoch in few) and len(set(map(frozenset, few))) > 1  # drawn afresh
