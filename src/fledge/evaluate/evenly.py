"""Rows spread evenly over data, its first and last one among them."""

import numpy as np


def evenly(count: int, most: int) -> list[int]:
    """The numbers of at most `most` of `count` rows, from 0."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(np.int64)).tolist()
