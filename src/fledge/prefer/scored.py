"""Raters that give each answer a score: the reward rules of `grpo` stages, and Python functions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import yaml
from pydantic import TypeAdapter, ValidationError

from fledge.errors import FledgeError, first_line
from fledge.evaluate.rewards import build_rewards, requires, source_file
from fledge.prefer.answers import Answer, AnswerSet, PromptAnswers
from fledge.prefer.journal import JournalWriter, Line
from fledge.prefer.ratings import are_equal
from fledge.recipe.sections.rewards import RewardConfig, Rewards
from fledge.recipe.yaml_dialect import RecipeLoader
from fledge.run import Console
from fledge.run.file_hash import hash_files
from fledge.training.rollout import DrawnAnswer

NEED_REFERENCE = ("exact_match", "field_f1")  # rules that compare with the reference answer
EXAMPLE = "such as --rule exact_match --rule '{rule: length, max_tokens: 20, weight: 0.2}'"
DECIMALS = 9  # of a score: more are rounding, such as that of 0.1 + 0.2
CHUNK_PROMPTS = 64  # prompts that are scored and written together


class Scores(NamedTuple):
    """The score of an answer, and what it is the sum of, by name."""

    total: float
    parts: Mapping[str, float]


Scorer = Callable[[Sequence[PromptAnswers]], list[dict[str, Scores]]]
"""From prompts to the scores of their answers, by the ids of these."""


@dataclass(frozen=True, kw_only=True)
class ScoreRater:
    """A rater that scores each answer by itself. `settings`: JSON values that decide the scores; a file of ratings made with
    other ones is not gone on with. `needs_reference`: prompts without a reference answer are not scored."""

    settings: Mapping[str, Any]
    score: Scorer
    needs_reference: bool

    def planned(self, answers: AnswerSet) -> int:
        """A line for each prompt."""
        return len(answers.prompts)

    def rate(self, answers: AnswerSet, writer: JournalWriter, console: Console) -> list[str]:
        """Write a line for each prompt; returns a summary in lines."""
        prompts = list(answers.prompts.values())
        done = writer.keep_chunks(CHUNK_PROMPTS, len(prompts))
        if done:
            console.log(f"{done:,} of {len(prompts):,} prompts are ranked already; it goes on behind them")
        with console.progress("prompts ranked", len(prompts), done) as progress:
            for start in range(done, len(prompts), CHUNK_PROMPTS):
                writer.append(self._lines(prompts[start : start + CHUNK_PROMPTS]))
                progress.update(len(writer.lines))
        return self._summary(writer.lines, answers)

    def _lines(self, prompts: Sequence[PromptAnswers]) -> list[Line]:
        ranked = [asked for asked in prompts if asked.prompt.reference is not None or not self.needs_reference]
        scores = dict(zip([asked.id for asked in ranked], self.score(ranked) if ranked else [], strict=True))
        return [_line(asked, scores.get(asked.id, {})) for asked in prompts]

    def _summary(self, lines: Sequence[Line], answers: AnswerSet) -> list[str]:
        ranked = [line for line in lines if line["scores"]]
        comparable = [values for line in ranked if len(values := list(line["scores"].values())) > 1]
        equal = sum(are_equal(min(values), max(values)) for values in comparable)
        scored = sum(len(line["scores"]) for line in ranked)
        summary = [f"{len(ranked):,} prompts ranked, {scored:,} different answers"]
        if len(ranked) < len(lines):
            reason = "they have no reference answer" if self.needs_reference else "none of their answers has a score"
            summary.append(f"{len(lines) - len(ranked):,} prompts not ranked: {reason}")
        if missing := sum(len(answers.prompts[line["prompt"]].answers) for line in ranked) - scored:
            summary.append(f"{missing:,} answers to ranked prompts have no score")
        if comparable:
            summary.append(f"{equal:,} of {len(comparable):,} prompts with several answers have equal scores for all of them")
        return summary


def _line(asked: PromptAnswers, scores: Mapping[str, Scores]) -> Line:
    line: Line = {"prompt": asked.id, "scores": {identity: round(one.total, DECIMALS) for identity, one in scores.items()}}
    if any(len(one.parts) > 1 for one in scores.values()):
        line["parts"] = {identity: dict(one.parts) for identity, one in scores.items()}
    return line


# -- rules --------------------------------------------------------------------------------------------------------------------


def rules_rater(rules: Sequence[str], timeout: float) -> ScoreRater:
    """A rater by reward rules, each as in a recipe: `exact_match`, or `{rule: length, max_tokens: 20, weight: 0.5}`.

    Raises FledgeError for a rule that cannot be read or built."""
    if not rules:
        raise FledgeError("name at least one", where="--rule", hint=EXAMPLE)
    configs = _configs(rules)
    table = build_rewards(configs, timeout, "--rule", timeout_name="--timeout")

    def score(prompts: Sequence[PromptAnswers]) -> list[dict[str, Scores]]:
        values = table.score([_drawn(asked, answer) for asked in prompts for answer in asked.answers])
        rows = zip(table.total(values).tolist(), values.tolist(), strict=True)
        scores = iter([Scores(total, dict(zip(table.names, row, strict=True))) for total, row in rows])
        return [{answer.id: next(scores) for answer in asked.answers} for asked in prompts]

    return ScoreRater(
        settings={"rules": [_setting(config) for config in configs]},
        score=score,
        needs_reference=any(_needs_reference(config) for config in configs),
    )


def _setting(config: RewardConfig) -> dict[str, Any]:
    """A rule as JSON values, with the hash of the file of a Python function: when it is changed, its scores may be others."""
    setting = config.model_dump(exclude_defaults=True) | {"rule": config.rule}
    if config.function is None:
        return setting
    source = source_file(config.function)
    return setting | {"source": None if source is None else hash_files(source)}


def _needs_reference(config: RewardConfig) -> bool:
    return config.rule in NEED_REFERENCE or (config.function is not None and requires(config.function, "answers"))


def _drawn(asked: PromptAnswers, answer: Answer) -> DrawnAnswer:
    return DrawnAnswer(
        prompt=asked.rendered,
        completion=answer.text,
        answer=asked.prompt.reference or "",
        prompt_tokens=(),
        completion_tokens=answer.tokens,
        finish_reason=answer.finish_reason,
        where=asked.where,
    )


def _configs(rules: Sequence[str]) -> list[RewardConfig]:
    try:
        values = [yaml.load(text, Loader=RecipeLoader) for text in rules]
    except yaml.YAMLError as error:
        raise FledgeError(f"not readable: {first_line(error)}", where="--rule", hint=EXAMPLE) from None
    try:
        return TypeAdapter(Rewards).validate_python(values)
    except ValidationError as error:
        problems = [_problem(one, rules) for one in error.errors()]
        raise FledgeError("; ".join(problems), where="--rule", hint=EXAMPLE) from None


def _problem(error: Any, rules: Sequence[str]) -> str:
    number, *key = error["loc"] or (None,)
    message = error["msg"].removeprefix("Value error, ")
    named = f"{rules[number]}: " if isinstance(number, int) else ""
    return f"{named}{'.'.join(map(str, key))}{': ' if key else ''}{message}"
