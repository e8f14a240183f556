"""The tokens that the sequences of a batch contain, for repetition penalties."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fledge.model.device_copy import to_device


class SeenTokens:
    """A mask of the tokens in each slot's sequence: bool [slots, V], allocated when it is first needed."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self.mask = torch.zeros(0, vocab_size, dtype=torch.bool, device=device)

    def update(self, decoded: Sequence[int], prompts: Sequence[Sequence[int]]) -> Tensor:
        """Mark what one pass reads: one token for each of the first slots, and prompts in the slots that follow.

        Returns the mask [len(decoded) + len(prompts), V].
        """
        num_decoding, count = len(decoded), len(decoded) + len(prompts)
        if count > len(self.mask):
            added = self.mask.new_zeros(count - len(self.mask), self.mask.shape[1])
            self.mask = torch.cat((self.mask, added))
        self.mask[num_decoding:count] = False
        slots, tokens = list(range(num_decoding)), list(decoded)
        for slot, prompt in enumerate(prompts, num_decoding):
            slots += [slot] * len(prompt)
            tokens += prompt
        slot_index, token_index = to_device([slots, tokens], self.mask.device)
        self.mask[slot_index, token_index] = True
        return self.mask[:count]

    def move(self, sources: list[int], targets: list[int]) -> None:
        """Copy the rows of the slots `sources` to the slots `targets`, where they are allocated."""
        pairs = [(source, target) for source, target in zip(sources, targets, strict=True) if source < len(self.mask)]
        if pairs:
            allocated_sources, allocated_targets = map(list, zip(*pairs, strict=True))
            target_index, source_index = to_device([allocated_targets, allocated_sources], self.mask.device)
            self.mask[target_index] = self.mask[source_index]

    def clear(self) -> None:
        """Free the memory."""
        self.mask = self.mask[:0].clone()
