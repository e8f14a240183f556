"""What a row means: a document, a conversation, a preference or a labelled answer, recognised by its columns."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import orjson

from fledge.data.parsing.columns import RowError, columns_of, present, text_of, value_of
from fledge.data.parsing.messages import calls_tools, has_parts, json_text, keys_of, read_turns
from fledge.recipe.schema import Source
from fledge.tokenizer.template import Message, ToolCall

INSTRUCTION, INPUT = "instruction", "input"  # alpaca's
TEXTS = ("text", "content")
NAME_THEM = "; name the column in the source's columns"
PROMPTS = ("prompt", INSTRUCTION, "question", "query")
RESPONSES = ("response", "output", "answer", "completion")
CONVERSATIONS = ("messages", "conversations", "conversation")
LABELS = ("label", "kto_tag")
MEDIA = ("images", "audios", "videos")
PAIR = ("chosen", "rejected")
AFTER = {"system": ("user",), "user": ("assistant",), "assistant": ("user", "tool"), "tool": ("tool", "assistant")}
_PLACEHOLDER = re.compile(r"(?<![A-Za-z0-9_{}\\^$%])\{\{ ?[A-Za-z][A-Za-z0-9_]+ ?\}\}(?!\})|<(?:NAME|AUTHOR)>")


@dataclass(frozen=True)
class Document:
    """Plain text."""

    text: str


@dataclass(frozen=True)
class Conversation:
    """Turns that end with an assistant's answer; an optional system turn comes first. `tools` is JSON text: a list."""

    messages: tuple[Message, ...]
    tools: str | None = None


@dataclass(frozen=True)
class PreferencePair:
    """Turns that end with the user's (or a tool's result), and two answers of which one is preferred."""

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str
    tools: str | None = None


@dataclass(frozen=True)
class BinaryFeedback:
    """Turns that end with the user's (or a tool's result), and an answer that is wanted or not."""

    prompt: tuple[Message, ...]
    answer: str
    desirable: bool
    tools: str | None = None


Item = Document | Conversation | PreferencePair | BinaryFeedback


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
    return prompt if _is_turns(prompt) or prompt == [] else None


def _is_turns(value: Any) -> bool:
    return isinstance(value, list) and not all(isinstance(part, str) for part in value)


def _query(row: Mapping[str, Any], source: Source) -> str:
    """What stands below the prompt: alpaca's `input`, or what the recipe names."""
    alpaca = source.columns.get("prompt", INSTRUCTION) == INSTRUCTION
    extra = text_of(row, source, "query", (INPUT,) if alpaca and isinstance(row.get(INPUT), str) else ())
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
    value = value_of(row, source, "tools", ("tools",))
    turns = _conversation(row, source) if value is None and "tools" not in source.columns else None
    if isinstance(turns, list) and turns and isinstance(turns[0], Mapping):
        value = turns[0].get("tools")
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    tools, text = json_text(value, "tools")
    if isinstance(tools, Mapping):
        tools, text = [tools], f"[{text}]"
    if not isinstance(tools, list) or not all(isinstance(tool, Mapping) for tool in tools):
        raise RowError("wrong type", "the tools are not a list of objects")
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
    if any(turn.role == "assistant" and not turn.content.strip() and not turn.tool_calls for turn in turns):
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
    """The answer that stands in a column of its own: text, or turns."""
    value = present(row, source, "response", RESPONSES)
    if isinstance(value, list) and "response" not in source.columns and not _is_turns(value):
        raise RowError("wrong type", "the answer is a list of texts; name a list of two, the better first, as columns.ranked")
    if _is_turns(value):
        return read_turns(value, source)
    answer = text_of(row, source, "response", RESPONSES)
    return [] if answer is None else [Message("assistant", answer)]


# -- kinds --------------------------------------------------------------------------------------------------------------


def _as_document(row: Mapping[str, Any], source: Source) -> Item:
    text = text_of(row, source, "text", TEXTS)
    if text is None and not source.columns.get("text"):
        raise RowError("no known column", f"expected one of {', '.join(TEXTS)}; {columns_of(row)}{NAME_THEM}")
    if text is None or not text.strip():
        raise RowError("empty text")
    return Document(text)


def _as_conversation(row: Mapping[str, Any], source: Source) -> Item:
    if _label(row, source, required=False) is False:
        raise RowError("labelled undesirable")
    turns = _dialogue(row, source)
    if all(turn.weight == 0 for turn in turns if turn.role == "assistant"):
        raise RowError("no trained turn", "the weight of every answer is 0")
    return Conversation(tuple(turns), _tools(row, source))


def _label(row: Mapping[str, Any], source: Source, required: bool) -> bool | None:
    """Whether the answer is wanted. A column that the recipe does not name counts only where it says true or false."""
    value = value_of(row, source, "label", LABELS)
    if isinstance(value, bool) or (not required and (value is None or "label" not in source.columns)):
        return value if isinstance(value, bool) else None
    if value is None:
        raise RowError("no known column", f"no label; {columns_of(row)}{NAME_THEM}")
    raise RowError("wrong type", f"the label is {type(value).__name__}, not true or false")


def _as_labelled(row: Mapping[str, Any], source: Source) -> Item:
    desirable = _label(row, source, required=True)
    *prompt, answer = _dialogue(row, source)
    if answer.tool_calls:
        raise RowError("answer is a tool call")
    return BinaryFeedback(_unweighted(prompt), answer.content, bool(desirable), _tools(row, source))


def _as_preference(row: Mapping[str, Any], source: Source) -> Item:
    (before_chosen, chosen), (before_rejected, rejected) = (_answer(*pair, source) for pair in _pair(row, source))
    if before_chosen != before_rejected:
        raise RowError("prompts differ", "chosen and rejected do not share their first turns")
    prompt = _with_system(before_chosen, row, source) if before_chosen else _turns(row, source)
    if prompt is None:
        raise RowError("no known column", f"no prompt; {columns_of(row)}{NAME_THEM}")
    _check_order(prompt, ends_with_answer=False)
    if not chosen.strip() or not rejected.strip():
        raise RowError("empty answer", "chosen" if not chosen.strip() else "rejected")
    _check_texts(prompt)
    if chosen == rejected:
        raise RowError("chosen equals rejected")
    return PreferencePair(_unweighted(prompt), chosen, rejected, _tools(row, source))


def _pair(row: Mapping[str, Any], source: Source) -> list[tuple[str, Any]]:
    """The better and the worse answer, with what to call them."""
    ranked = value_of(row, source, "ranked", ())
    if ranked is None and not source.columns.get("chosen") and row.get("chosen") is None and _is_pair(row.get("output")):
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


def _is_pair(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(answer, str) for answer in value)


def _answer(side: str, value: Any, source: Source) -> tuple[list[Message], str]:
    """A preference answer: text, one turn, or a whole conversation whose last turn it is."""
    if isinstance(value, str):
        return [], value
    turns = read_turns([value] if isinstance(value, Mapping) else value, source)
    if not turns or turns[-1].role != "assistant":
        raise RowError("no answer", f"'{side}' does not end with the assistant's turn")
    if turns[-1].tool_calls:
        raise RowError("answer is a tool call", side)
    return turns[:-1], turns[-1].content


def _unweighted(turns: Sequence[Message]) -> tuple[Message, ...]:
    """Turns of a prompt, which are never trained."""
    return tuple(replace(turn, weight=None) if turn.weight is not None else turn for turn in turns)


PARSERS: dict[str, Callable[[Mapping[str, Any], Source], Item]] = {
    "pretrain": _as_document,
    "sft": _as_conversation,
    "preference": _as_preference,
    "label": _as_labelled,
}


def parse_row(row: Any, source: Source, kind: str, system: str | None = None) -> Item:
    """The item that a stage of this kind (pretrain, sft, preference, label) makes of a row; RowError says why it cannot.

    `system` is put before conversations that bring no system turn.
    """
    if not isinstance(row, Mapping):
        raise RowError("not an object", type(row).__name__)
    if media := [name for name in MEDIA if row.get(name)]:
        raise RowError("not text", f"the row has {media[0]}")
    item = PARSERS[kind](row, source)
    if system is not None:
        item = _behind(system, item)
    try:
        serialize(item)
    except TypeError:
        raise RowError("undecodable", "the text holds half a surrogate pair, which UTF-8 cannot say") from None
    return item


def _behind(system: str, item: Item) -> Item:
    if isinstance(item, Document):
        return item
    turns = item.messages if isinstance(item, Conversation) else item.prompt
    if turns[0].role == "system":
        return item
    turns = (Message("system", system), *turns)
    return replace(item, messages=turns) if isinstance(item, Conversation) else replace(item, prompt=turns)


# -- what a row looks like ----------------------------------------------------------------------------------------------


def detect_format(row: Any, source: Source) -> str:
    """The kind of stage that a row's columns suggest, the most specific first; RowError where none is known."""
    if not isinstance(row, Mapping):
        raise RowError("not an object", type(row).__name__)

    def has(role: str, usual: Sequence[str]) -> bool:
        return present(row, source, role, usual) is not None

    prompt = present(row, source, "prompt", PROMPTS)
    turns = has("messages", CONVERSATIONS) or _is_turns(prompt)
    if has("ranked", ()) or all(has(side, (side,)) for side in PAIR) or _is_pair(row.get("output")):
        return "preference"
    if turns or (prompt is not None and has("response", RESPONSES)):
        return "label" if isinstance(present(row, source, "label", LABELS), bool) else "sft"
    if has("text", TEXTS):
        return "pretrain"
    if prompt is not None:
        return "sft"
    raise RowError("no known column", columns_of(row))


def format_name(row: Any, source: Source) -> str:
    """The name of a row's schema; 'unknown' where there is none. Never raises."""
    try:
        kind = detect_format(row, source)
    except RowError:
        return "unknown"
    if kind == "pretrain":
        return "text"
    if kind == "label":
        return "kto"
    return _describe_preference(row, source) if kind == "preference" else _describe_conversation(row, source)


def _describe_preference(row: Mapping[str, Any], source: Source) -> str:
    chosen = present(row, source, "chosen", ("chosen",))
    if chosen is None:
        return "ranked list"
    if isinstance(chosen, str):
        return "preference (strings)"
    return "ranked" if isinstance(chosen, Mapping) else "preference (messages)"


def _describe_conversation(row: Mapping[str, Any], source: Source) -> str:
    turns = present(row, source, "messages", CONVERSATIONS)
    prompt = present(row, source, "prompt", PROMPTS)
    turns = prompt if turns is None and _is_turns(prompt) else turns
    if calls_tools(turns, source) or present(row, source, "tools", ("tools",)) not in (None, "", "[]", []):
        return "tool calls"
    if turns is None:
        return "alpaca" if prompt is row.get(INSTRUCTION) else "prompt/response"
    return "openai content parts" if has_parts(turns, source) else keys_of(turns, source)


# -- what an item holds -------------------------------------------------------------------------------------------------


def placeholders(item: Item) -> list[str]:
    """Template variables that nobody filled in, such as {{name}} or <AUTHOR>: each once, in order."""
    if isinstance(item, Document):
        texts = [item.text]
    elif isinstance(item, Conversation):
        texts = [turn.content for turn in item.messages]
    else:
        answers = [item.answer] if isinstance(item, BinaryFeedback) else [item.chosen, item.rejected]
        texts = [*(turn.content for turn in item.prompt), *answers]
    suspect = (text for text in texts if any(mark in text for mark in ("{{", "<NAME>", "<AUTHOR>")))
    return list(dict.fromkeys(found for text in suspect for found in _PLACEHOLDER.findall(text)))


def serialize(item: Item) -> bytes:
    """An item as one line of JSON; TypeError for text that UTF-8 cannot say."""
    if isinstance(item, Document):
        return orjson.dumps(("document", item.text))
    if isinstance(item, Conversation):
        return orjson.dumps(("conversation", _pack(item.messages), item.tools))
    if isinstance(item, PreferencePair):
        return orjson.dumps(("preference", _pack(item.prompt), item.chosen, item.rejected, item.tools))
    return orjson.dumps(("labelled", _pack(item.prompt), item.answer, item.desirable, item.tools))


def from_bytes(line: bytes) -> Item:
    """The item that `to_bytes` wrote."""
    name, *fields = orjson.loads(line)
    if name == "document":
        return Document(*fields)
    made = {"conversation": Conversation, "preference": PreferencePair, "labelled": BinaryFeedback}[name]
    return made(_unpack(fields[0]), *fields[1:])


def _pack(turns: Sequence[Message]) -> list[tuple]:
    """Turns as (role, content), with tool calls and weight behind them where there are any."""
    return [
        (turn.role, turn.content, [(call.name, call.arguments) for call in turn.tool_calls], turn.weight)
        if turn.tool_calls or turn.weight is not None
        else (turn.role, turn.content)
        for turn in turns
    ]


def _unpack(turns: Sequence[list]) -> tuple[Message, ...]:
    return tuple(
        Message(*turn) if len(turn) == 2 else Message(turn[0], turn[1], tuple(ToolCall(*call) for call in turn[2]), turn[3])
        for turn in turns
    )


def parse_eval_row(row: Any, source: Source) -> Item:
    """A row of an evaluation file: whatever kind it is of, or the question alone. RowError where there is neither."""
    for kind in PARSERS:
        try:
            return parse_row(row, source, kind)
        except RowError:
            continue
    question = text_of(row, source, "prompt", PROMPTS) if isinstance(row, Mapping) else None
    if not question:
        raise RowError("no known column", f"no question or text; the row has {columns_of(row)}{NAME_THEM}" if row else "")
    return Document(question)
