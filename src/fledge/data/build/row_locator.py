"""The file and line of the row that a training example comes from."""

from collections.abc import Callable
from functools import cache, lru_cache

import numpy as np

from fledge.data.build.load import StageDataset
from fledge.data.build.shard_items import ShardItems


class RowLocator:
    """Gives FILE:LINE of the rows of a stage's training examples."""

    def __init__(self, dataset: StageDataset) -> None:
        self.build, self.examples = dataset.build, dataset.train.examples

    @lru_cache(maxsize=64)  # noqa: B019  lives as long as the data
    def _items(self, shard: int) -> ShardItems:
        return ShardItems.of(self.build, self.build.plan.shards[shard])

    def example(self, number: int) -> str:
        """FILE:LINE (or FILE#INDEX) of the row of example `number`."""
        assert self.examples.shard is not None and self.examples.row is not None
        items = self._items(int(self.examples.shard[number]))
        return items.location(int(np.searchsorted(items.arrays["row"], int(self.examples.row[number]))))


def example_locator(dataset: StageDataset) -> Callable[[int], str]:
    """A function that gives FILE:LINE of a training example's row; it reads its index at the first call."""

    @cache
    def locator() -> RowLocator:
        return RowLocator(dataset)

    return lambda example: locator().example(example)
