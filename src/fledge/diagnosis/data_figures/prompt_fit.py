"""Whether answers belong to their prompts, told from the tokens alone: answers take up words of what was asked."""

import math
from collections import Counter

import numpy as np

from fledge.diagnosis.case import Figure
from fledge.diagnosis.data_figures.conversation_shape import Answers
from fledge.diagnosis.data_figures.reading import ReadSequences

MOST_ANSWERS = 1000  # that are compared
OTHERS = 8  # prompts of other examples beside each own one
FEWEST_ANSWERS = 30  # of which something can be said


def prompt_fit(read: ReadSequences, answers: Answers) -> dict[str, Figure]:
    """`data/answer_fit`: how much more of the tokens of last answers stand in their own prompts than in those of others, by
    weight of their rarity (log of examples ÷ examples with the token); `data/answer_fit_z`: the same in standard errors. None
    where there are few answers."""
    answers = answers.chosen(answers.is_last)
    places = np.unique(np.linspace(0, len(answers) - 1, min(len(answers), MOST_ANSWERS)).astype(np.int64))
    asked, said = [], []
    for place in places.tolist() if len(answers) else []:
        start, stop = int(answers.start[place]), int(answers.stop[place])
        asked.append(set(read.tokens[read.offsets[answers.sequence[place]] : start].tolist()))
        said.append(set(read.tokens[start:stop].tolist()))
    if len(said) < FEWEST_ANSWERS:
        return {}
    seen = Counter(token for prompt, answer in zip(asked, said, strict=True) for token in prompt | answer)
    weight = {token: math.log(len(said) / number) for token, number in seen.items()}
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
