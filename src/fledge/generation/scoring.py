"""Scoring: the log-probabilities that a model gives to the tokens of texts."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple, TypeVar

import torch
from torch import Tensor

from fledge.errors import FledgeError
from fledge.model.linear_cross_entropy import token_logps_and_correct
from fledge.model.protocol import LanguageModel, eval_mode

Key = TypeVar("Key")
BATCH_TOKENS = 8192  # tokens in one forward pass, padding included. A longer sequence goes alone.


@torch.no_grad()
def score_tokens(
    model: LanguageModel, sequences: Sequence[Sequence[int]], batch_tokens: int = BATCH_TOKENS
) -> list[list[float]]:
    """log p(token | the tokens before it) of each token but the first, for each sequence.

    These are the model's own probabilities, as in `TokenOutput.logprob`: a prompt and its answer score, at the answer's
    tokens, what generation reported for them. An encoder–decoder predicts no token of a source: NaN stands there. Raises
    FledgeError for a sequence that is longer than the model's positions, and, for an encoder–decoder, for a text alone.
    """
    for number, sequence in enumerate(sequences, 1):
        _check_length(model, sequence, number)
        if model.decoder_start is not None and model.decoder_start not in sequence:
            raise FledgeError(
                "an encoder–decoder gives probabilities to the answer to a source, and this is a text alone",
                where=f"sequence {number}",
                hint="score tokens of Tokenizer.encode_conversation: source, start token and answer",
            )
    scores = [one.logprobs for one in score_continuations(model, sequences, [1] * len(sequences), batch_tokens)]
    if model.decoder_start is not None:
        for sequence, values in zip(sequences, scores, strict=True):
            unpredicted = list(sequence).index(model.decoder_start)
            values[:unpredicted] = [math.nan] * unpredicted
    return scores


class ContinuationScore(NamedTuple):
    """log p of each token of a continuation, and whether it is the likeliest token at its place."""

    logprobs: list[float]
    is_greedy: list[bool]


@torch.no_grad()
def score_continuations(
    model: LanguageModel,
    sequences: Sequence[Sequence[int]],
    starts: Sequence[int],
    batch_tokens: int = BATCH_TOKENS,
    progress: Callable[[int], None] | None = None,
) -> list[ContinuationScore]:
    """The scores of the tokens of each sequence from number `starts[i]` (at least 1) on, after those before. Logits are
    computed for them alone. `progress` is called with the number of sequences of each batch.

    Raises FledgeError for a sequence that is longer than the model's positions."""
    for number, sequence in enumerate(sequences, 1):
        _check_length(model, sequence, number)
    scores = [ContinuationScore([], []) for _ in sequences]
    read = {index: len(sequence) - 1 for index, sequence in enumerate(sequences) if starts[index] < len(sequence)}
    with eval_mode(model):
        for batch in longest_first(read, batch_tokens):
            found = _score_batch(model, [sequences[index] for index in batch], [starts[index] for index in batch])
            for index, score in zip(batch, found, strict=True):
                scores[index] = score
            if progress is not None:
                progress(len(batch))
    if progress is not None:
        progress(len(sequences) - len(read))
    return scores


@torch.no_grad()
def next_token_logps(
    model: LanguageModel, sequences: Sequence[Sequence[int]], candidates: Sequence[int], batch_tokens: int = BATCH_TOKENS
) -> Tensor:
    """log p(token | a whole sequence) of k candidate tokens, float32 [n, k], for n sequences that are not empty.

    Raises FledgeError for a sequence that is longer than the model's positions."""
    for number, sequence in enumerate(sequences, 1):
        if len(sequence) > model.max_positions:
            raise _too_long(len(sequence), model.max_positions, number)
    result = torch.empty(len(sequences), len(candidates))
    with eval_mode(model):
        for batch in longest_first(dict(enumerate(map(len, sequences))), batch_tokens):
            inputs, lengths = padded([sequences[index] for index in batch], model.device)
            last = model(inputs)[torch.arange(len(batch), device=model.device), lengths - 1]
            logps = model.logits(last).log_softmax(-1)[:, list(candidates)]
            result[torch.tensor(batch)] = logps.float().cpu()
    return result


def _check_length(model: LanguageModel, sequence: Sequence[int], number: int) -> None:
    if len(sequence) > model.max_positions + 1:  # the last token is predicted, but not read
        raise _too_long(len(sequence), model.max_positions, number)


def _too_long(length: int, max_positions: int, number: int) -> FledgeError:
    return FledgeError(
        f"it has {length:,} tokens, the model has {max_positions:,} positions",
        where=f"sequence {number}",
        hint="shorten it, or train with a larger model.max_position_embeddings",
    )


def longest_first(lengths: Mapping[Key, int], batch_tokens: int) -> Iterator[list[Key]]:
    """What is read together: the keys of lengths above 0, the longest first, as many at a time as make at most `batch_tokens`
    tokens with padding, at least one."""
    left = sorted(lengths, key=lambda key: -lengths[key])
    while left:
        size = max(1, batch_tokens // lengths[left[0]])
        batch, left = left[:size], left[size:]
        yield batch


def padded(sequences: Sequence[Sequence[int]], device: torch.device) -> tuple[Tensor, Tensor]:
    """Sequences padded on the right, where causal attention never looks, [B, T], and their lengths [B]."""
    lengths = [len(sequence) for sequence in sequences]
    inputs = torch.zeros(len(sequences), max(lengths), dtype=torch.long)
    for row, sequence in enumerate(sequences):
        inputs[row, : lengths[row]] = torch.tensor(list(sequence))
    return inputs.to(device), torch.tensor(lengths, device=device)


def _score_batch(model: LanguageModel, sequences: Sequence[Sequence[int]], starts: Sequence[int]) -> list[ContinuationScore]:
    """The scores from `starts` on of sequences that are read together, padded on the right, where causal attention never
    looks."""
    device = model.device
    inputs, _ = padded([sequence[:-1] for sequence in sequences], device)
    places = torch.arange(inputs.shape[1])
    first, last = (torch.tensor(values)[:, None] for values in (starts, [len(sequence) for sequence in sequences]))
    is_scored = (places >= first - 1) & (places < last - 1)  # the place that predicts a token is the one before it
    targets = torch.tensor([token for sequence, start in zip(sequences, starts, strict=True) for token in sequence[start:]])
    rows = is_scored.flatten().nonzero()[:, 0].to(device)
    hidden = model(inputs).flatten(0, 1)
    logps, correct = token_logps_and_correct(hidden, model.lm_head_weight, targets.to(device), rows)
    counts = [len(sequence) - start for sequence, start in zip(sequences, starts, strict=True)]
    pairs = zip(logps.cpu().split(counts), correct.cpu().bool().split(counts), strict=True)
    return [ContinuationScore(values.tolist(), greedy.tolist()) for values, greedy in pairs]
