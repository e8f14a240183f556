"""Generation with a key-value cache: batched, sampled or greedy, finished sequences leave the batch."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from fledge.model.decoder import Decoder, evaluating


@dataclass(frozen=True)
class Sampling:
    """How the next token is chosen. Temperature 0 is greedy; `top_k` 0 and `top_p` 1 are off.

    `repetition_penalty` divides positive and multiplies negative logits of tokens already seen (Keskar et al. 2019).
    """

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0
    max_new_tokens: int = 128
    seed: int = 0


@dataclass(frozen=True)
class Generated:
    """New tokens of one prompt, without the stop token; `ended` says whether there was one."""

    tokens: list[int]
    ended: bool


def shape_logits(logits: Tensor, sampling: Sampling, seen: Tensor) -> Tensor:
    """Logits [B, V] after repetition penalty, temperature, top-k and top-p. `seen` [B, V] marks tokens already there."""
    if sampling.repetition_penalty != 1.0:
        penalised = torch.where(logits > 0, logits / sampling.repetition_penalty, logits * sampling.repetition_penalty)
        logits = torch.where(seen, penalised, logits)
    if sampling.temperature > 0:
        logits = logits / sampling.temperature
    if 0 < sampling.top_k < logits.shape[-1]:
        lowest = logits.topk(sampling.top_k, dim=-1).values[:, -1:]
        logits = logits.masked_fill(logits < lowest, float("-inf"))
    if sampling.top_p < 1.0:
        ordered, index = logits.sort(dim=-1, descending=True)
        before = ordered.softmax(-1).cumsum(-1) - ordered.softmax(-1)
        cut = before >= sampling.top_p
        cut[:, 0] = False  # the likeliest token always stays
        ordered = ordered.masked_fill(cut, float("-inf"))
        logits = torch.empty_like(logits).scatter_(-1, index, ordered)
    return logits


def _choose(logits: Tensor, sampling: Sampling, seen: Tensor, generator: torch.Generator) -> Tensor:
    shaped = shape_logits(logits, sampling, seen)
    if sampling.temperature <= 0:
        return shaped.argmax(-1)
    return torch.multinomial(shaped.softmax(-1), 1, generator=generator)[:, 0]


class _Running:
    """A batch of prompts on their way: the cache, and which row belongs to which prompt."""

    def __init__(self, model: Decoder, prompts: Sequence[Sequence[int]], pad: int, room: int) -> None:
        longest = max(map(len, prompts))
        room = max(1, min(room, model.config.max_position_embeddings - min(map(len, prompts))))
        device = model.embed_tokens.weight.device
        tokens = torch.full((len(prompts), longest), pad)
        real = torch.zeros(len(prompts), longest, dtype=torch.bool)
        for row, prompt in enumerate(prompts):
            tokens[row, longest - len(prompt) :] = torch.tensor(prompt)
            real[row, longest - len(prompt) :] = True
        self.model, self.owners = model, list(range(len(prompts)))
        self.cache = model.empty_cache(len(prompts), longest + room)
        self.cache.valid[:, :longest] = real.to(device)
        self.seen = torch.zeros(len(prompts), model.vocab_size, dtype=torch.bool)
        self.seen.scatter_(1, tokens, real)
        positions = (real.cumsum(1) - 1).clamp(min=0)
        self.next_position = positions[:, -1] + 1
        hidden = model.extend(tokens.to(device), positions.to(device), self.cache)
        self.logits = model.logits(hidden[:, -1]).cpu()

    def feed(self, tokens: Tensor) -> None:
        """One more token for every row."""
        device = self.cache.valid.device
        self.seen.scatter_(1, tokens[:, None], torch.ones_like(tokens[:, None], dtype=torch.bool))
        self.cache.valid[:, self.cache.length] = True
        hidden = self.model.extend(tokens[:, None].to(device), self.next_position[:, None].to(device), self.cache)
        self.logits = self.model.logits(hidden[:, -1]).cpu()
        self.next_position = self.next_position + 1

    def keep(self, rows: Tensor) -> None:
        """Only these rows go on."""
        self.cache.keep(rows.to(self.cache.valid.device))
        self.seen, self.next_position = self.seen[rows], self.next_position[rows]
        self.owners = [self.owners[row] for row in rows.tolist()]


@torch.no_grad()
def generate(
    model: Decoder,
    prompts: Sequence[Sequence[int]],
    stop: frozenset[int],
    pad: int,
    sampling: Sampling,
    batch: int = 64,
    progress: Callable[[int], None] | None = None,
) -> list[Generated]:
    """Answers to tokenised prompts, in their order; prompts of similar length share a batch.

    Ends at a stop token, after `max_new_tokens`, or where the model's positions end. Dropout is off meanwhile.
    """
    generator = torch.Generator().manual_seed(sampling.seed)  # one for all batches: equal prompts get different draws
    answers: list[Generated] = [Generated([], False)] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    with evaluating(model):
        for start in range(0, len(order), batch):
            group = order[start : start + batch]
            made = _generate_batch(model, [prompts[index] for index in group], stop, pad, sampling, generator)
            for index, answer in zip(group, made, strict=True):
                answers[index] = answer
            if progress:
                progress(len(group))
    return answers


def _generate_batch(
    model: Decoder,
    prompts: list[Sequence[int]],
    stop: frozenset[int],
    pad: int,
    sampling: Sampling,
    generator: torch.Generator,
) -> list[Generated]:
    most = model.config.max_position_embeddings
    running = _Running(model, prompts, pad, sampling.max_new_tokens)
    tokens: list[list[int]] = [[] for _ in prompts]
    ended = [False] * len(prompts)
    for made in range(1, sampling.max_new_tokens + 1):
        chosen = _choose(running.logits, sampling, running.seen, generator)
        going = []
        for row, (owner, token) in enumerate(zip(running.owners, chosen.tolist(), strict=True)):
            if token in stop:
                ended[owner] = True
                continue
            tokens[owner].append(token)
            if len(prompts[owner]) + len(tokens[owner]) < most:
                going.append(row)
        if not going or made == sampling.max_new_tokens:
            break
        if len(going) < len(running.owners):
            rows = torch.tensor(going)
            chosen = chosen[rows]
            running.keep(rows)
        running.feed(chosen)
    return [Generated(ids, end) for ids, end in zip(tokens, ended, strict=True)]


@torch.no_grad()
def stream(model: Decoder, prompt: Sequence[int], stop: frozenset[int], pad: int, sampling: Sampling) -> Iterator[int]:
    """The tokens of one answer as they are made; the same as `generate` gives for this prompt alone."""
    generator = torch.Generator().manual_seed(sampling.seed)
    with evaluating(model):
        running = _Running(model, [prompt], pad, sampling.max_new_tokens)
        for made in range(1, sampling.max_new_tokens + 1):
            chosen = _choose(running.logits, sampling, running.seen, generator)
            token = int(chosen[0])
            if token in stop:
                return
            yield token
            if made == sampling.max_new_tokens or len(prompt) + made >= model.config.max_position_embeddings:
                return
            running.feed(chosen)
