"""Rows of the data for probes, and their losses by the doctor's own code: nothing here comes from an objective or a loader.

A row is one sequence of the built data: a document, a conversation, or one answer of a pair with its prompt.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fledge.data.storage import Examples
from fledge.evaluate.evenly import evenly
from fledge.evaluate.training_targets import answer_header
from fledge.model.protocol import LanguageModel
from fledge.tokenizer import Tokenizer

OFFSETS = 3  # places on at which the cross-entropy is measured: 0, 1 and 2
LOGITS_AT_ONCE = 2**24  # numbers of the logits of one pass, at most


@dataclass(frozen=True)
class Row:
    """One sequence. `tokens` int64 [n]; `weights` float32 [n]: of each token as a target. `answers`: ranges of tokens, each an
    answer with the token that ends it; `ended`: of each, whether it has one. `example`: its number in the data."""

    tokens: np.ndarray
    weights: np.ndarray
    answers: tuple[tuple[int, int], ...] = ()
    ended: tuple[bool, ...] = ()
    example: int = -1

    @property
    def in_answers(self) -> np.ndarray:
        """Whether each token belongs to an answer, bool [n]."""
        inside = np.zeros(len(self.tokens), bool)
        for start, stop in self.answers:
            inside[start:stop] = True
        return inside

    @property
    def supervised(self) -> np.ndarray:
        """Whether each token is a target with weight, bool [n]. The first token is no target."""
        found = self.weights > 0
        found[:1] = False
        return found


@dataclass(frozen=True)
class Reading:
    """What a model says about a row of n tokens. `losses` float32 [3, n]: at each place, −log p of the token 0, 1 and 2 places
    on, NaN where the row has none. `ends` float32 [n]: the probability at each place that a token that ends comes next."""

    losses: np.ndarray
    ends: np.ndarray

    def of_targets(self, chosen: np.ndarray) -> np.ndarray:
        """The losses of the chosen tokens (bool [n]) as targets; the first token of a row is none."""
        return self.losses[1][:-1][chosen[1:]]


class RowMaker:
    """Makes rows of sequences. `longest`: most tokens of a row. `has_answers`: whether rows are conversations. Where the chat
    template does not show where answers begin, the runs of tokens with weight stand in their place."""

    def __init__(self, tokenizer: Tokenizer, longest: int, *, has_answers: bool) -> None:
        self.longest, self.has_answers = longest, has_answers
        self.stop_ids = tokenizer.stop_ids
        self.header = tuple(answer_header(tokenizer)) if has_answers else ()

    def row(self, tokens: np.ndarray, weights: np.ndarray, example: int = -1) -> Row:
        """The row of a sequence, cut to `longest` tokens."""
        tokens, weights = np.asarray(tokens[: self.longest], np.int64), np.asarray(weights[: self.longest], np.float32)
        if not self.has_answers:
            return Row(tokens, weights, example=example)
        spans = list(_behind_headers(tokens, self.header, self.stop_ids)) if self.header else []
        spans = spans or list(_runs(weights > 0))
        ended = tuple(int(tokens[stop - 1]) in self.stop_ids for _, stop in spans)
        return Row(tokens, weights, tuple(spans), ended, example)

    def rows(self, examples: Examples, most: int, place: int = 0) -> list[Row]:
        """At most `most` rows, spread evenly over the examples: of each the sequence at `place`. Of labelled answers those that
        are desirable."""
        numbers = np.arange(examples.count) if examples.labels is None else np.flatnonzero(examples.labels)
        chosen = [int(numbers[index]) for index in evenly(len(numbers), most)] if len(numbers) else []
        return [
            self.row(*examples.sequence(number * examples.sequences_per_example + place), example=number) for number in chosen
        ]


def _behind_headers(tokens: np.ndarray, header: Sequence[int], stop_ids: frozenset[int]) -> Iterator[tuple[int, int]]:
    """The answers of a sequence: from behind each header up to and with the next token that ends a text."""
    size = len(header)
    if len(tokens) <= size:
        return
    windows = np.lib.stride_tricks.sliding_window_view(tokens, size)
    stops = np.flatnonzero(np.isin(tokens, list(stop_ids)))
    for begin in np.flatnonzero((windows == np.asarray(header)).all(axis=1)).tolist():
        start = begin + size
        later = stops[stops >= start]
        stop = int(later[0]) + 1 if len(later) else len(tokens)
        if stop > start:
            yield start, stop


def _runs(chosen: np.ndarray) -> Iterator[tuple[int, int]]:
    """The ranges in which `chosen` is true."""
    edges = np.flatnonzero(np.diff(np.concatenate(([0], chosen.astype(np.int8), [0])))).tolist()
    return zip(edges[::2], edges[1::2], strict=True)


# -- reading ------------------------------------------------------------------------------------------------------------


def padded(rows: Sequence[np.ndarray], pad: int) -> tuple[Tensor, Tensor]:
    """Sequences as tokens and documents [B, T]: each row is one document, numbered 1, and padding is 0."""
    longest = max(map(len, rows))
    tokens = np.full((len(rows), longest), pad, np.int64)
    documents = np.zeros_like(tokens)
    for number, row in enumerate(rows):
        tokens[number, : len(row)] = row
        documents[number, : len(row)] = 1
    return torch.from_numpy(tokens), torch.from_numpy(documents)


def positions_of(documents: Tensor) -> Tensor:
    """Positions [B, T] that count from 0 in each row."""
    return torch.arange(documents.shape[1]).expand_as(documents)


def hidden_states(model: LanguageModel, rows: Sequence[np.ndarray], pad: int) -> tuple[Tensor, Tensor]:
    """Hidden states [B, T, D] of sequences, and their tokens [B, T]."""
    tokens, documents = padded(rows, pad)
    return model(tokens, positions_of(documents), documents), tokens


def read_rows(model: LanguageModel, rows: Sequence[Row], stop_ids: frozenset[int], pad: int) -> list[Reading]:
    """The readings of rows by a model in evaluation mode, without gradients, as many rows at a time as memory allows."""
    order = sorted(range(len(rows)), key=lambda number: len(rows[number].tokens))
    readings: dict[int, Reading] = {}
    model.eval()
    with torch.no_grad():
        for chunk in _chunks([len(rows[number].tokens) for number in order], model.vocab_size):
            numbers = [order[place] for place in chunk]
            sequences = [rows[number].tokens for number in numbers]
            hidden, _ = hidden_states(model, sequences, pad)
            for place, number in enumerate(numbers):
                readings[number] = _reading(model.logits(hidden[place, : len(sequences[place])]), sequences[place], stop_ids)
    return [readings[number] for number in range(len(rows))]


def _chunks(lengths: Sequence[int], vocab_size: int) -> Iterator[range]:
    """Ranges of rows, whose lengths ascend, that are computed together."""
    start = 0
    for stop in range(1, len(lengths) + 1):
        is_last = stop == len(lengths)
        if is_last or (stop + 1 - start) * lengths[stop] * vocab_size > LOGITS_AT_ONCE:
            yield range(start, stop)
            start = stop


def _reading(logits: Tensor, tokens: np.ndarray, stop_ids: frozenset[int]) -> Reading:
    """The reading of one row from its logits [n, V]."""
    norm = logits.logsumexp(-1)
    losses = np.full((OFFSETS, len(tokens)), np.nan, np.float32)
    ids = torch.from_numpy(tokens)
    for offset in range(min(OFFSETS, len(tokens))):
        places = len(tokens) - offset
        chosen = logits[:places].gather(-1, ids[offset:, None])[:, 0]
        losses[offset, :places] = (norm[:places] - chosen).numpy()
    known = [token for token in stop_ids if token < logits.shape[1]]
    ends = (logits[:, known] - norm[:, None]).exp().sum(-1).numpy()
    return Reading(losses, ends)
