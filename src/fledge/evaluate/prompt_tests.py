"""Prompt regression: fixed prompts with rules, asked again and again while a model is raised."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, model_validator

from fledge.errors import FledgeError
from fledge.evaluate.rules import Rules, repetition
from fledge.evaluate.samples import chat_batch
from fledge.generation.engine import SamplingParams
from fledge.model.protocol import LanguageModel
from fledge.recipe.sections.base import ConfigModel
from fledge.run.text_files import write_text
from fledge.tokenizer import Message, Tokenizer


class Turn(ConfigModel):
    """One message of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


class Case(ConfigModel):
    """One prompt, or a conversation that ends with the user, and what its answer must be like."""

    name: str | None = Field(default=None, description="what it is called in reports; null: the prompt")
    prompt: str | None = None
    system: str | None = None
    messages: list[Turn] = []
    expect: Rules

    @model_validator(mode="after")
    def _one_way(self) -> "Case":
        if (self.prompt is None) == (not self.messages):
            raise ValueError("say prompt, or messages")
        if self.messages and self.system is not None:
            raise ValueError("system goes with prompt; write it as the first of the messages")
        if self.messages and self.messages[-1].role != "user":
            raise ValueError("the last of the messages is the user's")
        return self

    def conversation(self) -> list[Message]:
        """As the chat template reads it."""
        if self.messages:
            return [Message(turn.role, turn.content) for turn in self.messages]
        first = [] if self.system is None else [Message("system", self.system)]
        return [*first, Message("user", self.prompt or "")]

    @property
    def title(self) -> str:
        """Its name, or its last question."""
        return self.name or self.conversation()[-1].content


@dataclass(frozen=True)
class CaseResult:
    """A case, its answer, and the rules it breaks."""

    name: str
    prompt: str
    answer: str
    ended: bool
    repetition: float
    broken: tuple[str, ...]


def load_cases(file: Path) -> list[Case]:
    """The cases of a YAML file: a list. FledgeError names file and line of what is wrong."""
    try:
        node = yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader)
    except FileNotFoundError:
        raise FledgeError("there is no such file of prompts", where=str(file)) from None
    except (OSError, UnicodeDecodeError) as error:
        raise FledgeError(f"cannot be read: {error}", where=str(file)) from None
    except yaml.MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else 1
        raise FledgeError(f"not readable as YAML: {error.problem}", where=f"{file}:{line}") from None
    if not isinstance(node, yaml.SequenceNode) or not node.value:
        raise FledgeError("a set of prompts is a list of cases", where=str(file), hint="see docs/evaluation.md")
    cases = [_case(item, file) for item in node.value]
    names = [case.title for case in cases]
    if doubled := sorted({name for name in names if names.count(name) > 1}):
        raise FledgeError(f"two cases are called '{doubled[0]}'", where=str(file), hint="give them a name")
    return cases


def _case(node: yaml.Node, file: Path) -> Case:
    loader = yaml.SafeLoader("")
    try:
        return Case.model_validate(loader.construct_document(node))
    except ValidationError as error:
        problem = error.errors()[0]
        place = ".".join(str(part) for part in problem["loc"])
        text = (f"{place}: " if place else "") + problem["msg"].removeprefix("Value error, ")
        raise FledgeError(text, where=f"{file}:{node.start_mark.line + 1}") from None
    finally:
        loader.dispose()


def run_cases(model: LanguageModel, tokenizer: Tokenizer, cases: Sequence[Case], sampling: SamplingParams) -> list[CaseResult]:
    """Answers to all cases, and what is wrong with them. FledgeError for a prompt that leaves no room for an answer."""
    conversations = [case.conversation() for case in cases]
    room = model.config.max_position_embeddings
    for case, conversation in zip(cases, conversations, strict=True):
        if len(tokenizer.encode_prompt(conversation)) >= room:
            raise FledgeError(f"'{case.title}' leaves no room for an answer: the model has {room:,} positions")
    answers = chat_batch(model, tokenizer, conversations, sampling)
    return [_checked(case, *answer) for case, answer in zip(cases, answers, strict=True)]


def _checked(case: Case, answer: str, ended: bool) -> CaseResult:
    prompt, repeated = case.conversation()[-1].content, round(repetition(answer), 4)
    return CaseResult(case.title, prompt, answer, ended, repeated, tuple(case.expect.broken(answer, ended)))


def summary(checked: Sequence[CaseResult], before: set[str] | None) -> dict[str, Any]:
    """`pass_rate`, `repetition` (mean), `passed`, `cases`; and the names that are `broken` now and were not `before` (names
    that failed the last time), and the other way round, `mended`."""
    failing = {one.name for one in checked if one.broken}
    changed = {} if before is None else {"broken": sorted(failing - before), "mended": sorted(before - failing)}
    return {
        "pass_rate": round(1 - len(failing) / len(checked), 6),
        "repetition": round(sum(one.repetition for one in checked) / len(checked), 6),
        "passed": len(checked) - len(failing),
        "cases": len(checked),
        **changed,
    }


def write_failing(checked: Sequence[CaseResult], file: Path) -> None:
    """The failing cases, one JSON object a line."""
    lines = (json.dumps(asdict(one), ensure_ascii=False) for one in checked if one.broken)
    write_text(file, "".join(f"{line}\n" for line in lines))


def previous_failures(folder: Path, step: int) -> set[str] | None:
    """Names of the cases that failed the last time before a step; None where there was none."""
    earlier = [file for file in sorted(folder.glob("step-*.jsonl")) if int(file.stem.removeprefix("step-")) < step]
    if not earlier:
        return None
    return {json.loads(line)["name"] for line in earlier[-1].read_text(encoding="utf-8").splitlines()}
