"""Windows come from a thread, one step ahead, and are those that would be made on the spot."""

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
from fledge.train.batch_loader import BatchLoader, StepBatch
from tests.support.packed import Sequence, pack, random_sequences

CPU = torch.device("cpu")
LENGTHS = [32, 9, 20, 33, 5, 17, 30, 28, 25, 31, 12, 39]
EXTENT = TrainingHorizon(
    steps=6, rows=22, micro=2, accumulation=2, start=2
)  # eight rows an epoch; the last window is half full
WARMING = TrainingHorizon(steps=6, rows=34, micro=2, accumulation=4, start=1, batch_warmup_steps=4)
TENSORS = ("input_ids", "targets", "loss_weights", "position_ids", "documents", "sequence_ids")


class Watched(PackedDataset):
    """Packed data that notes which thread asked for which rows, and may fail or take its time."""

    asked: list[tuple[str, int]]
    fails_at: int | None = None
    seconds = 0.0

    def batch(self, first: int, count: int, stop: int | None = None, skipped: Skipped = ()) -> Batch:
        self.asked.append((threading.current_thread().name, first))
        time.sleep(self.seconds)
        if self.fails_at is not None and first >= self.fails_at:
            raise OSError("the file is gone")
        return super().batch(first, count, stop, skipped)


def _data() -> PackedDataset:
    return pack(random_sequences(LENGTHS), packed_length=40)


def _watched(**changes: Any) -> Watched:
    data = _data()
    watched = Watched(data.examples, data.packed_length, data.pad, data.seed, data.split_documents)
    watched.asked = []
    for name, value in changes.items():
        setattr(watched, name, value)
    return watched


@pytest.fixture
def feeds() -> Iterator[Any]:
    """Makes feeds, and closes them."""
    made: list[BatchLoader] = []

    def make(data: PackedDataset, extent: TrainingHorizon = EXTENT, micro: int | None = None) -> BatchLoader:
        made.append(BatchLoader(data, extent, micro or extent.micro, lambda batch: batch.weight, CPU))
        return made[-1]

    yield make
    for feed in made:
        feed.close()


def _here(data: PackedDataset, extent: TrainingHorizon, step: int, micro: int) -> StepBatch:
    """The window by its definition, on the spot: rows of the stream from the sum of the windows before."""
    first = sum(extent.micro * extent.window_at(number) for number in range(step))
    stop = min(extent.rows, first + extent.micro * extent.window_at(step))
    every = [data.batch(place, micro, stop) for place in range(first, stop, micro)]
    some = tuple(batch for batch in every if int((batch.loss_weights > 0).sum()))
    tokens, supervised = (sum(int((getattr(b, name) > 0).sum()) for b in every) for name in ("documents", "loss_weights"))
    weight = sum(float(batch.loss_weights.double().sum()) for batch in some)
    sources = tuple(int(n) for n in np.sum([batch.tokens_by_source for batch in every], axis=0))
    rows = (first, stop)
    return StepBatch(step, rows, rows, some, len(every), None, weight, tokens, supervised, sources, data.epochs_after(stop))


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


@pytest.mark.parametrize("extent", [EXTENT, WARMING], ids=["even", "batch warm-up"])
@pytest.mark.parametrize("order", [range(6), (3, 0, 5, 4, 4, 1, 2)], ids=["in order", "any order"])
def test_every_window_is_the_one_made_on_the_spot(extent: TrainingHorizon, order: Any, feeds: Any) -> None:
    feed, data = feeds(_data(), extent), _data()
    for step in order:
        _assert_same(feed.window(step)[0], _here(data, extent, step, extent.micro))


@given(order=st.lists(st.integers(0, 5), min_size=1, max_size=8), micros=st.lists(st.sampled_from([1, 2, 4]), min_size=8))
def test_no_order_of_steps_and_no_change_of_the_micro_batch_changes_a_window(order: list[int], micros: list[int]) -> None:
    data = _data()
    feed = BatchLoader(data, WARMING, 2, lambda batch: batch.weight, CPU)
    try:
        for step, micro in zip(order, micros, strict=False):
            feed.micro = micro
            _assert_same(feed.window(step)[0], _here(data, WARMING, step, micro))
    finally:
        feed.close()


def test_a_halved_micro_batch_reads_the_same_rows_in_the_same_order(feeds: Any) -> None:
    whole, halved = feeds(_data()), feeds(_data())
    halved.window(0)
    halved.micro = 1  # after the next window was begun
    for step in range(EXTENT.steps):
        one, two = whole.window(step)[0], halved.window(step)[0]
        assert replace(one, batches=(), num_micro_steps=0, weight=0) == replace(two, batches=(), num_micro_steps=0, weight=0)
        assert one.weight == pytest.approx(two.weight)
        assert all(len(batch.input_ids) == 1 for batch in two.batches)
        for name in ("input_ids", "targets", "loss_weights", "documents"):
            rows = [torch.cat([getattr(batch, name) for batch in window.batches]) for window in (one, two)]
            assert torch.equal(*rows)


def test_the_next_window_is_made_in_another_thread_while_the_step_computes(feeds: Any) -> None:
    data = _watched()
    feed = feeds(data)
    feed.window(0)
    deadline = time.monotonic() + 10
    while len(data.asked) < 4 and time.monotonic() < deadline:
        time.sleep(0.005)
    assert [first for _, first in data.asked] == [0, 2, 4, 6]  # nobody has asked for the second window yet
    assert {name for name, _ in data.asked} == {"fledge-data_0"} and threading.current_thread().name != "fledge-data_0"
    feed.window(1)
    feed.window(2)
    assert [first for _, first in data.asked].count(4) == 1  # and it was not made again


def test_a_slow_step_waits_for_nothing_and_a_fast_one_tells_how_long(feeds: Any) -> None:
    feed = feeds(_watched(seconds=0.05))
    assert feed.window(0)[1] >= 0.1  # two micro-batches, nothing made ahead
    assert feed.window(1)[1] >= 0.05  # the second window had just begun
    time.sleep(0.4)
    assert feed.window(2)[1] < 0.05
    assert sum(feed.window(step)[1] for step in (3, 4)) > 0.1


def test_an_error_in_the_thread_reaches_the_caller_when_the_window_is_due(feeds: Any) -> None:
    feed = feeds(_watched(fails_at=4))
    assert feed.window(0)[0].step == 0
    with pytest.raises(OSError, match="the file is gone"):
        feed.window(1)


def test_closing_leaves_no_thread_and_waits_for_no_more_than_one_window() -> None:
    before = threading.active_count()
    data = _watched(seconds=0.05)
    feed = BatchLoader(data, EXTENT, 2, lambda batch: batch.weight, CPU)
    feed.window(0)
    assert threading.active_count() == before + 1
    feed.close()
    assert threading.active_count() == before
    assert len(data.asked) <= 4


def test_nothing_is_made_after_the_last_window(feeds: Any) -> None:
    data = _watched()
    feed = feeds(data)
    window, _ = feed.window(5)
    assert window.tokens and window.epoch == 22 / 8
    feed.close()
    assert max(first for _, first in data.asked) == 20


def test_micro_batches_that_teach_nothing_are_left_out_and_their_tokens_counted(feeds: Any) -> None:
    sequences = [Sequence(s.tokens, s.weights if number % 2 else 0 * s.weights) for number, s in
                 enumerate(random_sequences([40] * 8))]  # fmt: skip
    data = pack(sequences, packed_length=40)
    extent = TrainingHorizon(steps=1, rows=8, micro=1, accumulation=8, start=8)
    window, _ = feeds(data, extent).window(0)
    assert len(window.batches) == 4 and all(batch.num_target_tokens for batch in window.batches)
    assert window.tokens == 8 * 39
    assert window.supervised == sum(batch.num_target_tokens for batch in window.batches) > 0


def test_a_mixture_counts_its_sources_and_goes_on_into_epochs_of_other_examples(feeds: Any) -> None:
    plain = pack(random_sequences([30] * 12), 40)
    source = np.repeat([0, 1], 6)
    examples = replace(plain.examples, source=source.astype(np.int16))
    tokens = np.full(12, 30)
    mixture = Mixture(source, tokens, (SourceQuota("many"), SourceQuota("few", max_rows=2)), seed=5)

    def data() -> PackedDataset:
        return PackedDataset(examples, 40, 0, 1, False, mixture=mixture, sources=("many", "few"))

    extent = TrainingHorizon(steps=6, rows=24, micro=2, accumulation=2, start=2)  # three epochs of eight rows
    feed = feeds(data(), extent)
    windows = [feed.window(step)[0] for step in range(6)]
    for window in windows:
        _assert_same(window, _here(data(), extent, window.step, 2))
    assert [window.epoch for window in windows] == [0.5, 1, 1.5, 2, 2.5, 3]
    assert np.sum([window.by_source for window in windows], axis=0).tolist() == [3 * 6 * 29, 3 * 2 * 29]
    few = [{e for w in windows[i : i + 2] for b in w.batches for e in b.examples if e >= 6} for i in (0, 2, 4)]
    assert all(len(epoch) == 2 for epoch in few) and len(set(map(frozenset, few))) > 1  # drawn afresh
