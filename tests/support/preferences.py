"""Files of answers and ratings, written by the code that writes them for users."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fledge.data.parsing.prompts import Prompt
from fledge.prefer.answers import ANSWERS, Answer, Draw, PromptAnswers, as_line, merged, prompt_id, read_answers
from fledge.prefer.journal import JournalWriter
from fledge.prefer.ratings import RATINGS, RaterName, header_of
from fledge.run import silent
from fledge.tokenizer import Message


def answer(text: str, place: int = 0, finish_reason: Any = "stop", temperature: float = 1.0) -> Answer:
    """An answer with one draw and a token for each character."""
    draw = Draw("runs/mine", "w1", place, temperature)
    return Answer(text=text, tokens=tuple(map(ord, text)), finish_reason=finish_reason, draws=(draw,))


def asked(question: str, *texts: str | Answer, reference: str | None = None, system: str | None = None) -> PromptAnswers:
    """A question with its answers."""
    head = (Message("system", system),) if system else ()
    prompt = Prompt((*head, Message("user", question)), None, reference)
    answers = merged(answer(one, place) if isinstance(one, str) else one for place, one in enumerate(texts))
    return PromptAnswers(id=prompt_id(prompt), prompt=prompt, rendered=question, where="a.jsonl:1", answers=answers)


def answers_header(count: int) -> dict[str, Any]:
    """The header of a file of answers to some prompts."""
    return {"about": {"model": "runs/mine"}, "model": {"weights": "w1"}, "prompts": {"count": count}}


def write_answers(path: Path, *prompts: PromptAnswers) -> Path:
    """A finished file of answers."""
    with JournalWriter.open(path, ANSWERS, answers_header(len(prompts)), silent) as writer:
        writer.append([as_line(one) for one in prompts])
    return path


def write_ratings(
    path: Path, answers: Path, rater: RaterName, lines: Sequence[Mapping[str, Any]], planned: int | None = None
) -> Path:
    """A file of ratings of the answers in a file."""
    header = header_of(rater, {}, read_answers([str(answers)]), path, planned)
    with JournalWriter.open(path, RATINGS, header, silent) as writer:
        writer.append([dict(line) for line in lines])
    return path


def scores(one: PromptAnswers, *values: float) -> dict[str, Any]:
    """The line of a rater with scores for the answers in their order."""
    return {"prompt": one.id, "scores": {each.id: value for each, value in zip(one.answers, values, strict=True)}}


def compared(one: PromptAnswers, verdict: str, first: int = 0, second: int = 1, **more: Any) -> dict[str, Any]:
    """The line of a comparison of two answers, by their numbers."""
    names = {"first": one.answers[first].id, "second": one.answers[second].id}
    return {"prompt": one.id, **names, "verdict": verdict, **more}


def lines_of(path: Path) -> list[dict[str, Any]]:
    """All lines of a file, the header first."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
