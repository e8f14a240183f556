"""Parsing of a row's columns into an item: a document, a conversation, a preference pair or binary feedback."""

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

from fledge.data.parsing.columns import Row, RowError
from fledge.data.parsing.dialogues import dialogue_of_row, tools_of_row
from fledge.data.parsing.items import BinaryFeedback, Conversation, Document, Item, serialize
from fledge.data.parsing.preferences import parse_pair_with_margin, parse_preference_pair, unweighted
from fledge.data.parsing.weights import read_switch, row_weights
from fledge.data.row_events import RowEvent
from fledge.recipe.schema import Source

__all__ = [
    "Parsed", "Parser", "parse_any", "parse_binary_feedback", "parse_conversation", "parse_document", "parse_pair_with_margin",
    "parse_preference_pair",    "parse_row", "read_label", "read_row",
]  # fmt: skip
Parser = Callable[[Row, Source], Item]  # (row, source) -> item; raises RowError with the reason
LABEL_TEXTS = {"desirable": True, "undesirable": False}
MEDIA = ("images", "audios", "videos")


class Parsed(NamedTuple):
    """A row as an item, with events about what is unusual in it, and the columns that nothing has read."""

    item: Item
    events: list[RowEvent]
    unread_columns: list[str]


def parse_document(row: Row, source: Source) -> Item:
    """The text of a row as a document. Raises RowError if it has none."""
    text = row.text("text")
    if text is None and not row.source.columns.get("text"):
        hint = "" if row.whole else row.naming_hint("text")
        for_turns = "; turns are for a stage of kind sft" if row.present("messages") is not None else ""
        raise RowError("no known column", f"expected text or content; {row.description()}{for_turns}{hint}")
    if text is None or not text.strip():
        raise RowError("empty text")
    _drop_untrained(row)
    return Document(text)


def _drop_untrained(row: Row) -> None:
    """RowError for a row whose own weight is 0; other weights are noticed, because its kind of item has none."""
    weights = row_weights(row, 1)
    if weights == [0.0]:
        raise RowError("no trained turn", "the row's own weight is 0")
    if weights is not None and weights != [1.0]:
        row.event("weights of rows are used for conversations only", f"weight {weights[0]:g}")


def parse_conversation(row: Row, source: Source) -> Item:
    """The conversation of a row, which ends with an answer. Raises RowError if there is no answer to train on."""
    if _label(row, required=False) is False:
        raise RowError("labelled undesirable")
    turns = dialogue_of_row(row)
    if all(turn.weight == 0 for turn in turns if turn.role == "assistant"):
        raise RowError("no trained turn", "the weight of every answer is 0")
    return Conversation(tuple(turns), tools_of_row(row))


def _label(row: Row, required: bool) -> bool | None:
    """Whether the answer of a row is labelled desirable; None without a label. RowError for a value of another meaning."""
    value = row.value("label")
    if value is None or (isinstance(value, str) and not value.strip()):  # an empty cell of a table is a missing value
        if required:
            raise RowError("no known column", f"no label; {row.description()}; name it, such as columns: {{label: NAME}}")
        return None
    label = read_label(value)
    if label is None:
        detail = f"{str(value)[:40]!r} is neither true nor false; write columns: {{label: ''}} if it is no label of the answer"
        raise RowError("unknown label", detail)
    return label


def read_label(value: Any) -> bool | None:
    """A label as files spell it: true, 1, "True", "yes", "desirable", and their opposites; None for any other value."""
    return LABEL_TEXTS.get(value.strip().lower(), read_switch(value)) if isinstance(value, str) else read_switch(value)


def parse_binary_feedback(row: Row, source: Source) -> Item:
    """The answer of a row and whether it is desirable (label: true or false), as KTO reads it; RowError without a label."""
    desirable = _label(row, required=True)
    *prompt, answer = dialogue_of_row(row)
    if answer.tool_calls:
        raise RowError("answer is a tool call")
    return BinaryFeedback(unweighted(prompt), answer.content, bool(desirable), tools_of_row(row), answer.reasoning)


def read_row(value: Any, source: Source, parser: Parser, system: str | None = None) -> Parsed:
    """Parse a row with `parser`. Raises RowError with the reason if the row cannot be used.

    `system`: system prompt for conversations without a system turn.
    """
    row = Row.of(value, source)
    check_media(row)
    item = parser(row, source)
    if system is not None:
        item = item.with_system(system)
    try:
        serialize(item)
    except TypeError:
        raise RowError("undecodable", "the text holds half a surrogate pair, which UTF-8 cannot say") from None
    return Parsed(item, row.events, row.unread())


def check_media(row: Row) -> None:
    """RowError for a row with images, sounds or videos."""
    if media := [name for name in MEDIA if row.get(name)]:
        raise RowError("not text", f"the row has {media[0]}")


def parse_row(value: Any, source: Source, parser: Parser, system: str | None = None) -> Item:
    """The item of a row, like `read_row`."""
    return read_row(value, source, parser, system).item


def parse_any(value: Any, source: Source, parsers: Iterable[Parser]) -> Item:
    """The item of the first parser that can read the row, or the row's question alone as a document.

    For rows that are not trained on, such as the rows of an evaluation file. Raises RowError if the row has neither."""
    for parser in parsers:
        try:
            return parse_row(value, source, parser)
        except RowError:
            continue
    row = Row.of(value, source)
    question = row.text("prompt")
    if not question:
        raise RowError("no known column", f"no question or text; {row.description()}{row.naming_hint('prompt')}")
    return Document(question)
