"""Packed rows of random sequences; the sequences themselves serve to compute results without packing."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from fledge.data import PackedDataset
from fledge.data.storage import Examples
from fledge.objective import DPOObjective
from fledge.objective.preference import Reference
from tests.support.decoders import VOCAB


@dataclass(frozen=True)
class Sequence:
    """Tokens [n], and each token's weight as a target [n]."""

    tokens: torch.Tensor
    weights: torch.Tensor


def pack(
    sequences: list[Sequence],
    packed_length: int,
    sequences_per_example: int = 1,
    seed: int = 1,
    *,
    labels: list[bool] | None = None,
    margins: list[float] | None = None,
) -> PackedDataset:
    """The sequences as packed data; with `labels`, as labelled answers; with `margins`, as pairs with margins."""
    offsets = np.concatenate(([0], np.cumsum([len(s.tokens) for s in sequences]))).astype(np.int64)
    tokens = torch.cat([s.tokens for s in sequences]).numpy().astype(np.int32)
    weights = torch.cat([s.weights for s in sequences]).numpy().astype(np.float32)
    examples = Examples(
        tokens=tokens,
        weights=weights,
        offsets=offsets,
        sequences_per_example=sequences_per_example,
        labels=None if labels is None else np.asarray(labels),
        margins=None if margins is None else np.asarray(margins, np.float32),
    )
    return PackedDataset(examples, packed_length, pad=0, seed=seed, split_documents=False, halves_rows=labels is not None)


def random_sequences(lengths: list[int], seed: int = 0) -> list[Sequence]:
    """Sequences of these lengths; a third of the targets has weight 0, the others have different weights."""
    generator = torch.Generator().manual_seed(seed)
    sequences = []
    for length in lengths:
        weights = (0.5 + torch.rand(length, generator=generator)) * (torch.rand(length, generator=generator) > 1 / 3)
        sequences.append(Sequence(torch.randint(VOCAB, (length,), generator=generator), weights))
    return sequences


@dataclass(frozen=True)
class Pair:
    """One preference: a prompt and two completions."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]

    def swapped(self) -> "Pair":
        """The opposite preference."""
        return Pair(self.prompt, self.rejected, self.chosen)


def random_pairs(count: int, seed: int = 0) -> list[Pair]:
    """Pairs of unequal lengths."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.randint(1, 10, (count, 3), generator=generator).tolist()
    pairs = []
    for row in sizes:
        prompt, chosen, rejected = (torch.randint(VOCAB, (size,), generator=generator).tolist() for size in row)
        pairs.append(Pair(prompt, chosen, rejected))
    return pairs


def pack_pairs(pairs: list[Pair], packed_length: int = 48) -> PackedDataset:
    """Pairs as packed data: weight 1 on completions, 0 on prompts."""
    sequences = []
    for pair in pairs:
        for answer in (pair.chosen, pair.rejected):
            weights = [0.0] * len(pair.prompt) + [1.0] * len(answer)
            sequences.append(Sequence(torch.tensor(pair.prompt + answer), torch.tensor(weights)))
    return pack(sequences, packed_length, sequences_per_example=2)


def pack_ranked(pairs: list[Pair], margins: list[float] | None = None, packed_length: int = 48) -> PackedDataset:
    """Pairs as a reward model reads them: the padding token 0 stands behind each answer."""
    sequences = []
    for pair in pairs:
        for answer in (pair.chosen, pair.rejected):
            weights = [0.0] * len(pair.prompt) + [1.0] * len(answer) + [0.0]
            sequences.append(Sequence(torch.tensor([*pair.prompt, *answer, 0]), torch.tensor(weights)))
    return pack(sequences, packed_length, sequences_per_example=2, margins=margins or [0.0] * len(pairs))


@dataclass(frozen=True)
class Answer:
    """One labelled answer: a prompt, the answer, an unrelated answer, and whether the answer is desirable."""

    prompt: list[int]
    answer: list[int]
    unrelated: list[int]
    desirable: bool


def random_answers(count: int, seed: int = 0) -> list[Answer]:
    """Labelled answers of unequal lengths, two of three desirable; the unrelated answer is that of the one before."""
    pairs = random_pairs(count, seed)
    return [Answer(pair.prompt, pair.chosen, pairs[i - 1].chosen, i % 3 != 1) for i, pair in enumerate(pairs)]


def pack_answers(answers: list[Answer], packed_length: int = 60) -> PackedDataset:
    """Labelled answers as packed data."""
    sequences = []
    for one in answers:
        for completion in (one.answer, one.unrelated):
            weights = [0.0] * len(one.prompt) + [1.0] * len(completion)
            sequences.append(Sequence(torch.tensor(one.prompt + completion), torch.tensor(weights)))
    return pack(sequences, packed_length, 2, labels=[one.desirable for one in answers])


def dpo(reference: Reference | None, beta: float = 0.1, loss_type: str = "sigmoid", **more: Any) -> DPOObjective:
    """A DPO objective with default settings for all that a test does not set."""
    return DPOObjective(loss_type=loss_type, beta=beta, reference=reference, **more)
