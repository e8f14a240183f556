"""An epoch draws rows from each source as its quota says."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fledge.data import PackedDataset
from fledge.data.dataset.mixing import Mixture, SourceQuota
from fledge.data.storage import Examples


def mixture(sizes: list[int], quotas: list[SourceQuota], seed: int = 1, tokens: int | None = None) -> Mixture:
    """A mixture of sources with these numbers of examples; lengths vary unless given."""
    source = np.repeat(np.arange(len(sizes)), sizes)
    lengths = np.full(len(source), tokens) if tokens else 5 + np.arange(len(source)) % 17
    return Mixture(source, lengths, tuple(quotas), seed)


def counts(mix: Mixture, epoch: int) -> np.ndarray:
    """The number of times that an epoch draws each example."""
    return np.bincount(mix.sample_epoch(epoch), minlength=len(mix.source))


def test_a_source_without_a_quota_gives_every_row_once() -> None:
    assert (counts(mixture([7, 5], [SourceQuota(name="a"), SourceQuota(name="b")]), 3) == 1).all()


def test_max_rows_draws_other_rows_in_another_epoch_and_equal_rows_in_an_equal_epoch() -> None:
    mix = mixture([100, 10], [SourceQuota(name="a", max_rows=20), SourceQuota(name="b")])
    first, second = counts(mix, 0), counts(mix, 1)
    assert first[:100].sum() == second[:100].sum() == 20
    assert first.max() == 1 and (first[:100] != second[:100]).any()
    assert (counts(mix, 0) == first).all()
    draws = sum(counts(mix, epoch)[:100] > 0 for epoch in range(40))
    assert (draws > 0).mean() > 0.95  # no row is out of reach


def test_ratio_max_tokens_and_repeat_set_how_many_rows_an_epoch_draws() -> None:
    mix = mixture(
        [100, 100, 10],
        [SourceQuota(name="a", ratio=0.25), SourceQuota(name="b", max_tokens=200), SourceQuota(name="c", repeat=2.5)],
        tokens=10,
    )
    drawn = counts(mix, 0)
    assert drawn[:100].sum() == 25
    assert drawn[100:200].sum() == 20
    assert drawn[200:].sum() == 25 and set(drawn[200:]) == {2, 3}


def test_a_share_is_a_share_of_the_epoch_s_tokens() -> None:
    mix = mixture([4000, 300], [SourceQuota(name="large", token_fraction=0.5), SourceQuota(name="small", token_fraction=0.5)])
    large, small = mix.summary(0)
    assert large["token_share"] == pytest.approx(0.5, abs=0.002)
    assert small["passes"] > 5 and large["passes"] < 0.6


def test_sources_without_a_share_give_the_rest_of_the_epoch() -> None:
    mix = mixture(
        [1000, 1000, 1000], [SourceQuota(name="identity", token_fraction=0.1), SourceQuota(name="b"), SourceQuota(name="c")]
    )
    identity, b, c = mix.summary(2)
    assert identity["token_share"] == pytest.approx(0.1, abs=0.001)
    assert b["passes"] == c["passes"] == 1


def _data(mix: Mixture, split: bool) -> PackedDataset:
    offsets = np.concatenate(([0], np.cumsum(mix.tokens + 1)))
    examples = Examples(
        tokens=np.arange(offsets[-1]) % 50,
        weights=np.ones(int(offsets[-1]), np.float32),
        offsets=offsets,
        sequences_per_example=1,
    )
    return PackedDataset(examples, 64, 0, 9, split, mixture=mix)


@given(st.booleans(), st.lists(st.integers(1, 40), min_size=1, max_size=3), st.integers(0, 5), st.data())
@settings(max_examples=25, deadline=None)
def test_the_packed_row_at_a_position_does_not_depend_on_the_order_of_reading(
    split: bool, sizes: list[int], seed: int, data: st.DataObject
) -> None:
    choices = st.sampled_from([SourceQuota(name="x"), SourceQuota(name="x", max_rows=3), SourceQuota(name="x", repeat=1.5)])
    quotas = [data.draw(choices) for _ in sizes]
    one, other = (_data(mixture(sizes, quotas, seed), split) for _ in range(2))
    rows = int(one.packed_rows_in(3))
    positions = data.draw(st.permutations(range(rows)))
    walked = {position: one.batch(position, 1).input_ids for position in range(rows)}
    assert all((other.batch(position, 1).input_ids == walked[position]).all() for position in positions)
    assert one.epochs_after(rows) == 3
    assert one.packed_rows_in(3) == sum(one.num_packed_rows(epoch) for epoch in range(3))


@given(st.booleans(), st.integers(0, 9))
@settings(max_examples=15, deadline=None)
def test_an_epoch_holds_exactly_what_was_drawn(split: bool, epoch: int) -> None:
    mix = mixture([30, 12], [SourceQuota(name="a", ratio=0.5), SourceQuota(name="b", repeat=1.25)])
    rows, order = _data(mix, split).epoch(epoch)
    assert sorted(order.tolist()) == list(range(len(rows)))
    filled = np.bincount(rows.sequence, weights=rows.length, minlength=len(mix.source))
    assert (filled == counts(mix, epoch) * mix.tokens).all()


def test_a_small_repeat_of_a_small_source_draws_at_least_one_row() -> None:
    assert mixture([1], [SourceQuota(name="one", repeat=0.4)]).sample_epoch(0).tolist() == [0]


def test_a_share_larger_than_the_source_repeats_all_its_rows_equally_often() -> None:
    mix = mixture(
        [10, 1000], [SourceQuota(name="few", token_fraction=0.5), SourceQuota(name="many", token_fraction=0.5)], tokens=10
    )
    drawn = counts(mix, 0)[:10]
    assert drawn.max() - drawn.min() <= 1
