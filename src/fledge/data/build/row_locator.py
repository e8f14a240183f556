"""The file and line of the row that a training example comes from."""

from collections.abc import Callable
from functools import cache, lru_cache

import numpy as np

from fledge.data.build.load import StageDataset
from fledge.data.build.shard_items import ShardItems
from fledge.data.dataset.packed_dataset import PackedDataset


class RowLocator:
    """Gives FILE:LINE of the rows of a stage's training examples, or of its validation examples."""

    def __init__(self, dataset: StageDataset, split: PackedDataset | None = None) -> None:
        """`split`: `dataset.validation` for its examples; None: those of training."""
        self.build, self.examples = dataset.build, (split or dataset.train).examples

    @lru_cache(maxsize=64)  # noqa: B019  lives as long as the data
    def _items(self, shard: int) -> ShardItems:
        return ShardItems.of(self.build, self.build.plan.shards[shard])

    def example(self, number: int) -> str:
        """FILE:LINE (or FILE#INDEX) of the row of example `number`."""
        assert self.examples.shard is not None and self.examples.row is not None
        items = self._items(int(self.examples.shard[number]))
        return items.location(int(np.searchsorted(items.arrays["row"], int(self.examples.row[number]))))


def example_locator(dataset: StageDataset, split: PackedDataset | None = None) -> Callable[[int], str]:
    """A function that gives FILE:LINE of the row of a training example, or of one of `split`; it reads its index at the first
    call."""

    @cache
    def locator() -> RowLocator:
        return RowLocator(dataset, split)

    return lambda example: locator().example(example)
