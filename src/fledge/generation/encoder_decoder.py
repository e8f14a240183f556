"""An encoder–decoder model of transformers in the form that generation runs.

All running answers pass through the decoder together. Their tokens stand at the right end of the cache, so that the newest
token of each has the last position: T5 knows only the distances between positions, and what stands on the left is masked.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fledge.errors import FledgeError
from fledge.model.encoder_decoder import EncoderDecoderModel, usable
from fledge.model.huggingface_loading import import_transformers


class AnswerCache:
    """Keys and values of the running answers, in the library's own cache, with the encoder's states of their sources.

    `states` [n, S, D] and `source_lengths` [n]; `lengths` [n]: tokens of each answer, its start token included, whose keys and
    values are at the end of the n rows of `cache`.
    """

    def __init__(self) -> None:
        self.slots = 0
        self.cache: Any = None
        self.states: Tensor | None = None
        self.source_lengths: list[int] = []
        self.lengths: list[int] = []

    def resize(self, slots: int, max_length: int) -> None:
        """Have at least this many slots; `max_length` needs no preparation."""
        self.slots = max(self.slots, slots)

    def clear(self) -> None:
        """Free the memory: no slots."""
        self.slots = 0
        self._drop()

    def _drop(self) -> None:
        self.cache, self.states, self.source_lengths, self.lengths = None, None, [], []

    def move(self, sources: list[int], targets: list[int], length: int) -> None:
        """Move the answers of the slots `sources` to the slots `targets`; `length` is not used."""
        order = list(range(len(self.lengths)))
        for source, target in zip(sources, targets, strict=True):
            order[target] = source
        self._select(order)

    def keep(self, count: int) -> None:
        """Drop all answers but the first `count`, and the positions and sources that only those needed."""
        if not count:
            self._drop()
        elif count < len(self.lengths):
            self._select(list(range(count)))

    def _select(self, order: list[int]) -> None:
        if self.states is None:
            return
        self.lengths, self.source_lengths = ([values[i] for i in order] for values in (self.lengths, self.source_lengths))
        longest, longest_source = max(self.lengths), max(1, *self.source_lengths)
        index = torch.tensor(order, device=self.states.device)
        self.states = self.states[index, :longest_source]
        for layer in self.cache.self_attention_cache.layers:
            start = layer.keys.shape[2] - longest
            layer.keys, layer.values = layer.keys[index, :, start:], layer.values[index, :, start:]
        for layer in self.cache.cross_attention_cache.layers:
            layer.keys, layer.values = (part[index, :, :longest_source] for part in (layer.keys, layer.values))

    def append(self, other: "AnswerCache") -> None:
        """Add the answers of another cache behind the own ones."""
        if self.states is None or other.states is None:
            self.cache, self.states = other.cache, other.states
            self.lengths, self.source_lengths = other.lengths, other.source_lengths
            return
        self.lengths, self.source_lengths = self.lengths + other.lengths, self.source_lengths + other.source_lengths
        pairs = ("self_attention_cache", True), ("cross_attention_cache", False)
        for name, at_left in pairs:
            for own, new in zip(getattr(self.cache, name).layers, getattr(other.cache, name).layers, strict=True):
                own.keys = _joined(own.keys, new.keys, at_left)
                own.values = _joined(own.values, new.values, at_left)
        self.states = _joined(self.states[:, None], other.states[:, None], at_left=False)[:, 0]


def _joined(first: Tensor, second: Tensor, at_left: bool) -> Tensor:
    """Two tensors [n, H, L, d] as one, the shorter one filled up with zeros on the left or on the right."""
    length = max(first.shape[2], second.shape[2])

    def filled(tensor: Tensor) -> Tensor:
        missing = length - tensor.shape[2]
        return F.pad(tensor, (0, 0, missing, 0) if at_left else (0, 0, 0, missing))

    return torch.cat((filled(first), filled(second)))


class EncoderDecoderInferenceModel:
    """A model of transformers ready to generate, with the methods of `native.InferenceModel`."""

    def __init__(self, model: EncoderDecoderModel) -> None:
        self.model, self.device = model, model.device
        self.library = import_transformers("generating with this model")

    def empty_cache(self, slots: int = 0, max_length: int = 0) -> AnswerCache:
        """A cache without answers."""
        return AnswerCache()

    def forward(
        self, cache: AnswerCache, tokens: Sequence[int], lengths: Sequence[int], prompts: Sequence[Sequence[int]]
    ) -> Tensor:
        """Logits [n + m, V] in float32 after the next token of the answers in the first n slots, and after m new prompts, which
        get the slots that follow. `lengths` are not used: the cache knows them. Raises FledgeError for a prompt without the
        decoder's start token."""
        started = self._start(prompts) if prompts else None
        cache.keep(len(tokens))
        hidden = [self._continue(cache, tokens)] if tokens else []
        if started is not None:
            new, states = started
            cache.append(new)
            hidden.append(states)
        return self.model.logits(self.model.scaled(torch.cat(hidden)))

    def _start(self, prompts: Sequence[Sequence[int]]) -> tuple[AnswerCache, Tensor]:
        """The cache of new prompts, and the decoder's states [m, D] after their last tokens."""
        sources, answers = zip(*(self._divide(prompt) for prompt in prompts), strict=True)
        new = AnswerCache()
        new.source_lengths, new.lengths = [len(source) for source in sources], [len(answer) for answer in answers]
        longest, width = max(1, *new.source_lengths), max(new.lengths)
        source = torch.tensor([[*source, *[0] * (longest - len(source))] for source in sources], device=self.device)
        target = torch.tensor([[*[0] * (width - len(answer)), *answer] for answer in answers], device=self.device)
        is_source = self._first(new.source_lengths, longest)
        new.states = self.model.encode(source, usable(is_source[:, None, None].expand(-1, 1, longest, longest)))
        order = torch.arange(width, device=self.device)
        mask = self._last(new.lengths, width)[:, None, None] & (order <= order[:, None])
        caches = [self.library.DynamicCache() for _ in range(2)]
        new.cache = self.library.EncoderDecoderCache(*caches)
        return new, self._decode(new, target, usable(mask))

    def _continue(self, cache: AnswerCache, tokens: Sequence[int]) -> Tensor:
        """The decoder's states [n, D] after one more token of each answer."""
        cache.lengths = [length + 1 for length in cache.lengths]
        mask = self._last(cache.lengths, max(cache.lengths))[:, None, None]
        return self._decode(cache, torch.tensor(tokens, device=self.device)[:, None], mask)

    def _decode(self, cache: AnswerCache, target: Tensor, mask: Tensor) -> Tensor:
        assert cache.states is not None
        seen = self._first(cache.source_lengths, cache.states.shape[1])[:, None, None]
        cross_mask = usable(seen.expand(-1, 1, target.shape[1], -1))
        options = {"past_key_values": cache.cache, "use_cache": True}
        return self.model.decode_target(target, cache.states, mask, cross_mask, **options).last_hidden_state[:, -1]

    def _divide(self, prompt: Sequence[int]) -> tuple[list[int], list[int]]:
        """A prompt as its source, and what the decoder reads before it predicts."""
        tokens, start = list(prompt), self.model.decoder_start
        if start not in tokens:
            raise FledgeError(
                f"the prompt has no token {start}, with which the decoder of this model starts",
                where="prompt",
                hint="use the tokenizer of the model, with the chat template seq2seq",
            )
        position = tokens.index(start)
        return tokens[:position], tokens[position:]

    def _first(self, lengths: Sequence[int], width: int) -> Tensor:
        """The first positions of each row: bool [n, width]."""
        return torch.arange(width, device=self.device) < torch.tensor(lengths, device=self.device)[:, None]

    def _last(self, lengths: Sequence[int], width: int) -> Tensor:
        """The last positions of each row: bool [n, width]."""
        return torch.arange(width, device=self.device) >= width - torch.tensor(lengths, device=self.device)[:, None]
