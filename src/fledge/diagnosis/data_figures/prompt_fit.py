"""Whether answers belong to their prompts, told from the tokens alone: answers take up words of what was asked."""

import math
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import numpy as np

from fledge.diagnosis.case import Figure
from fledge.diagnosis.data_figures.conversation_shape import Answers, spread_places
from fledge.diagnosis.data_figures.reading import ReadSequences

MOST_ANSWERS = 1000  # that are compared
OTHERS = 8  # prompts of other examples beside each own one
FEWEST_ANSWERS = 30  # of which something can be said
FEWEST_PLAIN = 40  # answers that belong plainly, likewise
COMMON = 0.2  # share of the examples from which on a feature tells nothing
MOST_QUESTIONS = 2000  # among which the one that an answer belongs to is looked for
LEAST_COVERED = 0.25  # share of the examples that must be among them
CONTAINED = 0.8  # of the features of a question: more, in another one, and that is the same conversation
MARGIN = 0.1  # by which an answer fits one prompt better than all others


def prompt_fit(read: ReadSequences, answers: Answers) -> dict[str, Figure]:
    """`data/answer_fit`: how much more of the tokens of last answers stand in their own prompts than in those of others, by
    weight of their rarity (log of examples ÷ examples with the token); `data/answer_fit_z`: the same in standard errors. None
    where there are few answers."""
    chosen = answers.chosen(answers.is_last).sampled(MOST_ANSWERS)
    asked = [set(text) for text in _texts(read, read.offsets[chosen.sequence], chosen.start)]
    said = [set(text) for text in _texts(read, chosen.start, chosen.stop)]
    if len(said) < FEWEST_ANSWERS:
        return {}
    weight = _rarity(_examples_with(asked, said), len(said))
    gains = [gain for number in range(len(said)) if (gain := _gain(number, asked, said, weight)) is not None]
    if len(gains) < FEWEST_ANSWERS:
        return {}
    mean, error = float(np.mean(gains)), float(np.std(gains, ddof=1) / math.sqrt(len(gains)))
    note = f"{len(gains):,} answers, beside {OTHERS} other prompts each"
    return {
        "data/answer_fit": Figure(mean, "data", note=note),
        "data/answer_fit_z": Figure(mean / max(error, 1e-9), "data", note=note),
    }


def _gain(number: int, asked: list[set[int]], said: list[set[int]], weight: dict[int, float]) -> float | None:
    """How much more of an answer stands in its own prompt than in others; None where other examples are the same."""
    answer, prompt = said[number], asked[number]
    whole = sum(weight[token] for token in answer)
    step = max(1, len(said) // (OTHERS + 1))
    others = [(number + step * place) % len(said) for place in range(1, OTHERS + 1)]
    different = [other for other in others if said[other] != answer and asked[other] != prompt]
    if not different or whole <= 0:
        return None
    of_others = [sum(weight[token] for token in answer & asked[other]) for other in different]
    return (sum(weight[token] for token in answer & prompt) - sum(of_others) / len(of_others)) / whole


def misplaced_answers(read: ReadSequences, answers: Answers, examples: int) -> dict[str, Figure]:
    """`data/answers_misplaced`: of the last answers that plainly belong to one question of the data, the share that stands with
    another one. `examples`: of the whole data, of which `read` may hold a part: an answer whose question is not read does not
    count, so that the share is rather too low. A question that contains the answer's own one, as where each turn of a
    conversation is an example with all turns before it, is no other one.

    An answer and a question fit by the tokens and pairs of neighbouring tokens that they share, as the cosine of their vectors
    weighted by rarity. An answer belongs plainly to a question where each fits the other by `MARGIN` better than all others do.
    On real data of ten sources, of whose answers 0, 10, 30, 50 and 100 % were mixed, the share was 0 to 1, 8 to 14, 22 to 38,
    42 to 53 and 95 to 100 %; on conversations made from templates 5 to 13 % without any mixing, and 30 to 40 % with 30. Nothing
    where few answers belong plainly, or where `read` holds a small part of the examples.
    """
    last = np.flatnonzero(answers.is_last & read.is_main[answers.sequence])
    last = last[spread_places(len(last), MOST_QUESTIONS)]
    covered = len(last) / max(1, examples)
    if len(last) < FEWEST_ANSWERS or covered < LEAST_COVERED:
        return {}
    chosen, before = answers.chosen(last), answers.chosen(np.maximum(last - 1, 0))
    is_later = (last > 0) & (before.sequence == chosen.sequence)
    begin = np.where(is_later, before.stop, read.offsets[chosen.sequence])
    asked, said = _texts(read, begin, chosen.start), _texts(read, chosen.start, chosen.stop)
    questions = [_features(one) for one in asked]
    fit = _cosines(questions, [_features(one) for one in said])
    kept, pairs = _partners(fit, _same(asked) | _same(said))
    moved = sum(len(questions[own] & questions[other]) < CONTAINED * len(questions[own]) for own, other in pairs)
    if kept + moved < FEWEST_PLAIN:
        return {}
    note = f"{moved:,} of {kept + moved:,} answers that plainly belong to one of {len(said):,} questions"
    return {"data/answers_misplaced": Figure(moved / (kept + moved), "data", note=note)}


def _texts(read: ReadSequences, start: np.ndarray, stop: np.ndarray) -> list[tuple[int, ...]]:
    """The tokens between each two positions."""
    return [tuple(read.tokens[first:last].tolist()) for first, last in zip(start, stop, strict=True)]


def _examples_with(asked: list[set[Any]], said: list[set[Any]]) -> Counter[Any]:
    """Feature → number of examples that have it in the question or in the answer."""
    return Counter(feature for question, answer in zip(asked, said, strict=True) for feature in question | answer)


def _rarity(seen: Counter[Any], examples: int) -> dict[Any, float]:
    """Feature → log of examples ÷ examples with it."""
    return {feature: math.log(examples / number) for feature, number in seen.items()}


def _features(tokens: Sequence[int]) -> set[Any]:
    return {*tokens, *pairwise(tokens)}


def _same(texts: list[tuple[int, ...]]) -> np.ndarray:
    """Which of n texts are equal, bool [n, n]."""
    numbers = {text: number for number, text in enumerate(texts)}
    group = np.array([numbers[text] for text in texts])
    return group[:, None] == group


def _cosines(asked: list[set[Any]], said: list[set[Any]]) -> np.ndarray:
    """How well each question fits each answer, float32 [n, n], 0 to 1."""
    seen = _examples_with(asked, said)
    weight = _rarity(seen, len(said))
    in_questions, in_answers = _index(asked), _index(said)
    shared = np.zeros((len(asked), len(said)), np.float32)
    for feature, questions in in_questions.items():
        if feature in in_answers and seen[feature] <= COMMON * len(said):
            shared[np.ix_(questions, in_answers[feature])] += weight[feature]
    sizes = [np.array([max(1e-6, sum(weight[one] for one in features)) for features in side]) for side in (asked, said)]
    return (shared / np.sqrt(np.outer(*sizes))).astype(np.float32)


def _index(texts: list[set[Any]]) -> dict[Any, list[int]]:
    """Feature → texts that have it."""
    found = defaultdict(list)
    for number, features in enumerate(texts):
        for feature in features:
            found[feature].append(number)
    return found


def _partners(fit: np.ndarray, is_same: np.ndarray) -> tuple[int, list[tuple[int, int]]]:
    """How many answers belong to their own question, and those that belong to another one, with its number."""
    pairs = np.where(is_same & ~np.eye(len(fit), dtype=bool), -1, fit)
    question, answer = pairs.argmax(0), pairs.argmax(1)
    second_of_answer, second_of_question = np.partition(pairs, -2, axis=0)[-2], np.partition(pairs, -2, axis=1)[:, -2]
    lead = pairs.max(0) - np.maximum(second_of_answer, second_of_question[question])
    place = np.arange(len(fit))
    is_plain = (answer[question] == place) & (lead > MARGIN)
    moved = np.flatnonzero(is_plain & (question != place))
    return int((is_plain & (question == place)).sum()), list(zip(moved.tolist(), question[moved].tolist(), strict=True))
