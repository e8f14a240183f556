"""The turns of a conversation in the forms that files use: roles, content, tool calls and weights under many names."""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from fledge.data.parsing.columns import RowError
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
ROLE_KEYS, CONTENT_KEYS = ("role", "from"), ("content", "value")
MIN_WEIGHT, MAX_WEIGHT = 1e-6, 1e6
WEIGHT_KEYS, TRAIN_KEYS = ("weight", "loss_weight"), ("train", "trainable")


def read_turns(value: Any, source: Source) -> list[Message]:
    """A list of turns as messages. Raises RowError with the number of the turn that cannot be read."""
    if not isinstance(value, list):
        raise RowError("wrong type", f"the turns are {type(value).__name__}, not a list")
    return [_turn(turn, number, source) for number, turn in enumerate(value, 1)]


def calls_tools(value: Any, source: Source) -> bool:
    """Whether any turn of a conversation calls a tool or holds a tool result."""
    keys = _turn_keys(source, "role", ROLE_KEYS)
    return any(
        turn.get("tool_calls") or turn.get("function_call") or _role_of(_first_value(turn, keys), source) in ("tool", "call")
        for turn in (value if isinstance(value, list) else ())
        if isinstance(turn, Mapping)
    )


def has_content_parts(value: Any, source: Source) -> bool:
    """Whether the content of any turn is a list of content parts."""
    keys = _turn_keys(source, "content", CONTENT_KEYS)
    turns = value if isinstance(value, list) else ()
    return any(isinstance(turn, Mapping) and isinstance(_first_value(turn, keys), list) for turn in turns)


def turn_schema(value: Any, source: Source) -> str:
    """The schema of a list of turns, from the keys of the first turn: `messages (role/content)`, `sharegpt (from/value)`, …"""
    turn = value[0] if isinstance(value, list) and value and isinstance(value[0], Mapping) else {}
    role, content = (
        next((key for key in _turn_keys(source, field, usual) if turn.get(key) is not None), usual[0])
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
        raise RowError(f"{what} are not JSON", str(error)) from None
    return parsed, value if isinstance(value, str) else text


def _turn(turn: Any, number: int, source: Source) -> Message:
    if not isinstance(turn, Mapping):
        raise RowError("wrong type", f"turn {number} is {type(turn).__name__}, not an object")
    content = _content(turn, number, source)
    reasoning = _reasoning(turn, number)
    named = _first_value(turn, _turn_keys(source, "role", ROLE_KEYS))
    role = _role_of(named, source)
    calls = _calls(turn.get("tool_calls") or turn.get("function_call"), number)
    if content is None and not calls and not reasoning:
        expected = " or ".join(_turn_keys(source, "content", CONTENT_KEYS))
        raise RowError("wrong type", f"turn {number} has no {expected}; it has {', '.join(map(str, turn))}")
    if named is None:
        expected = " or ".join(_turn_keys(source, "role", ROLE_KEYS))
        raise RowError("unknown role", f"turn {number} has no {expected}; it has {', '.join(map(str, turn))}")
    if role is None:
        raise RowError("unknown role", f"turn {number}: '{named}'; name it in the source's roles, such as {{{named}: user}}")
    if role == "call":
        role, content, calls = "assistant", "", _calls(content, number)
    if calls and role != "assistant":
        raise RowError("wrong type", f"turn {number} is {role} and has tool calls")
    if reasoning and role != "assistant":
        raise RowError("wrong type", f"turn {number} is {role} and has reasoning")
    name, call_id = (_optional_text(turn, key, number) for key in ("name", "tool_call_id"))
    return Message(role, content or "", calls, _weight(turn, role, number),
                   reasoning=reasoning, name=name, tool_call_id=call_id)  # fmt: skip


def _turn_keys(source: Source, field: str, usual: Sequence[str]) -> Sequence[str]:
    """The keys that hold a turn's role or content: as set in the recipe, else the usual ones."""
    named = source.turns.get(field)  # type: ignore[call-overload]
    return usual if named is None else (named,)


def _first_value(turn: Mapping[str, Any], keys: Sequence[str]) -> Any:
    return next((turn[key] for key in keys if turn.get(key) is not None), None)


def _role_of(name: Any, source: Source) -> str | None:
    if not isinstance(name, str):
        return None
    return source.roles.get(name) or ROLES.get(name.strip().lower())


def _content(turn: Mapping[str, Any], number: int, source: Source) -> str | None:
    """The text of a turn; None if there is none."""
    content = _first_value(turn, _turn_keys(source, "content", CONTENT_KEYS))
    if isinstance(content, list):
        content = "".join(_content_part(item, number) for item in content)
    if content is not None and not isinstance(content, str):
        raise RowError("wrong type", f"the content of turn {number} is {type(content).__name__}, not text")
    return content


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


def _content_part(item: Any, number: int) -> str:
    """The text of one content part: OpenAI's {"type": "text", "text": …}."""
    if not isinstance(item, Mapping):
        raise RowError("wrong type", f"a content part of turn {number} is {type(item).__name__}, not an object")
    if item.get("type") != "text":
        raise RowError("not text", f"turn {number} has a part of type '{item.get('type')}'")
    text = _first_value(item, ("text", "value"))
    if not isinstance(text, str):
        raise RowError("wrong type", f"a content part of turn {number} has no text")
    return text


def _calls(value: Any, number: int) -> tuple[ToolCall, ...]:
    """Tool calls, one or a list, in OpenAI's form or as {name, arguments}, as values or as JSON text."""
    if value is None or value == "" or value == []:
        return ()
    parsed, _ = json_text(value, "tool calls")
    return tuple(_call(call, number) for call in (parsed if isinstance(parsed, list) else [parsed]))


def _call(call: Any, number: int) -> ToolCall:
    function = call.get("function", call) if isinstance(call, Mapping) else None
    name = function.get("name") if isinstance(function, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(name, str) or not name:
        raise RowError("wrong type", f"a tool call of turn {number} has no name")
    raw_arguments = function.get("arguments")
    arguments, text = json_text("{}" if raw_arguments is None or raw_arguments == "" else raw_arguments, "tool calls")
    if not isinstance(arguments, Mapping):
        type_name = type(arguments).__name__
        raise RowError("wrong type", f"the arguments of '{name}' in turn {number} are {type_name}, not an object")
    return ToolCall(name, text, _optional_text(call, "id", number))


def _weight(turn: Mapping[str, Any], role: str, number: int) -> float | None:
    """The loss weight of a turn, given as a number or as true/false; only answers can have one."""
    value = _first_value(turn, WEIGHT_KEYS)
    if value is None:
        value = _first_value(turn, TRAIN_KEYS)
        if value is not None and not isinstance(value, bool):
            raise RowError("wrong type", f"whether turn {number} is trained is {type(value).__name__}, not true or false")
    elif isinstance(value, bool) or not isinstance(value, int | float):
        raise RowError("wrong type", f"the weight of turn {number} is {type(value).__name__}, not a number")
    if value is None:
        return None
    if value and not MIN_WEIGHT <= value <= MAX_WEIGHT:  # also excludes NaN; smaller or larger weights would be lost in float32
        raise RowError("wrong weight", f"the weight of turn {number} is {str(value)[:40]}")
    if role != "assistant" and value:
        raise RowError("wrong weight", f"turn {number} is {role} and has weight {value}, but only answers are trained")
    return float(value) if role == "assistant" else None
