"""A model of transformers in the form that generation runs. Every sequence has a cache of the library's own and passes
through the model by itself: correct for every architecture that the bridge loads, but without batching."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fledge.model.huggingface import TransformersModel


class TransformersCache:
    """Keys and values of several sequences: for each slot in use, a cache of the library's own, which grows by itself."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.sequences: dict[int, Any] = {}  # by slot

    def resize(self, slots: int, max_length: int) -> None:
        """Have at least this many slots; `max_length` needs no preparation."""
        self.slots = max(self.slots, slots)

    def clear(self) -> None:
        """Free the memory: no slots."""
        self.slots = 0
        self.sequences.clear()

    def move(self, sources: list[int], targets: list[int], length: int) -> None:
        """Move the complete sequences of the slots `sources` to the slots `targets`; `length` is not used."""
        moved = [self.sequences.pop(source) for source in sources]
        self.sequences.update(zip(targets, moved, strict=True))


class TransformersInferenceModel:
    """A model of transformers ready to generate, with the methods of `native.InferenceModel`."""

    def __init__(self, model: TransformersModel) -> None:
        self.model, self.device = model, model.device

    def empty_cache(self, slots: int = 0, max_length: int = 0) -> TransformersCache:
        """A cache for `slots` sequences. It grows with them, so that `max_length` reserves nothing."""
        return TransformersCache(slots)

    def forward(
        self, cache: TransformersCache, tokens: Sequence[int], lengths: Sequence[int], prompts: Sequence[Sequence[int]]
    ) -> Tensor:
        """Logits [n + m, V] in float32 after the next token of the sequences in the first n slots, of which the cache holds
        `lengths` tokens, and after m new prompts, which get the slots that follow."""
        hidden = [
            self._last_hidden([token], length, cache.sequences[slot])
            for slot, (token, length) in enumerate(zip(tokens, lengths, strict=True))
        ]
        for slot, prompt in enumerate(prompts, len(tokens)):
            cache.sequences[slot] = self.model.new_cache(1)
            hidden.append(self._last_hidden(prompt, 0, cache.sequences[slot]))
        return self.model.logits(torch.stack(hidden).to(self.model.compute_dtype))

    def _last_hidden(self, tokens: Sequence[int], stored: int, cache: Any) -> Tensor:
        """The hidden state [D] after the last of these tokens, which follow `stored` tokens of the cache and are added to
        it."""
        ids = torch.tensor([list(tokens)], device=self.device)
        positions = torch.arange(stored, stored + len(tokens), device=self.device)[None]
        return self.model.decode(ids, positions, past_key_values=cache, use_cache=True).last_hidden_state[0, -1]
