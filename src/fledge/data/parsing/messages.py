"""The turns of a conversation in the forms that files use: roles, content, tool calls and weights under many names."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fledge.data.parsing.columns import MAX_NAME, NOT_READ, Row, RowError
from fledge.data.parsing.turn_lists import CONTENT_KEYS, PYTHON, ROLE_KEYS, is_python_value, turn_keys
from fledge.data.parsing.weights import LOSS_KEYS, part_weight, turn_weight
from fledge.recipe.schema import Source
from fledge.tokenizer.template import REASONING_KEYS, Message, ToolCall

ROLES = {
    **dict.fromkeys(("user", "human", "prompter", "question", "用户", "用戶", "人类", "人類", "提问", "问"), "user"),
    **dict.fromkeys(("assistant", "gpt", "chatgpt", "bot", "model", "ai", "answer", "助手", "助理", "机器人", "回答", "答"),
                    "assistant"),
    **dict.fromkeys(("system", "developer", "系统", "系統"), "system"),
    **dict.fromkeys(("tool", "function", "observation", "function_response", "tool_response", "ipython", "工具", "观察"),
                    "tool"),
    **dict.fromkeys(("function_call", "tool_call", "函数调用", "工具调用"), "call"),
}  # fmt: skip
CALL_ROLE = "call"
ADDED_NULLS = "null keys that the columnar file added are left out"
TURN_KEYS = (
    frozenset(("tool_calls", "function_call", "name", "tool_call_id", "tools", "functions", *REASONING_KEYS)) | LOSS_KEYS
)
TEXT_PARTS = ("text", "input_text", "output_text")
REASONING_PARTS, CALL_PARTS = ("reasoning", "thinking"), ("tool_call", "tool_use", "function_call")
PART_KEYS = frozenset(("type", "text", "value", "content", *REASONING_PARTS)) | LOSS_KEYS
ARGUMENT_KEYS = ("arguments", "parameters", "input")
CALL_KEYS = frozenset(("id", "type", "index", "function", "name", *ARGUMENT_KEYS, *CALL_PARTS))


def read_turns(value: Any, row: Row) -> list[Message]:
    """A list of turns as messages. Raises RowError with the number of the turn that cannot be read."""
    if not isinstance(value, list):
        raise RowError("wrong type", f"the turns are {type(value).__name__}, not a list")
    return [_turn(turn, number, row) for number, turn in enumerate(value, 1)]


def calls_tools(value: Any, source: Source) -> bool:
    """Whether any turn of a conversation calls a tool or holds a tool result."""
    keys = turn_keys(source, "role", ROLE_KEYS)
    return any(
        turn.get("tool_calls") or turn.get("function_call") or _role_of(_first_value(turn, keys), source) in ("tool", "call")
        for turn in (value if isinstance(value, list) else ())
        if isinstance(turn, dict)
    )


def has_content_parts(value: Any, source: Source) -> bool:
    """Whether the content of any turn is a list of content parts."""
    keys = turn_keys(source, "content", CONTENT_KEYS)
    turns = value if isinstance(value, list) else ()
    return any(isinstance(turn, dict) and isinstance(_first_value(turn, keys), list) for turn in turns)


def turn_schema(value: Any, source: Source) -> str:
    """The schema of a list of turns, from the keys of the first turn: `messages (role/content)`, `sharegpt (from/value)`, …"""
    turn = value[0] if isinstance(value, list) and value and isinstance(value[0], dict) else {}
    role, content = (
        next((key for key in turn_keys(source, field, usual) if turn.get(key) is not None), usual[0])
        for field, usual in (("role", ROLE_KEYS), ("content", CONTENT_KEYS))
    )
    return f"{'sharegpt' if role == 'from' else 'messages'} ({role}/{content})"


def json_text(value: Any, what: str) -> tuple[Any, str]:
    """(value, JSON text) of data that files store either as JSON text or as the value itself.

    Raises RowError for text that is not JSON, and for values that JSON or UTF-8 cannot represent.
    """
    try:
        parsed = json.loads(value) if isinstance(value, str) else value
        text = json.dumps(parsed, ensure_ascii=False, allow_nan=False)
        text.encode("utf-8")
    except UnicodeEncodeError:
        raise RowError("undecodable", f"{what} hold half a surrogate pair") from None
    except (TypeError, ValueError, RecursionError) as error:
        printed = isinstance(value, str) and is_python_value(value)
        raise RowError(f"{what} are not JSON", PYTHON if printed else str(error)) from None
    return parsed, value if isinstance(value, str) else text


def _turn(turn: Any, number: int, row: Row) -> Message:
    if not isinstance(turn, dict):
        raise RowError("wrong type", f"turn {number} is {type(turn).__name__}, not an object")
    role_keys, content_keys = turn_keys(row.source, "role", ROLE_KEYS), turn_keys(row.source, "content", CONTENT_KEYS)
    named, content = _first_value(turn, role_keys), _first_value(turn, content_keys)
    role = _role_of(named, row.source)
    parts = _Parts.of(content, number, row) if isinstance(content, list) else _Parts(_text(content, role, number, row))
    reasoning = (_reasoning(turn, number) or parts.reasoning) if len(turn) > 2 or parts.text is None else parts.reasoning
    calls = parts.calls + _calls(turn.get("tool_calls") or turn.get("function_call"), number, row)
    if parts.text is None and not calls and not reasoning:
        raise RowError("wrong type", f"turn {number} has no {' or '.join(content_keys)}; it has {', '.join(map(str, turn))}")
    if named is None:
        raise RowError("unknown role", f"turn {number} has no {' or '.join(role_keys)}; it has {', '.join(map(str, turn))}")
    if role is None:
        raise RowError("unknown role", f"turn {number}: '{named}'; name it in the source's roles, such as {{{named}: user}}")
    if len(turn) > 2:
        _notice_unknown_keys(turn, TURN_KEYS, (role_keys, content_keys), "turns", number, row)
    text = parts.text or ""
    if role == CALL_ROLE:
        role, text, calls = "assistant", "", _calls(parts.text, number, row)
    if calls and role != "assistant":
        raise RowError("wrong type", f"turn {number} is {role} and has tool calls")
    if reasoning and role != "assistant":
        raise RowError("wrong type", f"turn {number} is {role} and has reasoning")
    name, call_id = _optional_text(turn, "name", number), _optional_text(turn, "tool_call_id", number)
    weight = turn_weight(turn, role, number, row)
    if parts.weight is not None and role == "assistant":
        weight = parts.weight if weight is None else weight * parts.weight
    return Message(role, text, calls, weight, reasoning=reasoning, name=name, tool_call_id=call_id)


def _notice_unknown_keys(
    values: Mapping[str, Any], known: frozenset[str], used: Sequence[Sequence[str]], what: str, number: int, row: Row
) -> None:
    """An event for each key that nothing reads, with the value of one turn. `used`: of each of these keys the first is read."""
    read = {next((key for key in keys if values.get(key) is not None), "") for keys in used}
    for key, value in values.items():
        if key not in known and key not in read and value is not None and value not in ("", [], {}):
            row.event(f"key '{str(key)[:MAX_NAME]}' of {what} {NOT_READ}", f"turn {number}: {key}: {str(value)[:80]}")


def _first_value(turn: Mapping[str, Any], keys: Sequence[str]) -> Any:
    for key in keys:
        value = turn.get(key)
        if value is not None:
            return value
    return None


def _role_of(name: Any, source: Source) -> str | None:
    if not isinstance(name, str):
        return None
    return source.roles.get(name) or ROLES.get(name.strip().lower())


def _text(content: Any, role: str | None, number: int, row: Row) -> str | None:
    """The content of a turn as text; None if there is none. A tool's result may be any JSON value."""
    if content is None or isinstance(content, str):
        return content
    if role == "tool":
        row.event("results of tools that are not text are written as JSON", f"turn {number}", changed=True)
        return json_text(content, "tool results")[1]
    raise RowError("wrong type", f"the content of turn {number} is {type(content).__name__}, not text")


def _reasoning(turn: Mapping[str, Any], number: int) -> str | None:
    """What the assistant thought, where a key of its own holds it; None if there is none."""
    key = next((key for key in REASONING_KEYS if turn.get(key) is not None), None)
    reasoning = turn[key] if key else None
    if reasoning is not None and not isinstance(reasoning, str):
        raise RowError("wrong type", f"the {key} of turn {number} is {type(reasoning).__name__}, not text")
    return reasoning if reasoning and reasoning.strip() else None


def _optional_text(turn: Mapping[str, Any], key: str, number: int) -> str | None:
    """The text under a key that a turn need not have. A number is read as its text, as some files hold ids."""
    value = turn.get(key)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if value is not None and not isinstance(value, str):
        raise RowError("wrong type", f"the {key} of turn {number} is {type(value).__name__}, not text")
    return value or None


@dataclass(frozen=True)
class _Parts:
    """The content of a turn: its text (None if it has none), and what its parts say besides."""

    text: str | None
    reasoning: str | None = None
    calls: tuple[ToolCall, ...] = ()
    weight: float | None = None

    @classmethod
    def of(cls, parts: Sequence[Any], number: int, row: Row) -> "_Parts":
        """The content parts of a turn: {type: text, text: …}, {type: reasoning, …} or {type: tool_call, …}."""
        texts: list[str] = []
        thoughts: list[str] = []
        calls: list[ToolCall] = []
        for part in parts:
            if not isinstance(part, dict):
                raise RowError("wrong type", f"a content part of turn {number} is {type(part).__name__}, not an object")
            kind = part.get("type")
            if kind in TEXT_PARTS:
                texts.append(_part_text(part, ("text", "value"), number, row))
            elif kind in REASONING_PARTS:
                thoughts.append(_part_text(part, (kind, "text", "value", "content"), number, row))
            elif kind in CALL_PARTS:
                calls += _calls(_first_value(part, ("value", kind)) or part, number, row)
            else:
                raise RowError("not text", f"turn {number} has a part of type '{kind}'")
        text = "".join(texts) if texts or not (thoughts or calls) else None
        return cls(text, "\n".join(thoughts) or None, tuple(calls), part_weight(parts, number, row))


def _part_text(part: Mapping[str, Any], keys: tuple[str, ...], number: int, row: Row) -> str:
    text = _first_value(part, keys)
    if not isinstance(text, str):
        raise RowError("wrong type", f"a content part of turn {number} has no text")
    if len(part) > 2:
        _notice_unknown_keys(part, PART_KEYS, (), "content parts", number, row)
    return text


def _calls(value: Any, number: int, row: Row) -> tuple[ToolCall, ...]:
    """Tool calls, one or a list, in OpenAI's form or as {name, arguments}, as values or as JSON text."""
    if value is None or value == "" or value == []:
        return ()
    parsed, _ = json_text(value, "tool calls")
    return tuple(_call(call, number, row) for call in (parsed if isinstance(parsed, list) else [parsed]))


def without_added_nulls(value: Any, what: str, row: Row) -> Any:
    """A value of a columnar file without the null keys that such files add to objects, so that all have the same keys. JSON
    text and values of other files are returned as they are."""
    if not row.columnar or isinstance(value, str):
        return value
    stripped, removed = _without_nulls(value)
    if removed:
        row.event(ADDED_NULLS, f"{what} without {', '.join(sorted(removed)[:5])}", changed=True)
    return stripped


def _without_nulls(value: Any) -> tuple[Any, set[str]]:
    """(the value without the null values of objects, the keys of those)."""
    removed: set[str] = set()

    def stripped(inner: Any) -> Any:
        if isinstance(inner, Mapping):
            removed.update(str(key) for key, entry in inner.items() if entry is None)
            return {key: stripped(entry) for key, entry in inner.items() if entry is not None}
        return [stripped(entry) for entry in inner] if isinstance(inner, list) else inner

    return stripped(value), removed


def _call(call: Any, number: int, row: Row) -> ToolCall:
    function = call.get("function", call) if isinstance(call, dict) else None
    name = function.get("name") if isinstance(function, dict) else None
    if not isinstance(function, dict) or not isinstance(name, str) or not name:
        raise RowError("wrong type", f"a tool call of turn {number} has no name")
    for values in (call, function):
        _notice_unknown_keys(values, CALL_KEYS, (), "tool calls", number, row)
    raw_arguments = without_added_nulls(_first_value(function, ARGUMENT_KEYS), f"the arguments of '{name}'", row)
    arguments, text = json_text("{}" if raw_arguments is None or raw_arguments == "" else raw_arguments, "tool calls")
    if not isinstance(arguments, dict):
        type_name = type(arguments).__name__
        raise RowError("wrong type", f"the arguments of '{name}' in turn {number} are {type_name}, not an object")
    return ToolCall(name, text, _optional_text(call, "id", number))
