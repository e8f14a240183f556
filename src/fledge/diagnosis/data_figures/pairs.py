"""Figures of preference pairs: equal answers, lengths, contradictions, and what earlier conversations answered."""

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from fledge.data.formats import ExampleFormat
from fledge.data.storage import Examples
from fledge.diagnosis.case import Figure
from fledge.diagnosis.data_figures.conversation_shape import ConversationShape
from fledge.diagnosis.data_figures.hashes import hash_of

PAIR = ("chosen", "rejected")  # names of the sequences of a pair
MOST_PAIRS = 20_000
MOST_CONVERSATIONS = 50_000


@dataclass(frozen=True)
class _Pair:
    """Hashes of a prompt and of its two answers, and how many tokens these have."""

    prompt: int
    chosen: int
    rejected: int
    lengths: tuple[int, int]


def has_pairs(example_format: ExampleFormat) -> bool:
    """Whether the examples of a format are pairs of a chosen and a rejected answer."""
    return example_format.sequence_names == PAIR


def pair_figures(train: Examples, shape: ConversationShape, conversations: Examples | None) -> dict[str, Figure]:
    """The figures of the pairs of a stage. `conversations`: the training data of a stage of the same run that trains on answers
    in conversations; None: there is none, and `data/wrong_side` is not told."""
    count = min(train.count, MOST_PAIRS)
    pairs = list(_pairs(train, shape, count))
    if not pairs:
        return {}
    note = f"{len(pairs):,} pairs" if count == train.count else f"the first {len(pairs):,} of {train.count:,} pairs"
    longer = [pair.lengths[0] > pair.lengths[1] for pair in pairs if pair.lengths[0] != pair.lengths[1]]
    values = {"data/equal_pairs": float(np.mean([pair.chosen == pair.rejected for pair in pairs]))}
    if longer:
        values["data/chosen_longer"] = float(np.mean(longer))
    values["data/pairs_contradicting"] = _contradicting(pairs)
    figures = {name: Figure(value, "data", note=note) for name, value in values.items()}
    return figures if conversations is None else {**figures, **_wrong_side(pairs, conversations, shape)}


def _pairs(train: Examples, shape: ConversationShape, count: int) -> Iterator[_Pair]:
    """The first pairs. Their answers begin behind the last header, or where weights begin."""
    for number in range(count):
        sides = [_split(*train.sequence(2 * number + place), shape) for place in (0, 1)]
        (prompt, chosen), (_, rejected) = sides
        yield _Pair(hash_of(prompt), hash_of(chosen), hash_of(rejected), (len(chosen), len(rejected)))


def _split(tokens: np.ndarray, weights: np.ndarray, shape: ConversationShape) -> tuple[np.ndarray, np.ndarray]:
    """The prompt of a sequence, and its last answer without what ends it."""
    tokens = np.asarray(tokens, np.int64)
    answers = shape.answers(tokens, np.asarray([0, len(tokens)]))
    if len(answers):
        start, stop = int(answers.start[-1]), int(answers.stop[-1]) - int(answers.ended[-1])
        return tokens[:start], tokens[start:stop]
    trained = np.flatnonzero(weights > 0)
    start = int(trained[0]) if len(trained) else len(tokens)
    return tokens[:start], tokens[start:]


def _contradicting(pairs: list[_Pair]) -> float:
    """The share of the prompts with two answers that are each preferred to the other."""
    preferred: dict[int, set[tuple[int, int]]] = defaultdict(set)
    for pair in pairs:
        if pair.chosen != pair.rejected:
            preferred[pair.prompt].add((pair.chosen, pair.rejected))
    contradicting = sum(any((worse, better) in found for better, worse in found) for found in preferred.values())
    return contradicting / max(1, len(preferred))


def _wrong_side(pairs: list[_Pair], conversations: Examples, shape: ConversationShape) -> dict[str, Figure]:
    """`data/wrong_side`, of the pairs whose prompt has an answer in the conversations that is one of their two."""
    prompts = {pair.prompt for pair in pairs}
    answers: dict[int, set[int]] = defaultdict(set)
    for number in range(min(len(conversations.offsets) - 1, MOST_CONVERSATIONS)):
        tokens = np.asarray(conversations.sequence(number)[0], np.int64)
        found = shape.answers(tokens, np.asarray([0, len(tokens)]))
        for start, stop, ended in zip(found.start.tolist(), found.stop.tolist(), found.ended.tolist(), strict=True):
            prompt = hash_of(tokens[:start])
            if prompt in prompts:
                answers[prompt].add(hash_of(tokens[start : stop - ended]))
    sides = [
        pair.rejected in answers[pair.prompt]
        for pair in pairs
        if (pair.rejected in answers[pair.prompt]) != (pair.chosen in answers[pair.prompt])
    ]
    if not sides:
        return {}
    note = f"{len(sides):,} pairs of which one answer is that of the conversations"
    return {"data/wrong_side": Figure(float(np.mean(sides)), "data", note=note)}
