"""How much likelier a prompt makes an answer: log p(answer | prompt) − log p(answer | an empty prompt)."""

import math
from collections.abc import Sequence
from dataclasses import replace

from fledge.evaluate.metrics.answer import Answer
from fledge.generation import score_tokens
from fledge.model.protocol import LanguageModel
from fledge.tokenizer import Message, Tokenizer


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
    found = gains(model, prompts, tokens, empty_prompt(tokenizer))
    return [replace(answer, gain=gain) for answer, gain in zip(answers, found, strict=True)]


def gains(
    model: LanguageModel, prompts: Sequence[Sequence[int]], answers: Sequence[Sequence[int]], unconditional: Sequence[int]
) -> list[float | None]:
    """For each answer the mean over its tokens of log p(token | prompt …) − log p(token | `unconditional` …), in nats.

    This is the pointwise mutual information of prompt and answer for each token: near 0 for an answer that ignores its prompt.
    Prompts, answers and `unconditional` are token ids, answers without their stop token. None for an answer without tokens, and
    where prompt and answer are longer than the model's positions. Raises FledgeError as `score_tokens` does.
    """
    limit = model.max_positions + 1
    usable = [
        number
        for number, (prompt, answer) in enumerate(zip(prompts, answers, strict=True))
        if answer and max(len(prompt), len(unconditional)) + len(answer) <= limit
    ]
    with_prompt = [[*prompts[number], *answers[number]] for number in usable]
    without = [[*unconditional, *answers[number]] for number in usable]
    scores = score_tokens(model, with_prompt + without)
    result: list[float | None] = [None] * len(answers)
    for place, number in enumerate(usable):
        count = len(answers[number])
        given, free = scores[place][-count:], scores[place + len(usable)][-count:]
        difference = (math.fsum(given) - math.fsum(free)) / count
        result[number] = difference if math.isfinite(difference) else None
    return result
