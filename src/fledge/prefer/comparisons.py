"""Which answers are compared with which, and in which order they are shown: a function of the seed and of the texts alone."""

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations
from math import floor

from fledge.errors import FledgeError
from fledge.prefer.answers import Answer, PromptAnswers, fraction_of

LAG = 10  # comparisons between one and its repetition, so that it is not remembered
ROUNDING = 1e-9  # of a product such as 100 · 0.29


@dataclass(frozen=True)
class Comparison:
    """Two answers to a prompt, in the order in which they are shown. `is_repeat`: they were shown before, the other way."""

    asked: PromptAnswers
    first: Answer
    second: Answer
    is_repeat: bool = False

    @property
    def swapped(self) -> "Comparison":
        """The repetition of this comparison, the other way."""
        return Comparison(self.asked, self.second, self.first, True)


def plan_comparisons(
    prompts: Sequence[PromptAnswers], per_prompt: int | None, seed: int, rater: str = "", repeat: float = 0.0
) -> list[Comparison]:
    """The comparisons of a rater, at most `per_prompt` for each prompt (None: all pairs of its answers).

    Equal seeds choose equal pairs, so that raters can be compared, and fewer a prompt are a part of more. With a `rater`, the
    prompts are shuffled, alike for all raters of a seed, and which answer is shown first is drawn for each rater. Of n
    comparisons ⌊n · `repeat`⌋ come again with their answers exchanged, LAG comparisons later or at the end."""
    planned: list[Comparison] = []
    order = sorted(prompts, key=lambda asked: fraction_of(seed, "prompt", asked.id)) if rater else prompts
    for asked in order:
        pairs = sorted(combinations(asked.answers, 2), key=lambda pair: _draw(seed, asked, pair))
        planned += [_in_order(asked, pair, seed, rater) for pair in pairs[:per_prompt]]
    if not planned:
        raise FledgeError("no prompt has two different answers: there is nothing to compare",
                          hint="draw answers at a higher temperature")  # fmt: skip
    return _with_repeats(planned, repeat)


def _draw(seed: int, asked: PromptAnswers, pair: tuple[Answer, Answer], *more: str) -> float:
    return fraction_of(seed, asked.id, *sorted(answer.id for answer in pair), *more)


def _in_order(asked: PromptAnswers, pair: tuple[Answer, Answer], seed: int, rater: str) -> Comparison:
    first, second = pair
    if rater and _draw(seed, asked, pair, "order", rater) < 0.5:
        first, second = sorted(pair, key=lambda answer: answer.id)
    elif rater:
        second, first = sorted(pair, key=lambda answer: answer.id)
    return Comparison(asked, first, second)


def _with_repeats(planned: Sequence[Comparison], repeat: float) -> list[Comparison]:
    """The comparisons with their repetitions: the k-th one is due at the first n with ⌊n · repeat⌋ ≥ k."""
    result, waiting = list[Comparison](), deque[tuple[int, Comparison]]()
    for number, comparison in enumerate(planned, 1):
        result.append(comparison)
        if floor(number * repeat + ROUNDING) > floor((number - 1) * repeat + ROUNDING):
            waiting.append((number + LAG, comparison.swapped))
        if waiting and waiting[0][0] <= number:
            result.append(waiting.popleft()[1])
    return [*result, *(comparison for _, comparison in waiting)]
