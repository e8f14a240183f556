"""The cache of keys and values: one slot for each answer under way.

A slot is one contiguous stretch, in which token p of a sequence lies at place p. Pages behind a block table would waste no
room behind short sequences, but PyTorch has no kernel on a CPU that attends through a table. Gathering the pages into a
stretch first costs one to three times what attending itself does, in every layer of every step (measured with 64
sequences of 128 and 256 tokens, 2 heads of 64, float32 and bf16). What is wasted is bounded instead: the stretches are
only as long as the longest sequence under way needs, at most half more.
"""

import torch
from torch import Tensor

GRAIN = 64  # capacities are multiples of this many tokens
GROWTH = 1.5  # a capacity that is too small grows at least by this, so that a sequence is moved a few times in all


def round_up(length: int, grain: int) -> int:
    """The next multiple of `grain`."""
    return -(-length // grain) * grain


def cache_bytes(layers: int, slots: int, kv_heads: int, head_size: int, capacity: int, dtype: torch.dtype) -> int:
    """Bytes of a cache: a key and a value for each layer, slot, head and place."""
    return 2 * layers * slots * kv_heads * round_up(capacity, GRAIN) * head_size * dtype.itemsize


class KVCache:
    """Keys and values of `slots` sequences, per layer [S, 2K, C, d]: the K heads of keys, then those of values.

    The capacity C starts small and grows with the sequences, to `longest` tokens (rounded up to a multiple of 64) and
    not further; growing holds one layer twice. Places that were never written are 0, not anything: a weight of 0 times
    NaN would be NaN.
    """

    def __init__(
        self, layers: int, slots: int, kv_heads: int, head_size: int, longest: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self.longest, self.capacity, self.kv_heads = longest, 0, kv_heads
        empty = torch.zeros(slots, 2 * kv_heads, 0, head_size, dtype=dtype, device=device)
        self.layers = [empty] * layers

    def reserve(self, length: int) -> None:
        """Make room for sequences of `length` tokens."""
        if length <= self.capacity:
            return
        wanted = max(length + GRAIN, int(self.capacity * GROWTH))
        capacity = round_up(max(length, min(wanted, self.longest)), GRAIN)
        for number, old in enumerate(self.layers):
            new = old.new_zeros(*old.shape[:2], capacity, old.shape[3])
            new[:, :, : self.capacity] = old
            self.layers[number] = new
        self.capacity = capacity

    def write(self, layer: int, slots: Tensor, places: Tensor, keys_and_values: Tensor) -> None:
        """Keys and values [N, 2K, d] of N tokens, into their slots [N] at their places [N]."""
        self.layers[layer][slots, :, places] = keys_and_values

    def read(self, layer: int, slots: int, length: int) -> tuple[Tensor, Tensor]:
        """Keys and values [slots, K, length, d] of the first slots and places: views, nothing is copied."""
        stored = self.layers[layer][:slots, :, :length]
        return stored[:, : self.kv_heads], stored[:, self.kv_heads :]

    def move(self, sources: list[int], targets: list[int], length: int) -> None:
        """The first `length` places of the slots `sources`, into the slots `targets`."""
        device = self.layers[0].device
        to, of = torch.tensor(targets, device=device), torch.tensor(sources, device=device)
        for layer in self.layers:
            view = layer[:, :, :length]
            view[to] = view[of]

    @property
    def nbytes(self) -> int:
        """Bytes held now."""
        return sum(layer.nbytes for layer in self.layers)
