"""Detection from the columns of a row: the type of item, and the name of the schema."""

from collections.abc import Mapping, Sequence
from typing import Any

from fledge.data.parsing.columns import RowError, columns_of, present
from fledge.data.parsing.items import BinaryFeedback, Conversation, Document, Item, PreferencePair
from fledge.data.parsing.messages import calls_tools, has_content_parts, turn_schema
from fledge.data.parsing.rows import (
    CONVERSATIONS,
    FUNCTIONS,
    INSTRUCTION,
    LABELS,
    PAIR,
    PROMPTS,
    RESPONSES,
    TEXTS,
    is_pair,
    is_turns,
    read_label,
)
from fledge.recipe.schema import Source


def detect_item_type(row: Any, source: Source) -> type[Item]:
    """The type of item that a row's columns suggest, the most specific first. Raises RowError if none matches."""
    if not isinstance(row, Mapping):
        raise RowError("not an object", type(row).__name__)

    def has(role: str, usual: Sequence[str]) -> bool:
        return present(row, source, role, usual) is not None

    prompt = present(row, source, "prompt", PROMPTS)
    turns = has("messages", CONVERSATIONS) or is_turns(prompt)
    if has("ranked", ()) or all(has(side, (side,)) for side in PAIR) or is_pair(row.get("output")):
        return PreferencePair
    if turns or (prompt is not None and has("response", RESPONSES)):
        return Conversation if read_label(present(row, source, "label", LABELS)) is None else BinaryFeedback
    if has("text", TEXTS):
        return Document
    if prompt is not None:
        return Conversation
    raise RowError("no known column", columns_of(row))


def schema_name(row: Any, source: Source) -> str:
    """The name of a row's schema, such as alpaca or messages (role/content); 'unknown' if none matches. Never raises."""
    try:
        item_type = detect_item_type(row, source)
    except RowError:
        return "unknown"
    return _SCHEMA_NAMES[item_type](row, source)


def _preference_schema(row: Any, source: Source) -> str:
    chosen = present(row, source, "chosen", ("chosen",))
    if chosen is None:
        return "ranked list"
    if isinstance(chosen, str):
        return "preference (strings)"
    return "ranked" if isinstance(chosen, Mapping) else "preference (messages)"


def _conversation_schema(row: Any, source: Source) -> str:
    turns = present(row, source, "messages", CONVERSATIONS)
    prompt = present(row, source, "prompt", PROMPTS)
    turns = prompt if turns is None and is_turns(prompt) else turns
    if calls_tools(turns, source) or present(row, source, "tools", ("tools", FUNCTIONS)) not in (None, "", "[]", []):
        return "tool calls"
    if turns is None:
        return "alpaca" if prompt is row.get(INSTRUCTION) else "prompt/response"
    return "openai content parts" if has_content_parts(turns, source) else turn_schema(turns, source)


_SCHEMA_NAMES = {
    Document: lambda row, source: "text",
    BinaryFeedback: lambda row, source: "kto",
    PreferencePair: _preference_schema,
    Conversation: _conversation_schema,
}
