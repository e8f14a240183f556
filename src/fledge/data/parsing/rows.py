"""Parsing of a row's columns into an item: a document, a conversation, a preference pair or binary feedback."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from fledge.data.parsing.columns import RowError, columns_of, present, text_of, value_of
from fledge.data.parsing.items import BinaryFeedback, Conversation, Document, Item, PreferencePair, serialize
from fledge.data.parsing.messages import json_text, read_turns
from fledge.recipe.schema import Source
from fledge.tokenizer.template import Message

Parser = Callable[[Mapping[str, Any], Source], Item]  # (row, source) -> item; raises RowError with the reason
INSTRUCTION, INPUT = "instruction", "input"  # alpaca's
TEXTS = ("text", "content")
NAME_THEM = "; name the column in the source's columns"
PROMPTS = ("prompt", INSTRUCTION, "question", "query")
RESPONSES = ("response", "output", "answer", "completion")
CONVERSATIONS = ("messages", "conversations", "conversation")
LABELS = ("label", "kto_tag")
LABEL_TEXTS = {
    **dict.fromkeys(("true", "1", "1.0", "yes", "desirable"), True),
    **dict.fromkeys(("false", "0", "0.0", "no", "undesirable"), False),
}
FUNCTIONS = "functions"  # OpenAI's older name of tools: the functions alone, without {"type": "function", …} around each
MEDIA = ("images", "audios", "videos")
PAIR = ("chosen", "rejected")
AFTER = {"system": ("user",), "user": ("assistant",), "assistant": ("user", "tool"), "tool": ("tool", "assistant")}


# -- conversations ------------------------------------------------------------------------------------------------------


def _turns(row: Mapping[str, Any], source: Source) -> list[Message] | None:
    """The turns of a row, from a conversation column or from prompt columns (with input, history, system)."""
    value = _conversation(row, source)
    if value is not None:
        return _with_system(read_turns(value, source), row, source)
    prompt = text_of(row, source, "prompt", PROMPTS)
    if prompt is None:
        return None
    question = "\n".join(text for text in (prompt, _query(row, source)) if text)
    turns = [*_history(value_of(row, source, "history", ("history",))), Message("user", question)]
    return _with_system(turns, row, source)


def _conversation(row: Mapping[str, Any], source: Source) -> Any:
    """The list of turns, where the row has one: in a conversation column, or as its prompt."""
    if "prompt" not in source.columns or source.columns.get("messages"):
        value = value_of(row, source, "messages", CONVERSATIONS)
        if value is not None:
            return value
    prompt = present(row, source, "prompt", PROMPTS)
    return prompt if is_turns(prompt) or prompt == [] else None


def is_turns(value: Any) -> bool:
    """Whether a value is a list of turns; a list of texts is not."""
    return isinstance(value, list) and not all(isinstance(entry, str) for entry in value)


def _query(row: Mapping[str, Any], source: Source) -> str:
    """The text to append to the prompt: alpaca's `input`, or the query column that the recipe names."""
    alpaca = source.columns.get("prompt", INSTRUCTION) == INSTRUCTION
    extra = text_of(row, source, "query", (INPUT,) if alpaca else ())
    return extra if extra and extra.strip() else ""


def _history(value: Any) -> list[Message]:
    if not value:
        return []
    pairs = value if isinstance(value, list) else [value]
    if not all(isinstance(p, list) and len(p) == 2 and all(isinstance(text, str) for text in p) for p in pairs):
        raise RowError("wrong type", "the history is not a list of [question, answer]")
    return [Message(role, text) for pair in pairs for role, text in zip(("user", "assistant"), pair, strict=True)]


def _with_system(turns: list[Message], row: Mapping[str, Any], source: Source) -> list[Message]:
    """The turns behind the row's own system prompt, if it has one and they have none."""
    system = text_of(row, source, "system", ("system",))
    if system and (not turns or turns[0].role != "system"):
        return [Message("system", system), *turns]
    return turns


def _tools(row: Mapping[str, Any], source: Source) -> str | None:
    """The tool descriptions as JSON text, from their column or from the system turn; None where there are none."""
    value, functions = value_of(row, source, "tools", ("tools",)), None
    if value is None and "tools" not in source.columns:
        turns = _conversation(row, source)
        first = turns[0] if isinstance(turns, list) and turns and isinstance(turns[0], Mapping) else {}
        value, functions = first.get("tools"), row.get(FUNCTIONS) or first.get(FUNCTIONS)
    value = functions if value is None else value
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    tools, text = json_text(value, "tools")
    if isinstance(tools, Mapping):
        tools, text = [tools], f"[{text}]"
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise RowError("wrong type", "the tools are not a list of objects")
    if value is functions:
        wrapped = [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools]
        _, text = json_text(wrapped, "tools")
    return text if tools else None


def _check_order(turns: Sequence[Message], ends_with_answer: bool) -> None:
    """A system turn or none; then user (or tool results, after an answer) and assistant in turn."""
    first = int(bool(turns) and turns[0].role == "system")
    if len(turns) == first:
        raise RowError("no turns")
    before = "system"
    for number, turn in enumerate(turns[first:], first + 1):
        if turn.role not in AFTER[before]:
            raise RowError("roles out of order", f"turn {number} is {turn.role}, expected {' or '.join(AFTER[before])}")
        before = turn.role
    if (before == "assistant") != ends_with_answer:
        raise RowError("no answer" if ends_with_answer else "prompt ends with an answer")


def _check_texts(turns: Sequence[Message]) -> None:
    if any(turn.role == "assistant" and not turn.full_content.strip() and not turn.tool_calls for turn in turns):
        raise RowError("empty answer")
    if any(turn.role == "user" and not turn.content.strip() for turn in turns):
        raise RowError("empty question")


def _dialogue(row: Mapping[str, Any], source: Source) -> list[Message]:
    """All turns of a row, its answer last."""
    turns = _turns(row, source)
    if turns is None:
        raise RowError("no known column", f"no conversation, prompt or instruction; {columns_of(row)}{NAME_THEM}")
    if turns and turns[-1].role in ("user", "tool"):
        turns += _response(row, source)
    if turns and turns[-1].role == "user" and "chosen" in row and "rejected" in row:
        raise RowError("no answer", "the row has chosen and rejected: it is for a preference stage")
    _check_order(turns, ends_with_answer=True)
    _check_texts(turns)
    return turns


def _response(row: Mapping[str, Any], source: Source) -> list[Message]:
    """The answer in a column of its own, as turns; empty if the row has no such column."""
    value = present(row, source, "response", RESPONSES)
    if isinstance(value, list) and "response" not in source.columns and not is_turns(value):
        raise RowError("wrong type", "the answer is a list of texts; name a list of two, the better first, as columns.ranked")
    if is_turns(value):
        return read_turns(value, source)
    answer = text_of(row, source, "response", RESPONSES)
    return [] if answer is None else [Message("assistant", answer)]


# -- parsers ------------------------------------------------------------------------------------------------------------


def parse_document(row: Mapping[str, Any], source: Source) -> Item:
    """The text of a row as a document. Raises RowError if it has none."""
    text = text_of(row, source, "text", TEXTS)
    if text is None and not source.columns.get("text"):
        raise RowError("no known column", f"expected one of {', '.join(TEXTS)}; {columns_of(row)}{NAME_THEM}")
    if text is None or not text.strip():
        raise RowError("empty text")
    return Document(text)


def parse_conversation(row: Mapping[str, Any], source: Source) -> Item:
    """The conversation of a row, which ends with an answer. Raises RowError if there is no answer to train on."""
    if _label(row, source, required=False) is False:
        raise RowError("labelled undesirable")
    turns = _dialogue(row, source)
    if all(turn.weight == 0 for turn in turns if turn.role == "assistant"):
        raise RowError("no trained turn", "the weight of every answer is 0")
    return Conversation(tuple(turns), _tools(row, source))


def _label(row: Mapping[str, Any], source: Source, required: bool) -> bool | None:
    """Whether the answer of a row is labelled desirable; None without a label. RowError for a value of another meaning."""
    value = value_of(row, source, "label", LABELS)
    if value is None or (isinstance(value, str) and not value.strip()):  # an empty cell of a table is a missing value
        if required:
            raise RowError("no known column", f"no label; {columns_of(row)}{NAME_THEM}")
        return None
    label = read_label(value)
    if label is None:
        detail = f"{str(value)[:40]!r} is neither true nor false; write columns: {{label: ''}} if it is no label of the answer"
        raise RowError("unknown label", detail)
    return label


def read_label(value: Any) -> bool | None:
    """A label as files spell it: true, 1, "True", "yes", "desirable", and their opposites; None for any other value."""
    if isinstance(value, bool):
        return value
    if isinstance(value, int | float):
        return bool(value) if value in (0, 1) else None
    return LABEL_TEXTS.get(value.strip().lower()) if isinstance(value, str) else None


def parse_binary_feedback(row: Mapping[str, Any], source: Source) -> Item:
    """The answer of a row and whether it is desirable (label: true or false), as KTO reads it; RowError without a label."""
    desirable = _label(row, source, required=True)
    *prompt, answer = _dialogue(row, source)
    if answer.tool_calls:
        raise RowError("answer is a tool call")
    return BinaryFeedback(_unweighted(prompt), answer.content, bool(desirable), _tools(row, source), answer.reasoning)


def parse_preference_pair(row: Mapping[str, Any], source: Source) -> Item:
    """The prompt of a row with its chosen and its rejected answer. Raises RowError if they are missing or equal."""
    (before_chosen, chosen), (before_rejected, rejected) = (_answer(*pair, source) for pair in _pair(row, source))
    if before_chosen != before_rejected:
        raise RowError("prompts differ", "chosen and rejected do not share their first turns")
    prompt = _with_system(before_chosen, row, source) if before_chosen else _turns(row, source)
    if prompt is None:
        raise RowError("no known column", f"no prompt; {columns_of(row)}{NAME_THEM}")
    _check_order(prompt, ends_with_answer=False)
    if not chosen.full_content.strip() or not rejected.full_content.strip():
        raise RowError("empty answer", "chosen" if not chosen.full_content.strip() else "rejected")
    _check_texts(prompt)
    if chosen.full_content == rejected.full_content:
        raise RowError("chosen equals rejected")
    reasoning = (chosen.reasoning, rejected.reasoning) if chosen.reasoning or rejected.reasoning else ()
    return PreferencePair(_unweighted(prompt), chosen.content, rejected.content, _tools(row, source), reasoning)


def _pair(row: Mapping[str, Any], source: Source) -> list[tuple[str, Any]]:
    """The better and the worse answer, with what to call them."""
    ranked = value_of(row, source, "ranked", ())
    if ranked is None and not source.columns.get("chosen") and row.get("chosen") is None and is_pair(row.get("output")):
        ranked = row["output"]
    if ranked is not None:
        if not isinstance(ranked, list) or len(ranked) != 2:
            raise RowError("wrong type", "the ranked answers are not a list of two, the better first")
        return list(zip(PAIR, ranked, strict=True))
    pair = [(side, value_of(row, source, side, (side,))) for side in PAIR]
    for side, value in pair:
        if value is None:
            raise RowError("no known column", f"no '{side}'; {columns_of(row)}{NAME_THEM}")
    return pair


def is_pair(value: Any) -> bool:
    """Whether a value is two answers as texts, the better first."""
    return isinstance(value, list) and len(value) == 2 and all(isinstance(answer, str) for answer in value)


def _answer(side: str, value: Any, source: Source) -> tuple[list[Message], Message]:
    """A preference answer: text, one turn, or a whole conversation whose last turn it is."""
    if isinstance(value, str):
        return [], Message("assistant", value)
    turns = read_turns([value] if isinstance(value, Mapping) else value, source)
    if not turns or turns[-1].role != "assistant":
        raise RowError("no answer", f"'{side}' does not end with the assistant's turn")
    if turns[-1].tool_calls:
        raise RowError("answer is a tool call", side)
    return turns[:-1], turns[-1]


def _unweighted(turns: Sequence[Message]) -> tuple[Message, ...]:
    """Turns of a prompt, which are never trained."""
    return tuple(replace(turn, weight=None) if turn.weight is not None else turn for turn in turns)


def parse_row(row: Any, source: Source, parser: Parser, system: str | None = None) -> Item:
    """Parse a row with `parser`. Raises RowError with the reason if the row cannot be used.

    `system`: system prompt for conversations without a system turn.
    """
    if not isinstance(row, Mapping):
        raise RowError("not an object", type(row).__name__)
    if media := [name for name in MEDIA if row.get(name)]:
        raise RowError("not text", f"the row has {media[0]}")
    item = parser(row, source)
    if system is not None:
        item = item.with_system(system)
    try:
        serialize(item)
    except TypeError:
        raise RowError("undecodable", "the text holds half a surrogate pair, which UTF-8 cannot say") from None
    return item


def parse_any(row: Any, source: Source, parsers: Iterable[Parser]) -> Item:
    """The item of the first parser that can read the row, or the row's question alone as a document.

    For rows that are not trained on, such as the rows of an evaluation file. Raises RowError if the row has neither."""
    for parser in parsers:
        try:
            return parse_row(row, source, parser)
        except RowError:
            continue
    question = text_of(row, source, "prompt", PROMPTS) if isinstance(row, Mapping) else None
    if not question:
        raise RowError("no known column", f"no question or text; the row has {columns_of(row)}{NAME_THEM}" if row else "")
    return Document(question)
