"""Prompt tests: fixed prompts with rules for their answers, run at intervals while a model is trained."""

import json
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from fledge.errors import FledgeError, first_line
from fledge.evaluate.metrics.repetition import repetition
from fledge.evaluate.rules import Rules
from fledge.evaluate.samples import ChatAnswer, chat_batch
from fledge.generation import Engine, FinishReason, SamplingParams, check_prompt
from fledge.model.protocol import LanguageModel
from fledge.recipe.sections.base import ConfigModel
from fledge.recipe.yaml_source import compose_yaml, has_surrogates, read_yaml_text
from fledge.run.text_files import write_text
from fledge.tokenizer import Message, Tokenizer

WHAT = "file of prompt tests"
MAX_BYTES = 2**24  # of it
MOST_SHOWN = 60  # characters of the name of a case in an error


class Turn(ConfigModel):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class Case(ConfigModel):
    """One prompt, or a conversation that ends with the user's turn, and the rules for its answer."""

    name: str | None = Field(default=None, description="its name in reports; null: the prompt")
    prompt: str | None = None
    system: str | None = None
    messages: list[Turn] = []
    dimension: str = Field(default="", description="what it looks at, such as identity, knowledge, instruction, format")
    expect: Rules

    @model_validator(mode="after")
    def _check_prompt(self) -> "Case":
        texts = [self.name, self.prompt, self.system, self.dimension, *(turn.content for turn in self.messages)]
        if any(has_surrogates(text) for text in texts if text):
            raise ValueError("a text holds half a character (a lone surrogate such as \\ud83d)")
        if (self.prompt is None) == (not self.messages):
            raise ValueError("needs either prompt or messages")
        if self.messages and self.system is not None:
            raise ValueError("system belongs to prompt; with messages, write it as the first of them")
        if self.messages and self.messages[-1].role != "user":
            raise ValueError("the last of the messages must be the user's")
        return self

    def conversation(self) -> list[Message]:
        """The messages that the chat template renders."""
        if self.messages:
            return [Message(turn.role, turn.content) for turn in self.messages]
        system = [] if self.system is None else [Message("system", self.system)]
        return [*system, Message("user", self.prompt or "")]

    @property
    def title(self) -> str:
        """The name of the case, or else its last question."""
        return self.name or self.conversation()[-1].content


@dataclass(frozen=True, kw_only=True)
class CaseResult:
    """A case, its answer, the answer's repetition (0 to 1), and a sentence for each rule that the answer violates."""

    name: str
    prompt: str
    answer: str
    finish_reason: FinishReason
    repetition: float
    violations: tuple[str, ...]

    @property
    def passed(self) -> bool:
        """Whether the answer keeps all rules."""
        return not self.violations


@dataclass(frozen=True)
class PromptTestReport:
    """The results of all cases, and the names of the cases that failed the previous time (None: they were not run before)."""

    results: tuple[CaseResult, ...]
    previously_failing: frozenset[str] | None = None

    @property
    def failing(self) -> list[str]:
        """Names of the failing cases, sorted; `previously_failing` of the next run."""
        return sorted(result.name for result in self.results if not result.passed)

    @property
    def newly_failing(self) -> list[str] | None:
        """Names of the cases that fail and did not fail the previous time; None if there was none."""
        return None if self.previously_failing is None else sorted(set(self.failing) - self.previously_failing)

    @property
    def newly_passing(self) -> list[str] | None:
        """Names of the cases that failed the previous time and do not fail now; None if there was none."""
        return None if self.previously_failing is None else sorted(self.previously_failing - set(self.failing))

    def metrics(self) -> dict[str, Any]:
        """`pass_rate`, `repetition` (the mean over all answers), `passed` and `cases` (numbers), and, if there was a
        previous time, the names `newly_failing` and `newly_passing`."""
        passed = sum(result.passed for result in self.results)
        changes = {"newly_failing": self.newly_failing, "newly_passing": self.newly_passing}
        return {
            "pass_rate": round(passed / len(self.results), 6),
            "repetition": round(sum(result.repetition for result in self.results) / len(self.results), 6),
            "passed": passed,
            "cases": len(self.results),
            **({} if self.previously_failing is None else changes),
        }


def load_cases(file: Path) -> list[Case]:
    """Read a YAML file with a list of cases. Raises FledgeError, with file and line, for an invalid file."""
    return parse_cases(read_cases_text(file), file)


def read_cases_text(file: Path) -> str:
    """The text of a file of cases. Raises FledgeError for a file that cannot be read."""
    return read_yaml_text(str(file), WHAT, MAX_BYTES)


def parse_cases(text: str, file: Path) -> list[Case]:
    """The cases in the text of a file. Raises FledgeError, with file and line, for invalid text."""
    node = compose_yaml(text, str(file), WHAT)
    if not isinstance(node, yaml.SequenceNode) or not node.value:
        raise FledgeError("a file of prompt tests is a list of cases", where=str(file), hint="see docs/evaluation.md")
    cases = [_case(item, file) for item in node.value]
    names = [case.title for case in cases]
    if duplicates := sorted({name for name in names if names.count(name) > 1}):
        raise FledgeError(f"two cases are called '{duplicates[0]}'", where=str(file), hint="give each its own name")
    return cases


def _case(node: yaml.Node, file: Path) -> Case:
    loader = yaml.SafeLoader("")
    where = f"{file}:{node.start_mark.line + 1}"
    try:
        case = Case.model_validate(loader.construct_document(node))
        case.expect.check()
        return case
    except FledgeError as error:
        raise FledgeError(f"expect.{error.where or 'rules'}: {error.what}", where=where, hint=error.hint) from None
    except (yaml.YAMLError, ValueError) as error:
        if not isinstance(error, ValidationError):
            raise FledgeError(f"not readable as YAML: {first_line(error)}", where=where) from None
        problem = error.errors()[0]
        key = ".".join(str(name) for name in problem["loc"])
        message = (f"{key}: " if key else "") + problem["msg"].removeprefix("Value error, ")
        raise FledgeError(message, where=where) from None
    finally:
        loader.dispose()


def check_cases(tokenizer: Tokenizer, cases: Sequence[Case], max_positions: int) -> None:
    """Raise FledgeError for a case whose prompt leaves no room for an answer, or that the chat template cannot render."""
    for case in cases:
        where = _label(case)
        try:
            check_prompt(tokenizer.encode_prompt(case.conversation()), max_positions, where)
        except FledgeError as error:
            raise FledgeError(error.what, where=where, hint=error.hint) from None


def run_cases(
    model: LanguageModel,
    tokenizer: Tokenizer,
    cases: Sequence[Case],
    params: SamplingParams,
    previously_failing: Collection[str] | None = None,
) -> PromptTestReport:
    """Answer all cases and check the answers against their rules.

    `previously_failing` is `PromptTestReport.failing` of the run before, None for the first run. Raises PromptTooLongError
    for a case whose prompt leaves no room for an answer.
    """
    conversations, names = [case.conversation() for case in cases], [_label(case) for case in cases]
    answers = chat_batch(Engine(model, tokenizer.stop_ids), tokenizer, conversations, params, where=names)
    results = tuple(_check(case, answer) for case, answer in zip(cases, answers, strict=True))
    return PromptTestReport(results, None if previously_failing is None else frozenset(previously_failing))


def _check(case: Case, answer: ChatAnswer) -> CaseResult:
    return CaseResult(
        name=case.title,
        prompt=case.conversation()[-1].content,
        answer=answer.text,
        finish_reason=answer.finish_reason,
        repetition=round(repetition(answer.text), 4),
        violations=tuple(case.expect.violations(answer.text, ended=answer.finish_reason == "stop")),
    )


def write_failing(results: Sequence[CaseResult], file: Path) -> None:
    """Write the failing cases to a file for people to read, one JSON object a line."""
    lines = (json.dumps(asdict(result), ensure_ascii=False) for result in results if not result.passed)
    write_text(file, "".join(f"{line}\n" for line in lines))


def _label(case: Case) -> str:
    """The name of a case in an error."""
    title = case.title
    return f"prompt test '{title if len(title) <= MOST_SHOWN else title[:MOST_SHOWN] + '…'}'"
