"""Rewards of answers: one table of rules, Python functions of the user, and reward models."""

import importlib
import inspect
import math
import os
import re
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fledge.data.cleaning.languages import LANGUAGES, detect_language
from fledge.errors import FledgeError, first_line
from fledge.evaluate.answers import RIGHT, AnsweredRow, answer_f1, is_object, mark
from fledge.evaluate.metrics.repetition import repetition
from fledge.evaluate.time_limit import TimeLimitReached, wall_time_limit
from fledge.generation import RewardModel, load_reward_model
from fledge.generation.loading import tokenizer_directory
from fledge.model.loading import check_purpose
from fledge.model.locate import locate_model
from fledge.recipe.earlier_stages import reward_stages_before
from fledge.recipe.schema import Recipe
from fledge.recipe.sections.policy import PolicySettings
from fledge.recipe.sections.rewards import RewardConfig
from fledge.run import RunDirectory, StageDirectory
from fledge.tokenizer import Tokenizer, load_tokenizer
from fledge.training.rollout import DrawnAnswer, RewardTable
from fledge.training.start_weights import weights_fingerprint

Reward = Callable[[Sequence[DrawnAnswer]], Sequence[float]]
"""A function from n answers to n rewards."""
SHOWN = 60  # characters of an answer in a message


@dataclass(frozen=True)
class RewardContext:
    """What a reward may be made of besides its section. `tokenizer`: of the answers. `stages`: directories of the reward stages
    that a recipe has before this one, by name; None: of a run that is not there yet. `loads`: load reward models; else they
    are only checked. `device`: cpu or cuda, for reward models; None: a GPU if there is one. `others`: names of other stages."""

    tokenizer: Tokenizer | None = None
    stages: Mapping[str, StageDirectory | None] = field(default_factory=dict)
    loads: bool = True
    device: str | None = None
    others: frozenset[str] = frozenset()


def _marked(answer: DrawnAnswer) -> Any:
    row = AnsweredRow(
        where="", question="", expected=answer.answer, given=answer.completion, finish_reason=answer.finish_reason
    )
    return mark(row)


def _shown(text: str) -> str:
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"


def _row_of(answer: DrawnAnswer) -> str:
    """The row of an answer's prompt in brackets, if it is known."""
    return f" ({answer.where})" if answer.where else ""


def _each(value: Callable[[DrawnAnswer], float]) -> Reward:
    """The reward that gives each answer its own value."""
    return lambda answers: [float(value(answer)) for answer in answers]


def exact_match(config: RewardConfig, where: str, context: RewardContext) -> Reward:
    """1 where the answer is the row's own (`evaluate.answers.mark`), else 0."""
    return _each(lambda answer: _marked(answer).kind == RIGHT)


def valid_json(config: RewardConfig, where: str, context: RewardContext) -> Reward:
    """1 where the whole answer is a JSON object, else 0."""
    return _each(lambda answer: is_object(answer.completion.strip()))


def field_f1(config: RewardConfig, where: str, context: RewardContext) -> Reward:
    """F1 of the fields of the row's own answer, which is a JSON object; 1 where both have no names, only null."""

    def value(answer: DrawnAnswer) -> float:
        marked = _marked(answer)
        if marked.valid_json is None:
            raise FledgeError(
                f"the row's own answer is no JSON object: {_shown(answer.answer)!r}{_row_of(answer)}",
                where=where,
                hint="use exact_match, or leave such rows out",
            )
        return answer_f1(marked) if marked.valid_json else 0.0

    return _each(value)


def language(config: RewardConfig, where: str, context: RewardContext) -> Reward:
    """1 where the answer is in the language of the recipe, else 0."""
    if config.language not in LANGUAGES:
        raise FledgeError(
            f"'{config.language}' is not a known language", where=f"{where}.language",
            hint=f"known are {', '.join(LANGUAGES)}",
        )  # fmt: skip
    return _each(lambda answer: detect_language(answer.completion) == config.language)


def length(config: RewardConfig, where: str, context: RewardContext) -> Reward:
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


def no_repetition(config: RewardConfig, where: str, context: RewardContext) -> Reward:
    """1 − the share of repeated n-grams (`evaluate.metrics.repetition`)."""
    return _each(lambda answer: 1 - repetition(answer.completion))


def regex(config: RewardConfig, where: str, context: RewardContext) -> Reward:
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


def function(config: RewardConfig, where: str, context: RewardContext) -> Reward:
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


def source_file(path: str) -> Path | None:
    """The file of a user's function, MODULE:NAME; None if it is in none. Raises FledgeError if it cannot be found."""
    called = inspect.unwrap(_imported(path, path))
    try:
        file = inspect.getsourcefile(called)
    except TypeError:  # an object that can be called: the file of its module
        file = getattr(sys.modules[path.partition(":")[0]], "__file__", None)
    return Path(file) if file and Path(file).is_file() else None


def requires(path: str, argument: str) -> bool:
    """Whether a user's function, MODULE:NAME, needs an argument. Raises FledgeError if it cannot be found."""
    try:
        parameters = inspect.signature(_imported(path, path)).parameters
    except (TypeError, ValueError):  # of some built-in functions
        return False
    found = parameters.get(argument)
    return found is not None and found.default is found.empty and found.kind not in (found.VAR_POSITIONAL, found.VAR_KEYWORD)


# -- reward models --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ByModel:
    """The reward that a model gives. `weights`: the fingerprint of its weights."""

    model: RewardModel
    weights: str

    def __call__(self, answers: Sequence[DrawnAnswer]) -> Sequence[float]:
        """The rewards of answers, whose tokens are those of the model's own tokenizer."""
        return self.model.score_tokens([[*answer.prompt_tokens, *self._ended(answer)] for answer in answers])

    def _ended(self, answer: DrawnAnswer) -> Sequence[int]:
        """The tokens of an answer. An answer that another stop token has ended gets the one that ends a turn in its place:
        only there have rewards been learned, and the other one may be the padding, which no reward is read at."""
        tokens = answer.completion_tokens
        return [*tokens[:-1], self.model.tokenizer.eot_id] if answer.finish_reason == "stop" else tokens


def reward_model(config: RewardConfig, where: str, context: RewardContext) -> Reward:
    """The reward of a model: of an earlier stage of the recipe, or of a path. Raises FledgeError if it is no reward model, or
    has another tokenizer or chat template."""
    named, key = config.model or "", f"{where}.model"
    if named in context.others and not Path(named).exists():
        raise FledgeError(
            f"{named} is a stage of this recipe, and none that trains a reward model before this one", where=key,
            hint="put a stage of kind reward before this one, and name it, or write the path of a reward model",
        )  # fmt: skip
    stage = context.stages.get(named)
    is_there = named not in context.stages or (stage is not None and stage.result_file.exists())
    folder = locate_model(named if stage is None else str(stage.root)) if is_there else None
    if folder is not None:
        check_purpose(folder, "rewards")
        _check_tokenizer(folder, context, key)
    if folder is not None and context.loads:
        model = load_reward_model(folder, device=context.device)
        return ByModel(model, weights_fingerprint(model.model))

    def not_loaded(answers: Sequence[DrawnAnswer]) -> Sequence[float]:
        raise FledgeError(f"the reward model {named} is not loaded: it has no result yet", where=key, hint="train it first")

    return not_loaded


def _check_tokenizer(folder: Path, context: RewardContext, where: str) -> None:
    own = context.tokenizer
    if own is None:
        raise FledgeError(
            "a reward model reads the tokens of prompt and answer, and here are texts alone", where=where,
            hint="write the rule in rewards of a grpo stage, or rank answers with --by reward-model",
        )  # fmt: skip
    theirs = load_tokenizer(tokenizer_directory(folder), needs_template=False, template_date=own.template.date)
    if theirs.fingerprint() != own.fingerprint():
        raise FledgeError(
            f"the reward model in {folder} has another tokenizer or chat template than the run",
            where=where,
            hint="train it from a model of this run, or set tokenizer.path to its tokenizer",
        )


RULES: dict[str, Callable[[RewardConfig, str, RewardContext], Reward]] = {  # by name: from a reward and its key in the recipe
    "exact_match": exact_match,
    "valid_json": valid_json,
    "field_f1": field_f1,
    "language": language,
    "length": length,
    "repetition": no_repetition,
    "regex": regex,
    "function": function,
    "model": reward_model,
}


def build_rewards(
    configs: Sequence[RewardConfig],
    timeout: float,
    where: str = "rewards",
    context: RewardContext = RewardContext(),
    timeout_name: str = "reward_timeout",
) -> RewardTable:
    """The rewards of a recipe. `timeout`: seconds that each may take for the answers that it is given at once, set by what
    `timeout_name` says; a reward model takes what it needs. `where`: their key in the recipe.

    Raises FledgeError for a reward that cannot be computed; the table raises it for one that fails, takes too long, or gives
    something else than a finite number for each answer."""
    keys = [f"{where}.{config.label}" for config in configs]
    rewards = [RULES[config.rule](config, key, context) for config, key in zip(configs, keys, strict=True)]

    def score(answers: Sequence[DrawnAnswer]) -> np.ndarray:
        columns = [_checked(reward, answers, (timeout, timeout_name), key) for reward, key in zip(rewards, keys, strict=True)]
        return np.stack(columns, axis=1) if answers else np.zeros((0, len(rewards)))

    labels = tuple(config.label for config in configs)
    models = {label: reward.weights for label, reward in zip(labels, rewards, strict=True) if isinstance(reward, ByModel)}
    return RewardTable(labels, tuple(config.weight for config in configs), score, models)


def stage_rewards(
    recipe: Recipe,
    name: str,
    tokenizer: Tokenizer,
    run: RunDirectory | None,
    *,
    loads: bool = True,
    device: str | None = None,
) -> RewardTable | None:
    """The rewards that the stage with this name trains on; None for a kind of stage without rewards. `run`: the directory of
    the run, if it is there. `loads` and `device` as in `RewardContext`."""
    stage = recipe.stages[name]
    if not isinstance(stage, PolicySettings):
        return None
    stages = {one: run and run.stage(one) for one in reward_stages_before(recipe, name)}
    context = RewardContext(tokenizer, stages, loads, device, frozenset(recipe.stages) - set(stages))
    return build_rewards(stage.rewards, stage.reward_timeout, f"stages.{name}.rewards", context)


def _checked(reward: Reward, answers: Sequence[DrawnAnswer], limit: tuple[float, str], where: str) -> np.ndarray:
    """The values [n] of one reward. `limit`: seconds, and what sets them. Raises FledgeError that names it."""
    timeout, name = limit
    try:
        with nullcontext() if isinstance(reward, ByModel) else wall_time_limit(timeout):  # a model does not hang
            values = reward(answers)
            if isinstance(values, Iterable) and not isinstance(values, str):
                values = list(values)  # a generator computes its values here, within the limit
    except FledgeError:
        raise
    except TimeLimitReached:
        raise FledgeError(
            f"not done with {len(answers):,} answers after {timeout:g} s", where=where,
            hint=f"make it faster, set {name} to more seconds, and run the same command again to go on",
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
            f"it gave {value} for {len(wrong):,} of {len(answers):,} answers, such as {_shown(answer.completion)!r}"
            + _row_of(answer),
            where=where,
            hint="return a finite number for every answer",
        )
    return np.asarray(numbers, np.float64)
