"""Answers of models to prompts, as `fledge prefer sample` writes them: one line for each prompt, equal answers once."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import orjson
import xxhash

from fledge.data.parsing.columns import RowError
from fledge.data.parsing.prompts import Prompt, parse_prompt, prompt_columns
from fledge.errors import FledgeError
from fledge.prefer.journal import Journal, Line, read_journal
from fledge.recipe import Source
from fledge.run.file_hash import hash_files
from fledge.tokenizer import Tokenizer

if TYPE_CHECKING:
    from fledge.generation import Completion, FinishReason  # they load torch, which who reads answers does not need

ANSWERS = "answers"  # the kind of file
STOPPED = "stop"  # the finish reason of an answer that the model ended


@dataclass(frozen=True)
class Draw:
    """How an answer was drawn: the model as it was named, the hash of its weights, the place among the answers to the prompt,
    and the temperature."""

    model: str
    weights: str
    place: int
    temperature: float


@dataclass(frozen=True, kw_only=True)
class Answer:
    """One answer, without white space around it. `tokens`: as they were drawn, with the stop token. `draws`: all that gave this
    text. `id`: a hash of the text."""

    text: str
    tokens: tuple[int, ...]
    finish_reason: "FinishReason"
    draws: tuple[Draw, ...]

    @property
    def id(self) -> str:
        """A hash of the text."""
        return answer_id(self.text)

    @property
    def is_cut(self) -> bool:
        """Whether the model did not end it."""
        return self.finish_reason != STOPPED


@dataclass(frozen=True, kw_only=True)
class PromptAnswers:
    """A prompt with the different answers to it, in the order in which they were first drawn.

    `id`: `prompt_id`. `rendered`: the prompt as the model read it, without special tokens. `where`: its row."""

    id: str
    prompt: Prompt
    rendered: str
    where: str
    answers: tuple[Answer, ...]

    def answer(self, identity: str) -> Answer | None:
        """The answer with an id; None if there is none."""
        return next((answer for answer in self.answers if answer.id == identity), None)


@dataclass(frozen=True)
class AnswerSet:
    """The answers of one or several files: prompts by id, and the header of each file with the hash of its content, by path."""

    prompts: Mapping[str, PromptAnswers]
    hashes: Mapping[str, str]


def prompt_id(prompt: Prompt) -> str:
    """A hash of the turns and tools of a prompt."""
    return _hash(orjson.dumps(prompt_columns(prompt.turns, prompt.tools), option=orjson.OPT_SORT_KEYS))


def question_id(prompt: Prompt) -> str:
    """A hash of the turns and tools of a prompt, without its system turn and without white space around the turns."""
    turns = tuple(replace(turn, content=turn.content.strip()) for turn in prompt.turns if turn.role != "system")
    return prompt_id(Prompt(turns, prompt.tools))


def answer_id(text: str) -> str:
    """A hash of the text of an answer."""
    return _hash(text.encode("utf-8"))


def _hash(content: bytes) -> str:
    return xxhash.xxh3_64_hexdigest(content)


def fraction_of(*parts: object) -> float:
    """A number in [0, 1) that is a function of some values: for shuffling that no other row changes."""
    return xxhash.xxh3_64_intdigest("/".join(map(str, parts)).encode("utf-8")) / 2**64


# -- merging and writing -----------------------------------------------------------------------------------------------


def merged(answers: Iterable[Answer]) -> tuple[Answer, ...]:
    """The different answers, each with all of its draws. Of equal texts, one that the model ended counts."""
    found: dict[str, Answer] = {}
    for answer in answers:
        first = found.get(answer.text)
        if first is None:
            found[answer.text] = answer
            continue
        better = answer if first.is_cut and not answer.is_cut else first
        found[answer.text] = replace(better, draws=(*first.draws, *answer.draws))
    return tuple(found.values())


def answer_of(completion: "Completion", draw: Draw, tokenizer: Tokenizer) -> Answer:
    """The answer of a completion."""
    stop = () if completion.stop_token is None else (completion.stop_token,)
    text = tokenizer.decode(completion.tokens, skip_special=True).strip()
    return Answer(text=text, tokens=(*completion.tokens, *stop), finish_reason=completion.finish_reason, draws=(draw,))


def as_line(asked: PromptAnswers) -> Line:
    """The line of a prompt in a file of answers of one model."""
    reference = {} if asked.prompt.reference is None else {"reference": asked.prompt.reference}
    return {
        "id": asked.id,
        **prompt_columns(asked.prompt.turns, asked.prompt.tools),
        **reference,
        "where": asked.where,
        "rendered": asked.rendered,
        ANSWERS: [
            {
                "id": answer.id,
                "text": answer.text,
                "finish_reason": answer.finish_reason,
                "draws": [{"place": draw.place, "temperature": draw.temperature} for draw in answer.draws],
                "tokens": list(answer.tokens),
            }
            for answer in asked.answers
        ],
    }


# -- reading -----------------------------------------------------------------------------------------------------------


def read_answers(paths: Sequence[str]) -> AnswerSet:
    """The answers of files; answers to one prompt are put together. Raises FledgeError for a file that is none, is damaged, or
    has not been finished."""
    found: list[PromptAnswers] = []
    hashes: dict[str, str] = {}
    for path in paths:
        journal = read_journal(Path(path).expanduser(), ANSWERS)
        _check_finished(journal)
        add_hash(hashes, journal.path, path)
        for number, line in enumerate(journal.lines):
            found.append(_damage(partial(_from_line, line, journal.header), journal, number))
    return AnswerSet(put_together(found), hashes)


def add_hash(hashes: dict[str, str], file: Path, named: str) -> None:
    """Add the hash of a file's content by its real path. Raises FledgeError for a file that is there already, under another
    name or the same."""
    real = os.path.realpath(file)
    if real in hashes:
        raise FledgeError("this file is named twice", where=named)
    hashes[real] = hash_files(file)


def put_together(found: Iterable[PromptAnswers]) -> dict[str, PromptAnswers]:
    """Prompts by id, each with all different answers to it and the first reference."""
    prompts: dict[str, PromptAnswers] = {}
    for asked in found:
        known = prompts.get(asked.id)
        if known is None:
            prompts[asked.id] = asked
            continue
        reference = asked.prompt.reference if known.prompt.reference is None else known.prompt.reference
        prompt, answers = replace(known.prompt, reference=reference), merged((*known.answers, *asked.answers))
        prompts[asked.id] = replace(known, prompt=prompt, answers=answers)
    return prompts


def _check_finished(journal: Journal) -> None:
    wanted = _damage(partial(_number_of_prompts, journal.header), journal, -1)
    if journal.torn or len(journal.lines) < wanted:
        raise FledgeError(
            f"sampling has not finished: it has the answers to {len(journal.lines):,} of {wanted:,} prompts",
            where=str(journal.path),
            hint="run the command that writes it again: it goes on",
        )


def _number_of_prompts(header: Line) -> int:
    return int(header["prompts"]["count"])


def _damage(read: Callable[[], Any], journal: Journal, number: int) -> Any:
    """What `read` gives. FledgeError with the line if the line does not have what it reads."""
    try:
        return read()
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        what = f"{type(error).__name__}: {error.detail or error}" if isinstance(error, RowError) else f"no usable {error}"
        raise FledgeError(
            f"damaged: {what}", where=journal.location(number), hint="put back a copy, or write a new file"
        ) from None


def _from_line(line: Line, header: Line) -> PromptAnswers:
    row = {name: line[name] for name in ("messages", "tools", "reference") if name in line}
    prompt = parse_prompt(row, Source(path=ANSWERS)).prompt
    model, weights = header["about"]["model"], header["model"]["weights"]
    answers = tuple(
        Answer(
            text=entry["text"],
            tokens=tuple(entry["tokens"]),
            finish_reason=entry["finish_reason"],
            draws=tuple(Draw(model, weights, draw["place"], draw["temperature"]) for draw in entry["draws"]),
        )
        for entry in line[ANSWERS]
    )
    if line["id"] != prompt_id(prompt) or any(entry["id"] != answer_id(entry["text"]) for entry in line[ANSWERS]):
        raise ValueError("id: it was edited, and an id is a hash of the text")
    return PromptAnswers(id=line["id"], prompt=prompt, rendered=line["rendered"], where=line["where"], answers=answers)
