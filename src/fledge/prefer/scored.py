"""Raters that give each answer a score: the reward rules of `grpo` stages, and Python functions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import yaml
from pydantic import TypeAdapter, ValidationError

from fledge.errors import FledgeError, first_line
from fledge.evaluate.rewards import build_rewards
from fledge.prefer.answers import Answer, AnswerSet, PromptAnswers
from fledge.prefer.journal import JournalWriter, Line
from fledge.prefer.ratings import are_equal
from fledge.recipe.sections.rewards import RewardConfig, Rewards
from fledge.recipe.yaml_dialect import RecipeLoader
from fledge.run import Console
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
        return _summary(writer.lines)

    def _lines(self, prompts: Sequence[PromptAnswers]) -> list[Line]:
        ranked = [asked for asked in prompts if asked.prompt.reference is not None or not self.needs_reference]
        scores = dict(zip([asked.id for asked in ranked], self.score(ranked) if ranked else [], strict=True))
        return [_line(asked, scores.get(asked.id, {})) for asked in prompts]


def _line(asked: PromptAnswers, scores: Mapping[str, Scores]) -> Line:
    line: Line = {"prompt": asked.id, "scores": {identity: round(one.total, DECIMALS) for identity, one in scores.items()}}
    if any(len(one.parts) > 1 for one in scores.values()):
        line["parts"] = {identity: dict(one.parts) for identity, one in scores.items()}
    return line


def _summary(lines: Sequence[Line]) -> list[str]:
    scored = [list(line["scores"].values()) for line in lines if line["scores"]]
    comparable = [values for values in scored if len(values) > 1]
    equal = sum(are_equal(min(values), max(values)) for values in comparable)
    summary = [f"{len(scored):,} prompts ranked, {sum(map(len, scored)):,} different answers"]
    if len(scored) < len(lines):
        summary.append(f"{len(lines) - len(scored):,} prompts not ranked: they have no reference answer")
    if comparable:
        summary.append(f"{equal:,} of {len(comparable):,} prompts with several answers have equal scores for all of them")
    return summary


# -- rules --------------------------------------------------------------------------------------------------------------------


def rules_rater(rules: Sequence[str], timeout: float) -> ScoreRater:
    """A rater by reward rules, each as in a recipe: `exact_match`, or `{rule: length, max_tokens: 20, weight: 0.5}`.

    Raises FledgeError for a rule that cannot be read or built."""
    if not rules:
        raise FledgeError("name at least one", where="--rule", hint=EXAMPLE)
    configs = _configs(rules)
    table = build_rewards(configs, timeout, "--rule")

    def score(prompts: Sequence[PromptAnswers]) -> list[dict[str, Scores]]:
        values = table.score([_drawn(asked, answer) for asked in prompts for answer in asked.answers])
        rows = zip(table.total(values).tolist(), values.tolist(), strict=True)
        scores = iter([Scores(total, dict(zip(table.names, row, strict=True))) for total, row in rows])
        return [{answer.id: next(scores) for answer in asked.answers} for asked in prompts]

    return ScoreRater(
        settings={"rules": [config.model_dump(exclude_defaults=True) | {"rule": config.rule} for config in configs]},
        score=score,
        needs_reference=any(config.rule in NEED_REFERENCE for config in configs),
    )


def _drawn(asked: PromptAnswers, answer: Answer) -> DrawnAnswer:
    return DrawnAnswer(
        prompt=asked.rendered,
        completion=answer.text,
        answer=asked.prompt.reference or "",
        prompt_tokens=(),
        completion_tokens=answer.tokens,
        finish_reason=answer.finish_reason,
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
