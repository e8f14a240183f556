"""How much likelier a prompt makes an answer than no prompt, and than other prompts."""

import math
from collections.abc import Sequence
from dataclasses import replace

from fledge.evaluate.metrics.answer import Answer
from fledge.generation import score_tokens
from fledge.model.protocol import LanguageModel
from fledge.tokenizer import Message, Tokenizer

OTHERS = 3  # prompts that an answer's own is compared with


def empty_prompt(tokenizer: Tokenizer) -> list[int]:
    """The tokens of a conversation in which the user says nothing: an answer behind them has no question to fit."""
    return tokenizer.encode_prompt([Message("user", "")])


def with_gains(
    answers: Sequence[Answer],
    model: LanguageModel,
    tokenizer: Tokenizer,
    prompts: Sequence[Sequence[int]],
    tokens: Sequence[Sequence[int]],
) -> list[Answer]:
    """The answers with their gains under the model that gave them; `prompts` and `tokens` as in `gains`."""
    given = mean_log_probabilities(model, prompts, tokens)
    over_nothing = gains(model, prompts, tokens, empty_prompt(tokenizer), given)
    over_others = gains_over_others(model, prompts, tokens, given)
    return [
        replace(answer, gain=gain, gain_over_others=over)
        for answer, gain, over in zip(answers, over_nothing, over_others, strict=True)
    ]


def gains(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    unconditional: Sequence[int],
    given: Sequence[float | None] | None = None,
) -> list[float | None]:
    """For each answer the mean over its tokens of log p(token | prompt …) − log p(token | `unconditional` …), in nats.

    This is the pointwise mutual information of prompt and answer for each token: near 0 for an answer that ignores its prompt.
    Prompts, answers and `unconditional` are token ids, answers without their stop token. None for an answer without tokens, and
    where prompt and answer are longer than the model's positions. `given`: the means behind the prompts, where they are known.
    Raises FledgeError as `score_tokens` does.
    """
    own = mean_log_probabilities(model, prompts, answers) if given is None else given
    return _differences(own, mean_log_probabilities(model, [unconditional] * len(answers), answers))


def gains_over_others(
    model: LanguageModel,
    prompts: Sequence[Sequence[int]],
    answers: Sequence[Sequence[int]],
    given: Sequence[float | None] | None = None,
) -> list[float | None]:
    """For each answer its mean log-probability per token behind its own prompt, less the largest one behind up to three
    other prompts (`other_prompts`), in nats: below 0 for an answer that fits one of them better.

    `given` as in `gains`. None where all prompts are equal, and as there.
    """
    own = mean_log_probabilities(model, prompts, answers) if given is None else given
    found: list[float | None] = [None] * len(answers)
    for others in other_prompts(prompts):
        compared = _differences(own, mean_log_probabilities(model, others, answers))
        pairs = zip(found, compared, strict=True)
        found = [new if old is None or (new is not None and new < old) else old for old, new in pairs]
    return found


def other_prompts(prompts: Sequence[Sequence[int]]) -> list[list[Sequence[int]]]:
    """Up to three lists with another prompt for each prompt: those a quarter, a half and three quarters of the different
    prompts behind it. Prompts of one kind often stand side by side and have one answer; these are far from each other."""
    distinct = list(dict.fromkeys(tuple(prompt) for prompt in prompts))
    place = {prompt: number for number, prompt in enumerate(distinct)}
    count = min(OTHERS, len(distinct) - 1)
    steps = [number * len(distinct) // (count + 1) for number in range(1, count + 1)]
    return [[distinct[(place[tuple(prompt)] + step) % len(distinct)] for prompt in prompts] for step in steps]


def mean_log_probabilities(
    model: LanguageModel, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]]
) -> list[float | None]:
    """For each answer the mean over its tokens of log p(token | prompt …), in nats; None as in `gains`."""
    limit = model.max_positions + 1
    lengths = [(len(prompt), len(answer)) for prompt, answer in zip(prompts, answers, strict=True)]
    usable = [number for number, (prompt, answer) in enumerate(lengths) if answer and prompt + answer <= limit]
    scores = score_tokens(model, [[*prompts[number], *answers[number]] for number in usable])
    result: list[float | None] = [None] * len(answers)
    for number, logps in zip(usable, scores, strict=True):
        count = len(answers[number])
        result[number] = math.fsum(logps[-count:]) / count
    return result


def _differences(first: Sequence[float | None], second: Sequence[float | None]) -> list[float | None]:
    """`first` − `second`; None where one of them is, or is not finite."""
    return [
        None if one is None or other is None or not math.isfinite(one - other) else one - other
        for one, other in zip(first, second, strict=True)
    ]
