"""Lengths of products that repeat."""

from fledge.model.linear_cross_entropy import CHUNK
from fledge.model.product_shapes import padded_length, padded_lengths


def test_padded_lengths_are_few_and_not_much_longer() -> None:
    lengths = range(1, 4097)
    assert all(0 <= padded_length(length) - length <= max(15, length // 8) for length in lengths)
    assert len({padded_length(length) for length in lengths}) < 64


def test_padded_lengths_are_counted() -> None:
    assert padded_lengths(CHUNK) == len({padded_length(length) for length in range(1, CHUNK + 1)})
