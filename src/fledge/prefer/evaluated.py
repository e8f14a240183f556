"""Answers that people rate: those of `fledge prefer sample`, and those of evaluation sets."""

from collections.abc import Sequence
from pathlib import Path

from fledge.data.parsing.prompts import Prompt
from fledge.errors import FledgeError
from fledge.evaluate.records import ITEMS_SUFFIX, ItemResult, items_file, read_set_result
from fledge.prefer.answers import Answer, AnswerSet, Draw, PromptAnswers, add_hash, prompt_id, put_together, read_answers
from fledge.tokenizer import Message

CUT = "length"  # the finish reason of an answer that does not say that it ended


def read_rated(paths: Sequence[str]) -> AnswerSet:
    """The answers of files of `fledge prefer sample` and of results of `fledge eval`, either of whose two files may be named;
    answers to one prompt are put together. The model of a result is its folder.

    Raises FledgeError as `read_answers` and `read_set_result` do, for a set whose items have no answers, and for a file that is
    named twice."""
    summaries = {path: summary for path in paths if (summary := _summary(Path(path).expanduser())) is not None}
    sampled = read_answers([path for path in paths if path not in summaries])
    found, hashes = list(sampled.prompts.values()), dict(sampled.hashes)
    for path, summary in summaries.items():
        add_hash(hashes, summary, path)
        found += _read_result(summary)
    return AnswerSet(put_together(found), hashes)


def _summary(path: Path) -> Path | None:
    """The summary of the result of a set to which a file belongs; None for another file."""
    if path.name.endswith(ITEMS_SUFFIX):
        return path.with_name(f"{path.name.removesuffix(ITEMS_SUFFIX)}.json")
    return path if path.suffix == ".json" and items_file(path.parent, path.stem).exists() else None


def _read_result(summary: Path) -> list[PromptAnswers]:
    result = read_set_result(summary)
    answered = [item for item in result.items if item.given is not None]
    if not answered:
        raise FledgeError(
            f"its items have no answers that people could rate: it is a set of kind {result.kind}", where=str(summary)
        )
    return [_as_answers(item, f"{items_file(summary.parent, result.name)}:{item.id}", str(summary.parent)) for item in answered]


def _as_answers(item: ItemResult, where: str, model: str) -> PromptAnswers:
    given, turns = (item.given or "").strip(), (Message("user", item.prompt),)
    if item.context:  # the turns before the question, as one that only raters read
        turns = (Message("system", f"before this:\n{item.context}"), *turns)
    prompt = Prompt(turns, None, reference=item.expected)
    reason = "stop" if item.finish_reason == "stop" else CUT
    answer = Answer(text=given, tokens=(), finish_reason=reason, draws=(Draw(model, "", 0, 0.0),))
    return PromptAnswers(id=prompt_id(prompt), prompt=prompt, rendered=item.prompt, where=where, answers=(answer,))
