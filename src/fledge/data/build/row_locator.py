"""Where the row of a training example stands in its file."""

from functools import lru_cache

import numpy as np

from fledge.data.build.load import StageDataset
from fledge.data.build.shard_items import ShardItems


class RowLocator:
    """FILE:LINE of the training examples of a stage."""

    def __init__(self, dataset: StageDataset) -> None:
        self.build, self.examples = dataset.build, dataset.train.examples

    @lru_cache(maxsize=64)  # noqa: B019  lives as long as the data
    def _items(self, shard: int) -> ShardItems:
        return ShardItems.of(self.build, self.build.plan.shards[shard])

    def example(self, number: int) -> str:
        """Where the row of an example stands."""
        assert self.examples.shard is not None and self.examples.row is not None
        items = self._items(int(self.examples.shard[number]))
        return items.location(int(np.searchsorted(items.arrays["row"], int(self.examples.row[number]))))
