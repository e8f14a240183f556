"""Prompts: what stands before the answer of a row of any kind, with the row's own answer as the reference if it has one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from fledge.data.parsing.columns import Row
from fledge.data.parsing.detection import detect_item_type
from fledge.data.parsing.dialogues import INSTANCES, check_texts, dialogue_of_row, tools_of_row, turns_of_row
from fledge.data.parsing.items import BinaryFeedback, Conversation, Document, Item, PreferencePair
from fledge.data.parsing.preferences import parse_preference_pair, unweighted
from fledge.data.parsing.rows import check_media, parse_binary_feedback, parse_document
from fledge.data.parsing.turn_order import in_order
from fledge.data.row_events import RowEvent
from fledge.recipe.schema import Source
from fledge.tokenizer.template import Message, ToolCall

REFERENCE = "reference"  # the column with the reference answer to a prompt that has no answer of its own
AS_QUESTION = "a text is asked as a user's message"


@dataclass(frozen=True)
class Prompt:
    """Turns that a model may answer. `tools`: JSON text of a list, or None. `reference`: an answer that is right or good; None
    if the row has none."""

    turns: tuple[Message, ...]
    tools: str | None = None
    reference: str | None = None


@dataclass(frozen=True)
class ParsedPrompt:
    """The prompt of a row, events about what is unusual in it, and the columns that nothing has read."""

    prompt: Prompt
    events: list[RowEvent]
    unread_columns: list[str]


def parse_prompt(value: Any, source: Source, system: str | None = None) -> ParsedPrompt:
    """The prompt of a row: of a conversation all but its last answer, of a pair or a labelled answer the prompt, of a text the
    text as a user's message. `system`: the system prompt of prompts without one. Raises RowError for a row without a prompt."""
    row = Row.of(value, source)
    check_media(row)
    prompt = _OF_TYPE[detect_item_type(row, source)](row, source)
    check_texts(prompt.turns)
    turns = prompt.turns
    if system is not None and turns[0].role != "system":
        turns = (Message("system", system), *turns)
    return ParsedPrompt(Prompt(unweighted(turns), prompt.tools, prompt.reference), row.events, row.unread())


def _of_conversation(row: Row, source: Source) -> Prompt:
    """The turns before the last answer; all turns, where the last one is the user's and no column holds an answer, or a
    blank one."""
    turns = turns_of_row(row)
    response = row.find("response")[1]
    is_blank = response is None or (isinstance(response, str) and not response.strip())
    is_open = is_blank and not isinstance(row.get(INSTANCES), list)
    if turns and turns[-1].role in ("user", "tool") and is_open:
        row.present("response")
        return Prompt(tuple(in_order(turns, row, ends_with_answer=False)), tools_of_row(row), _reference(row))
    *before, answer = dialogue_of_row(row)
    return Prompt(tuple(before), tools_of_row(row), None if answer.tool_calls else answer.content)


def _reference(row: Row) -> str | None:
    """The reference in a column of its own, also a number, as text; None if there is none."""
    value = dict.get(row, REFERENCE)
    if isinstance(value, int | float) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value.strip():
        return None
    row.read.add(REFERENCE)
    return value


def _of_pair(row: Row, source: Source) -> Prompt:
    pair = parse_preference_pair(row, source)
    assert isinstance(pair, PreferencePair)
    return Prompt(pair.prompt, pair.tools, pair.chosen)


def _of_feedback(row: Row, source: Source) -> Prompt:
    feedback = parse_binary_feedback(row, source)
    assert isinstance(feedback, BinaryFeedback)
    return Prompt(feedback.prompt, feedback.tools, feedback.answer if feedback.desirable else None)


def _of_document(row: Row, source: Source) -> Prompt:
    document = parse_document(row, source)
    assert isinstance(document, Document)
    row.event(AS_QUESTION, document.text[:80])
    return Prompt((Message("user", document.text.strip()),), None, _reference(row))


_OF_TYPE: dict[type[Item], Callable[[Row, Source], Prompt]] = {
    Conversation: _of_conversation,
    PreferencePair: _of_pair,
    BinaryFeedback: _of_feedback,
    Document: _of_document,
}


# -- prompts as rows ---------------------------------------------------------------------------------------------------


def prompt_columns(turns: tuple[Message, ...], tools: str | None) -> dict[str, Any]:
    """The columns `messages` and, if there are tools, `tools` of a row from which `parse_prompt` reads the same turns."""
    return {"messages": [_turn(turn) for turn in turns], **({} if tools is None else {"tools": tools})}


def _turn(turn: Message) -> dict[str, Any]:
    more = {
        "tool_calls": [_call(call) for call in turn.tool_calls] or None,
        "reasoning_content": turn.reasoning,
        "name": turn.name,
        "tool_call_id": turn.tool_call_id,
    }
    return {"role": turn.role, "content": turn.content, **{key: value for key, value in more.items() if value is not None}}


def _call(call: ToolCall) -> dict[str, Any]:
    function = {"name": call.name, "arguments": call.arguments}
    return {**({} if call.id is None else {"id": call.id}), "type": "function", "function": function}
