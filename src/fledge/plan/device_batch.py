"""The share that a device has of an update, and how many of its rows it computes at a time."""

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class DeviceBatch:
    """The rows of an update that one device computes, `micro` at a time. With several devices the last one may have fewer."""

    rows: int
    micro: int

    @classmethod
    def of(cls, update_rows: int, micro: int, count: int) -> "DeviceBatch":
        """The share that each of `count` devices has of an update of `update_rows` rows, where up to `micro` fit at a time."""
        if count == 1:
            return cls(update_rows, micro)
        rows = math.ceil(update_rows / count)
        return cls(rows, even_micro_batch(rows, micro))

    @property
    def micro_batches(self) -> int:
        """Micro-batches of an update."""
        return math.ceil(self.rows / self.micro)


def even_micro_batch(rows: int, most: int) -> int:
    """The rows of a micro-batch, at most `most`, that need no more micro-batches than `most` does for so many rows, and leave
    the fewest rows empty."""
    return math.ceil(rows / math.ceil(rows / most))
