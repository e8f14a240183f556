"""The better and the worse answer in the columns of a row, and the prompt that they share."""

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from fledge.data.parsing.columns import Row, RowError
from fledge.data.parsing.dialogues import check_texts, tools_of_row, turns_of_row, with_own_system
from fledge.data.parsing.items import PreferencePair
from fledge.data.parsing.messages import read_turns
from fledge.data.parsing.turn_lists import PYTHON, is_python_value, list_in_text, transcript_turns, turns_in_text, turns_of
from fledge.data.parsing.turn_order import in_order
from fledge.recipe.schema import Source
from fledge.tokenizer.template import Message

PAIR = ("chosen", "rejected")
COMPLETIONS = "completions"  # UltraFeedback's: a list of answers with scores
TEXT_KEYS = ("response", "text", "content", "completion", "answer", "output")
SCORE_KEYS = ("overall_score", "score", "rating", "reward")


def parse_preference_pair(row: Row, source: Source) -> PreferencePair:
    """The prompt of a row with its chosen and its rejected answer. Raises RowError if they are missing or equal."""
    pair = _pair(row)
    transcripts = _without_prompt(row)
    (before_chosen, chosen), (before_rejected, rejected) = (_answer(side, value, row, transcripts) for side, value in pair)
    if before_chosen != before_rejected:
        raise RowError("prompts differ", "chosen and rejected do not share their first turns")
    prompt = with_own_system(before_chosen, row) if before_chosen else turns_of_row(row)
    if prompt is None:
        raise RowError("no known column", f"no prompt; {row.description()}{row.naming_hint('prompt', 'chosen', 'rejected')}")
    prompt = in_order(prompt, row, ends_with_answer=False)
    if not chosen.full_content.strip() or not rejected.full_content.strip():
        raise RowError("empty answer", "chosen" if not chosen.full_content.strip() else "rejected")
    check_texts(prompt)
    if chosen.full_content == rejected.full_content:
        raise RowError("chosen equals rejected")
    if any(turn.weight is not None for turn in (chosen, rejected)):
        row.event("weights of answers are not used in a preference stage")
    reasoning = (chosen.reasoning, rejected.reasoning) if chosen.reasoning or rejected.reasoning else ()
    return PreferencePair(unweighted(prompt), chosen.content, rejected.content, tools_of_row(row), reasoning)


def parse_pair_with_margin(row: Row, source: Source) -> PreferencePair:
    """The pair of a row, as `parse_preference_pair`, with the margin that a reward model reads. Raises RowError for a margin
    that is no finite number."""
    pair, value = parse_preference_pair(row, source), row.value("margin")
    if value is None or (isinstance(value, str) and not value.strip()):  # an empty cell of a table is a missing value
        return pair
    try:
        margin = float(value)
    except (TypeError, ValueError):
        margin = math.nan
    if not math.isfinite(margin) or isinstance(value, bool):
        raise RowError(
            "margin is no number", f"{str(value)[:40]!r}; write columns: {{margin: ''}} if it is none of the rewards"
        )
    return replace(pair, margin=margin)


def _pair(row: Row) -> list[tuple[str, Any]]:
    """The better and the worse answer, with what to call them."""
    ranked = list_in_text(row.value("ranked"))
    if ranked is None and not row.is_named("chosen") and row.get("chosen") is None:
        if is_pair(row.get("output")):
            ranked = row["output"]
            row.read.add("output")
        elif is_scored(row.get(COMPLETIONS)):
            row.read.add(COMPLETIONS)
            return _best_and_worst(row[COMPLETIONS], row)
    if ranked is not None:
        if not isinstance(ranked, list) or len(ranked) != 2:
            raise RowError("wrong type", "the ranked answers are not a list of two, the better first")
        return list(zip(PAIR, ranked, strict=True))
    pair = [("chosen", row.value("chosen")), ("rejected", row.value("rejected"))]
    for side, value in pair:
        if value is None:
            hint = row.naming_hint("prompt", "chosen", "rejected")
            need = "; a preference stage compares a chosen with a rejected answer, and one answer is for a stage of kind sft"
            raise RowError("no known column", f"no '{side}'; {row.description()}{hint or need}")
    return pair


def is_pair(value: Any) -> bool:
    """Whether a value is two answers as texts, the better first."""
    return isinstance(value, list) and len(value) == 2 and all(isinstance(answer, str) for answer in value)


def is_scored(value: Any) -> bool:
    """Whether a value is a list of several answers with scores."""
    return isinstance(value, list) and len(value) > 1 and all(_scored(answer) is not None for answer in value)


def _scored(answer: Any) -> tuple[float, str] | None:
    """(score, text) of an answer in a list of scored answers; None for any other value."""
    if not isinstance(answer, dict):
        return None
    text = next((answer[key] for key in TEXT_KEYS if isinstance(answer.get(key), str)), None)
    score = next((answer[key] for key in SCORE_KEYS if isinstance(answer.get(key), int | float)), None)
    return None if text is None or score is None or score != score else (score, text)


def _best_and_worst(answers: Sequence[Any], row: Row) -> list[tuple[str, Any]]:
    scored = [entry for answer in answers if (entry := _scored(answer)) is not None]
    best, worst = (choose(scored, key=lambda entry: entry[0]) for choose in (max, min))
    if best[0] == worst[0]:
        raise RowError("chosen equals rejected", f"all {len(scored)} answers have the score {best[0]}")
    row.event("of several answers the best and the worst are read", f"{len(scored)} answers, scores {best[0]} and {worst[0]}")
    return [("chosen", best[1]), ("rejected", worst[1])]


def _without_prompt(row: Row) -> bool:
    """Whether the answers must hold the prompt, because no column does."""
    return all(dict.get(row, name) is None for name in (*row.usual("prompt"), *row.usual("messages"))) and not (
        row.is_named("prompt") or row.is_named("messages")
    )


def _answer(side: str, value: Any, row: Row, transcripts: bool) -> tuple[list[Message], Message]:
    """A preference answer: text, one turn, or a whole conversation whose last turn it is, also as JSON text.

    `transcripts`: a text in which Human and Assistant speak in turn is a conversation."""
    if isinstance(value, str):
        if is_python_value(value):
            raise RowError("wrong type", f"'{side}' is {PYTHON}")
        turns = turns_in_text(value, row.source)
        if turns is None:
            return _transcript(value, row) if transcripts else ([], Message("assistant", value))
        row.event("JSON text in answers is read as turns", changed=True)
        value = turns
    found = read_turns(turns_of(value, row.source) or value, row)
    if not found or found[-1].role != "assistant":
        raise RowError("no answer", f"'{side}' does not end with the assistant's turn")
    if found[-1].tool_calls:
        raise RowError("answer is a tool call", side)
    return found[:-1], found[-1]


def _transcript(text: str, row: Row) -> tuple[list[Message], Message]:
    turns = transcript_turns(text)
    if turns is None or turns[-1][0] != "assistant":
        return [], Message("assistant", text)
    row.event("a transcript is read as turns", changed=True)
    messages = [Message(role, content) for role, content in turns]
    return messages[:-1], messages[-1]


def unweighted(turns: Sequence[Message]) -> tuple[Message, ...]:
    """Turns of a prompt, which are never trained."""
    return tuple(replace(turn, weight=None) if turn.weight is not None else turn for turn in turns)
