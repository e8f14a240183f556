"""The cache of keys and values: one slot for each running request.

A slot is one contiguous stretch of memory in which the token at position p of a sequence lies at index p. Pages behind a
block table would waste no memory behind short sequences, but PyTorch has no CPU kernel that attends through a table.
Gathering the pages into a stretch first costs one to three times what attention itself costs, in every layer of every step
(measured with 64 sequences of 128 and 256 tokens, 2 heads of 64, float32 and bf16). The waste is bounded instead: the
stretches are only as long as the longest running sequence needs, at most half more.
"""

import torch
from torch import Tensor

from fledge.model.device_copy import to_device

GRAIN = 64  # capacities are multiples of this many tokens
GROWTH = 1.5  # a capacity that is too small grows at least by this factor, so that a sequence is copied only a few times


def round_up(length: int, grain: int) -> int:
    """The next multiple of `grain`."""
    return -(-length // grain) * grain


def cache_bytes(*, num_layers: int, slots: int, num_kv_heads: int, head_dim: int, capacity: int, dtype: torch.dtype) -> int:
    """Bytes of a cache: one key and one value for each layer, slot, head and position."""
    return 2 * num_layers * slots * num_kv_heads * round_up(capacity, GRAIN) * head_dim * dtype.itemsize


class KVCache:
    """Keys and values of S slots, per layer [S, 2K, C, d]: the K heads of keys, then the K heads of values.

    The capacity C grows with the sequences, up to `max_length` tokens (rounded up to a multiple of 64); the number of
    slots grows with `resize`. Growing holds one layer twice. Positions that were never written are 0 and not arbitrary,
    because an attention weight of 0 times NaN would be NaN.
    """

    def __init__(
        self,
        *,
        num_layers: int,
        slots: int,
        num_kv_heads: int,
        head_dim: int,
        max_length: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.num_kv_heads, self.max_length, self.peak_bytes = num_kv_heads, max_length, 0
        empty = torch.zeros(slots, 2 * num_kv_heads, 0, head_dim, dtype=dtype, device=device)
        self.layers = [empty] * num_layers

    @property
    def slots(self) -> int:
        """How many sequences it has room for."""
        return self.layers[0].shape[0]

    @property
    def capacity(self) -> int:
        """How many tokens of each sequence it has room for now."""
        return self.layers[0].shape[2]

    def resize(self, slots: int, max_length: int) -> None:
        """Have at least this many slots, and let the capacity grow to at least `max_length` tokens."""
        self.max_length = max(self.max_length, max_length)
        if slots > self.slots:
            self._grow(slots, self.capacity)

    def reserve(self, length: int) -> None:
        """Have room for sequences of `length` tokens."""
        if length > self.capacity:
            target = max(length + GRAIN, int(self.capacity * GROWTH))
            self._grow(self.slots, round_up(max(length, min(target, self.max_length)), GRAIN))

    def _grow(self, slots: int, capacity: int) -> None:
        for number, old in enumerate(self.layers):
            new = old.new_zeros(slots, old.shape[1], capacity, old.shape[3])
            new[: old.shape[0], :, : old.shape[2]] = old
            self.layers[number] = new
        self.peak_bytes = max(self.peak_bytes, self.nbytes)

    def clear(self) -> None:
        """Free the memory: no slots, no capacity."""
        first, self.max_length = self.layers[0], 0
        self.layers = [first.new_zeros(0, first.shape[1], 0, first.shape[3])] * len(self.layers)

    def write(self, layer: int, slots: Tensor, positions: Tensor, keys_and_values: Tensor) -> None:
        """Store the keys and values [N, 2K, d] of N tokens in their slots [N] at their positions [N]."""
        self.layers[layer][slots, :, positions] = keys_and_values

    def read(self, layer: int, slots: int, length: int) -> tuple[Tensor, Tensor]:
        """Keys and values [slots, K, length, d] of the first slots and positions: views, not copies."""
        stored = self.layers[layer][:slots, :, :length]
        return stored[:, : self.num_kv_heads], stored[:, self.num_kv_heads :]

    def move(self, sources: list[int], targets: list[int], length: int) -> None:
        """Copy the first `length` positions of the slots `sources` to the slots `targets`."""
        target_index, source_index = to_device([targets, sources], self.layers[0].device)
        for layer in self.layers:
            view = layer[:, :, :length]
            view[target_index] = view[source_index]

    @property
    def nbytes(self) -> int:
        """Bytes held now."""
        return sum(layer.nbytes for layer in self.layers)
