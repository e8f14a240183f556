"""Faults of encoding: loss weights, end tokens and tokens that are not what the template says.

They act where sequences are stored, so that the tokens and weights that a run has built are wrong, and agree with themselves.
"""

import zlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from fledge.data.storage import SequenceWriter
from fledge.doctor_bench.condition import Fault, wrapping
from fledge.doctor_bench.setup import RunSetup
from fledge.tokenizer import load_tokenizer

Pair = tuple[np.ndarray, np.ndarray]
Change = Callable[[np.ndarray, np.ndarray], Pair]
SUPERVISED = ("sft", "lora", "seq2seq")


def written(change: Change) -> AbstractContextManager[None]:
    """A context in which `change` makes the tokens and weights [n] that are stored from those of a sequence."""

    def make(original: Callable[..., None]) -> Callable[..., None]:
        def write(self: SequenceWriter, tokens: Any, weights: np.ndarray) -> None:
            changed = change(np.array(tokens), np.array(weights, np.float32))
            return original(self, *changed)

        return write

    return wrapping(SequenceWriter, "write", make)


def fraction_of(tokens: np.ndarray) -> float:
    """A number in [0, 1) that depends on the tokens alone."""
    return zlib.crc32(np.ascontiguousarray(tokens, np.int64).tobytes()) / 2**32


def answer_ends(weights: np.ndarray) -> np.ndarray:
    """The places of the last token with weight of each answer, which is its end token."""
    return np.flatnonzero((weights > 0) & (np.append(weights[1:], 0) == 0))


def on_share(share: float, change: Change) -> Change:
    """The change for a share of the sequences, chosen by their tokens."""
    return lambda tokens, weights: change(tokens, weights) if fraction_of(tokens) < share else (tokens, weights)


def whole_prompt(tokens: np.ndarray, weights: np.ndarray) -> Pair:
    """Weight on every token."""
    return tokens, np.ones_like(weights)


def rolled(by: int) -> Change:
    """Weights that lie `by` places later."""

    def change(tokens: np.ndarray, weights: np.ndarray) -> Pair:
        moved = np.zeros_like(weights)
        if by > 0:
            moved[by:] = weights[:-by]
        else:
            moved[:by] = weights[-by:]
        return tokens, moved

    return change


def nothing(tokens: np.ndarray, weights: np.ndarray) -> Pair:
    """No weight at all."""
    return tokens, np.zeros_like(weights)


def without_end_weight(tokens: np.ndarray, weights: np.ndarray) -> Pair:
    """No weight on end tokens."""
    changed = weights.copy()
    changed[answer_ends(weights)] = 0
    return tokens, changed


def without_end(tokens: np.ndarray, weights: np.ndarray) -> Pair:
    """No end tokens behind answers."""
    ends = answer_ends(weights)
    return np.delete(tokens, ends), np.delete(weights, ends)


def beginning_of_answers(share: float) -> Change:
    """Weight on the first part of each answer alone."""

    def change(tokens: np.ndarray, weights: np.ndarray) -> Pair:
        kept = np.zeros_like(weights)
        starts = np.flatnonzero((weights > 0) & (np.append(0, weights[:-1]) == 0))
        for start, end in zip(starts, answer_ends(weights), strict=True):
            stop = start + max(1, round(share * (end + 1 - start)))
            kept[start:stop] = weights[start:stop]
        return tokens, kept

    return change


# -- as patches ---------------------------------------------------------------------------------------------------------


def _unmasked(setup: RunSetup, share: float) -> AbstractContextManager[None]:
    return written(on_share(share, whole_prompt))


def _off_by(setup: RunSetup, by: int) -> AbstractContextManager[None]:
    return written(rolled(by))


def _all_masked(setup: RunSetup, share: float) -> AbstractContextManager[None]:
    return written(on_share(share, nothing))


def _part(setup: RunSetup, share: float) -> AbstractContextManager[None]:
    return written(beginning_of_answers(share))


def _end_weights(setup: RunSetup, share: float) -> AbstractContextManager[None]:
    return written(on_share(share, without_end_weight))


def _no_ends(setup: RunSetup, share: float) -> AbstractContextManager[None]:
    return written(on_share(share, without_end))


def _pad_is_end(setup: RunSetup, amount: Any) -> AbstractContextManager[None]:
    """Every end token counts as padding: also that of the user's turns, which have no weight anyway."""
    stops = np.asarray(sorted(load_tokenizer(setup.tokenizer).stop_ids))
    return written(lambda tokens, weights: (tokens, np.where(np.isin(tokens, stops), np.float32(0), weights)))


def _spelled_out(setup: RunSetup, amount: Any) -> AbstractContextManager[None]:
    """The control tokens of the template are written as the characters of their names."""
    tokenizer = load_tokenizer(setup.tokenizer)
    pieces = {tokenizer.core.token_to_id(name): tokenizer.encode(name) for name in ("<|im_start|>", "<|im_end|>")}

    def change(tokens: np.ndarray, weights: np.ndarray) -> Pair:
        parts = [np.asarray(pieces.get(int(token), [token]), tokens.dtype) for token in tokens]
        longest = setup.stage["data"]["max_seq_len"] + 1
        return np.concatenate(parts)[:longest], np.repeat(weights, [len(part) for part in parts])[:longest]

    return written(change)


def _other_tokenizer(setup: RunSetup, share: float) -> AbstractContextManager[None]:
    """A share of the ids stand for other texts, as with a tokenizer that is not the model's own."""
    size = load_tokenizer(setup.tokenizer).vocab_size
    first = 16  # control tokens stay
    ids, draw = np.arange(size), np.random.default_rng(5)
    moved = first + np.flatnonzero(draw.random(size - first) < share)
    ids[moved] = moved[draw.permutation(len(moved))]
    return written(lambda tokens, weights: (ids[tokens].astype(tokens.dtype), weights))


def _noise(setup: RunSetup, share: float) -> AbstractContextManager[None]:
    """A share of the tokens of answers is drawn at random."""
    size = load_tokenizer(setup.tokenizer).vocab_size

    def change(tokens: np.ndarray, weights: np.ndarray) -> Pair:
        draw = np.random.default_rng(zlib.crc32(tokens.tobytes()))
        is_noise = (weights > 0) & (draw.random(len(tokens)) < share)
        is_noise[answer_ends(weights)] = False
        return np.where(is_noise, draw.integers(16, size, len(tokens)), tokens).astype(tokens.dtype), weights

    return written(change)


def _fault(
    name: str, patch: Any, levels: dict[str, Any], shapes: tuple[str, ...] = SUPERVISED, category: Any = "targets"
) -> Fault:
    return Fault(name=name, category=category, shapes=shapes, levels=levels, patch=patch, is_silent=True)


FAULTS = (
    _fault("prompt not masked", _unmasked, {"half": 0.5, "all": 1.0}),
    _fault("mask off by one", _off_by, {"early": -1, "late": 1}),
    _fault("everything masked", _all_masked, {"80%": 0.8, "97%": 0.97}, ("sft",)),
    _fault("part of answers supervised", _part, {"half": 0.5, "tenth": 0.1}, ("sft",)),
    _fault("end token never supervised", _end_weights, {"70%": 0.7, "all": 1.0}),
    _fault("end token missing", _no_ends, {"70%": 0.7, "all": 1.0}, ("sft", "dpo")),
    _fault("pad is end", _pad_is_end, {"": None}, ("sft",)),
    _fault("control tokens split", _spelled_out, {"": None}, ("sft",), "template"),
    _fault("tokenizer is not the model's", _other_tokenizer, {"half": 0.5, "all": 1.0}, ("sft", "lora"), "template"),
    _fault("noisy labels", _noise, {"20%": 0.2, "50%": 0.5}, ("sft",)),
)
