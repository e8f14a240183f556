"""Detection from the columns of a row: the type of item, and the name of the schema."""

from contextlib import suppress
from typing import Any

from fledge.data.parsing.columns import INSTRUCTION, Row, RowError
from fledge.data.parsing.dialogues import FUNCTIONS, INSTANCES, find_conversation
from fledge.data.parsing.items import BinaryFeedback, Conversation, Document, Item, PreferencePair
from fledge.data.parsing.messages import calls_tools, has_content_parts, turn_schema
from fledge.data.parsing.preferences import COMPLETIONS, is_pair, is_scored
from fledge.data.parsing.rows import read_label
from fledge.data.parsing.turn_lists import is_list_of_other_than_texts, turns_in_text
from fledge.recipe.schema import Source


def detect_item_type(value: Any, source: Source) -> type[Item]:
    """The type of item that a row's columns suggest, the most specific first. Raises RowError if none matches."""
    return _item_type(Row.of(value, source))


def _item_type(row: Row) -> type[Item]:
    if row.whole and "text" in row:
        return Document
    _, prompt = row.find("prompt")
    ranked = row.has("ranked") or is_pair(row.get("output")) or is_scored(row.get(COMPLETIONS))
    if ranked or (row.has("chosen") and row.has("rejected")):
        return PreferencePair
    answered = row.has("response") or isinstance(row.get(INSTANCES), list)
    turns = row.has("messages") or is_list_of_other_than_texts(prompt)
    in_text = isinstance(prompt, str) and not answered and turns_in_text(prompt, row.source) is not None
    if turns or in_text or (prompt is not None and answered):
        return Conversation if read_label(row.find("label")[1]) is None else BinaryFeedback
    if row.has("text"):
        return Document
    if prompt is not None:
        return Conversation
    raise RowError("no known column", f"{row.description()}{row.naming_hint('prompt', 'response')}")


def schema_name(value: Any, source: Source) -> str:
    """The name of a row's schema, such as alpaca or messages (role/content); 'unknown' if none matches. Never raises."""
    try:
        row = Row.of(value, source)
        return _SCHEMA_NAMES[_item_type(row)](row)
    except RowError:
        return "unknown"


def _preference_schema(row: Row) -> str:
    _, chosen = row.find("chosen")
    if chosen is None:
        return "scored list" if is_scored(row.get(COMPLETIONS)) else "ranked list"
    if isinstance(chosen, str) and turns_in_text(chosen, row.source) is None:
        return "preference (strings)"
    return "ranked" if isinstance(chosen, dict) else "preference (messages)"


def _conversation_schema(row: Row) -> str:
    turns, source = None, row.source
    with suppress(RowError):
        turns = find_conversation(row)
    _, tools = row.find("tools")
    tools = row.get(FUNCTIONS) if tools is None else tools
    if calls_tools(turns, source) or tools not in (None, "", "[]", []):
        return "tool calls"
    if turns is None:
        _, prompt = row.find("prompt")
        return "alpaca" if prompt is not None and prompt is row.get(INSTRUCTION) else "prompt/response"
    return "openai content parts" if has_content_parts(turns, source) else turn_schema(turns, source)


_SCHEMA_NAMES = {
    Document: lambda row: "text",
    BinaryFeedback: lambda row: "kto",
    PreferencePair: _preference_schema,
    Conversation: _conversation_schema,
}
