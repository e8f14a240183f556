"""Rewards of answers: one table of rules, and Python functions of the user."""

import importlib
import inspect
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np

from fledge.data.cleaning.languages import LANGUAGES, detect_language
from fledge.errors import FledgeError, first_line
from fledge.evaluate.answers import RIGHT, AnsweredRow, answer_f1, is_object, mark
from fledge.evaluate.rules import repetition
from fledge.evaluate.time_limit import TimeLimitReached, wall_time_limit
from fledge.recipe.schema import StageBase
from fledge.recipe.sections.policy import PolicySettings
from fledge.recipe.sections.rewards import RewardConfig
from fledge.training.rollout import DrawnAnswer, RewardTable

Reward = Callable[[Sequence[DrawnAnswer]], Sequence[float]]
"""A function from n answers to n rewards."""
SHOWN = 60  # characters of an answer in a message


def _marked(answer: DrawnAnswer) -> Any:
    row = AnsweredRow(
        where="", question="", expected=answer.answer, given=answer.completion, finish_reason=answer.finish_reason
    )
    return mark(row)


def _shown(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def _each(value: Callable[[DrawnAnswer], float]) -> Reward:
    """The reward that gives each answer its own value."""
    return lambda answers: [float(value(answer)) for answer in answers]


def exact_match(config: RewardConfig, where: str) -> Reward:
    """1 where the answer is the row's own (`evaluate.answers.mark`), else 0."""
    return _each(lambda answer: _marked(answer).kind == RIGHT)


def valid_json(config: RewardConfig, where: str) -> Reward:
    """1 where the whole answer is a JSON object, else 0."""
    return _each(lambda answer: is_object(answer.completion.strip()))


def field_f1(config: RewardConfig, where: str) -> Reward:
    """F1 of the fields of the row's own answer, which is a JSON object; 1 where both have no names, only null."""

    def value(answer: DrawnAnswer) -> float:
        marked = _marked(answer)
        if marked.valid_json is None:
            raise FledgeError(
                f"the row's own answer is no JSON object: {_shown(answer.answer)!r}",
                where=where,
                hint="use exact_match, or leave such rows out",
            )
        return answer_f1(marked) if marked.valid_json else 0.0

    return _each(value)


def language(config: RewardConfig, where: str) -> Reward:
    """1 where the answer is in the language of the recipe, else 0."""
    if config.language not in LANGUAGES:
        raise FledgeError(
            f"'{config.language}' is not a known language", where=f"{where}.language",
            hint=f"known are {', '.join(LANGUAGES)}",
        )  # fmt: skip
    return _each(lambda answer: detect_language(answer.completion) == config.language)


def length(config: RewardConfig, where: str) -> Reward:
    """1 for an answer of n tokens (the stop token included) between `min_tokens` and `max_tokens`; n ÷ `min_tokens` for a
    shorter one, 2 − n ÷ `max_tokens` for a longer one, 0 at least."""

    def value(answer: DrawnAnswer) -> float:
        n = len(answer.completion_tokens)
        if config.min_tokens is not None and n < config.min_tokens:
            return n / config.min_tokens
        if config.max_tokens is not None and n > config.max_tokens:
            return max(0.0, 2 - n / config.max_tokens)
        return 1.0

    return _each(value)


def no_repetition(config: RewardConfig, where: str) -> Reward:
    """1 − the share of repeated n-grams (`evaluate.rules.repetition`)."""
    return _each(lambda answer: 1 - repetition(answer.completion))


def regex(config: RewardConfig, where: str) -> Reward:
    """1 where the pattern matches somewhere in the answer, without white space around it, else 0."""
    pattern = re.compile(config.pattern or "")
    return _each(lambda answer: pattern.search(answer.completion.strip()) is not None)


# -- functions of the user ------------------------------------------------------------------------------------------------

ARGUMENTS: dict[str, Callable[[DrawnAnswer], Any]] = {  # by name, what a function is given of each answer
    "prompts": lambda answer: answer.prompt,
    "completions": lambda answer: answer.completion,
    "answers": lambda answer: answer.answer,
    "completion_ids": lambda answer: list(answer.completion_tokens),
    "finish_reasons": lambda answer: answer.finish_reason,
}


def function(config: RewardConfig, where: str) -> Reward:
    """A function of the user's, called by name with those ARGUMENTS that it takes. Raises FledgeError if it cannot be found, or
    needs other ones."""
    called = _imported(config.function or "", f"{where}.function")
    names = _accepted(called, f"{where}.function")

    def rewards(answers: Sequence[DrawnAnswer]) -> Sequence[float]:
        return called(**{name: [ARGUMENTS[name](answer) for answer in answers] for name in names})

    return rewards


def _imported(path: str, where: str) -> Callable[..., Any]:
    module_name, _, name = path.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.append(os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:  # whatever the user's module does when it is loaded
        raise FledgeError(
            f"cannot import {module_name}: {type(error).__name__}: {first_line(error)}", where=where,
            hint="name a module that Python finds, such as a file in the working directory",
        ) from error  # fmt: skip
    called = getattr(module, name, None)
    if not callable(called):
        raise FledgeError(f"{module_name} has no function {name}", where=where, hint="check the name behind the colon")
    return called


def _accepted(called: Callable[..., Any], where: str) -> list[str]:
    """The names of ARGUMENTS that a function takes."""
    try:
        parameters = inspect.signature(called).parameters.values()
    except (TypeError, ValueError):  # of some built-in functions
        return ["completions"]
    if any(one.kind is one.VAR_KEYWORD for one in parameters):
        return list(ARGUMENTS)
    needed = [one for one in parameters if one.default is one.empty and one.kind is not one.VAR_POSITIONAL]
    unknown = [one.name for one in needed if one.name not in ARGUMENTS or one.kind is one.POSITIONAL_ONLY]
    if unknown:
        raise FledgeError(
            f"it needs the argument {unknown[0]}, which is not given", where=where,
            hint=f"arguments are lists, given by name: {', '.join(ARGUMENTS)}",
        )  # fmt: skip
    return [one.name for one in parameters if one.name in ARGUMENTS]


RULES: dict[str, Callable[[RewardConfig, str], Reward]] = {  # by name: from a reward and its key in the recipe
    "exact_match": exact_match,
    "valid_json": valid_json,
    "field_f1": field_f1,
    "language": language,
    "length": length,
    "repetition": no_repetition,
    "regex": regex,
    "function": function,
}


def build_rewards(configs: Sequence[RewardConfig], timeout: float, where: str = "rewards") -> RewardTable:
    """The rewards of a recipe. `timeout`: seconds that each may take for the answers that it is given at once. `where`: their
    key in the recipe.

    Raises FledgeError for a reward that cannot be computed; the table raises it for one that fails, takes too long, or gives
    something else than a finite number for each answer."""
    keys = [f"{where}.{config.label}" for config in configs]
    rewards = [RULES[config.rule](config, key) for config, key in zip(configs, keys, strict=True)]

    def score(answers: Sequence[DrawnAnswer]) -> np.ndarray:
        columns = [_checked(reward, answers, timeout, key) for reward, key in zip(rewards, keys, strict=True)]
        return np.stack(columns, axis=1) if answers else np.zeros((0, len(rewards)))

    return RewardTable(tuple(config.label for config in configs), tuple(config.weight for config in configs), score)


def stage_rewards(stage: StageBase, name: str) -> RewardTable | None:
    """The rewards that the stage with this name trains on; None for a kind of stage without rewards."""
    if not isinstance(stage, PolicySettings):
        return None
    return build_rewards(stage.rewards, stage.reward_timeout, f"stages.{name}.rewards")


def _checked(reward: Reward, answers: Sequence[DrawnAnswer], timeout: float, where: str) -> np.ndarray:
    """The values [n] of one reward. Raises FledgeError that names it."""
    try:
        with wall_time_limit(timeout):
            values = reward(answers)
            if isinstance(values, Iterable) and not isinstance(values, str):
                values = list(values)  # a generator computes its values here, within the limit
    except FledgeError:
        raise
    except TimeLimitReached:
        raise FledgeError(
            f"not done with {len(answers):,} answers after {timeout:g} s", where=where,
            hint="make it faster, set reward_timeout to more seconds, and run the same command again to go on",
        ) from None  # fmt: skip
    except (Exception, SystemExit) as error:
        raise FledgeError(
            f"it raised {type(error).__name__}: {first_line(error)}{_line_of(error)}", where=where,
            hint="mend it, and run the same command again to go on",
        ) from error  # fmt: skip
    return _finite(values, answers, where)


def _line_of(error: BaseException) -> str:
    """Where an error was raised, as ` (FILE:LINE)`."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else f" ({trace.tb_frame.f_code.co_filename}:{trace.tb_lineno})"


def _finite(values: Any, answers: Sequence[DrawnAnswer], where: str) -> np.ndarray:
    """The values as float64 [n]. Raises FledgeError unless there is a finite number for each answer."""
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError):
        raise FledgeError(f"it returned {type(values).__name__} {str(values)[:SHOWN]}, not a list of numbers", where=where,
                          hint="return a number for each completion, in their order") from None  # fmt: skip
    if len(numbers) != len(answers):
        raise FledgeError(f"it returned {len(numbers):,} rewards for {len(answers):,} answers", where=where,
                          hint="return a number for each completion, in their order")  # fmt: skip
    wrong = [(value, answer) for value, answer in zip(numbers, answers, strict=True) if not math.isfinite(value)]
    if wrong:
        value, answer = wrong[0]
        raise FledgeError(
            f"it gave {value} for {len(wrong):,} of {len(answers):,} answers, such as {_shown(answer.completion)!r}",
            where=where,
            hint="return a finite number for every answer",
        )
    return np.asarray(numbers, np.float64)
