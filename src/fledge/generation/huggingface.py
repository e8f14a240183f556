"""A model of transformers in the form that generation runs. Every sequence has a cache of the library's own and passes
through the model by itself: correct for every architecture that the bridge loads, but without batching."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fledge.model.huggingface import TransformersModel, import_transformers


class TransformersCache:
    """Keys and values of several sequences: the library's cache of each slot, None where a slot is empty."""

    def __init__(self, slots: int) -> None:
        self.slots: list[Any] = [None] * slots

    def move(self, sources: list[int], targets: list[int], length: int) -> None:
        """Give the slots `targets` the sequences of the slots `sources`, whose slots are empty afterwards. A cache moves as a
        whole, whatever its `length`."""
        moved = [self.slots[source] for source in sources]
        for source in sources:
            self.slots[source] = None
        for target, cache in zip(targets, moved, strict=True):
            self.slots[target] = cache


class TransformersInferenceModel:
    """A model of transformers ready to generate, with the methods of `native.InferenceModel`."""

    def __init__(self, model: TransformersModel) -> None:
        self.model, self.device = model, model.device
        self.library = import_transformers("generating with this model")

    def empty_cache(self, slots: int, longest: int) -> TransformersCache:
        """A cache for `slots` sequences. It grows with them, so that `longest` reserves nothing."""
        return TransformersCache(slots)

    def forward(
        self, cache: TransformersCache, tokens: Sequence[int], lengths: Sequence[int], prompts: Sequence[Sequence[int]]
    ) -> Tensor:
        """Logits [n + m, V] in float32 after the next token of the sequences in the first n slots, of which the cache holds
        `lengths` tokens, and after m new prompts, which get the slots that follow."""
        hidden = [
            self._last_hidden([token], length, cache.slots[slot])
            for slot, (token, length) in enumerate(zip(tokens, lengths, strict=True))
        ]
        for slot, prompt in enumerate(prompts, len(tokens)):
            cache.slots[slot] = self.library.DynamicCache(config=self.model.causal_lm.config)
            hidden.append(self._last_hidden(prompt, 0, cache.slots[slot]))
        return self.model.logits(torch.stack(hidden).to(self.model.compute_dtype))

    def _last_hidden(self, tokens: Sequence[int], stored: int, cache: Any) -> Tensor:
        """The hidden state [D] after the last of these tokens, which follow `stored` tokens of the cache and are added to
        it."""
        ids = torch.tensor([list(tokens)], device=self.device)
        positions = torch.arange(stored, stored + len(tokens), device=self.device)[None]
        return self.model.decode(ids, positions, past_key_values=cache, use_cache=True).last_hidden_state[0, -1]
