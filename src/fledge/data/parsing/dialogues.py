"""The turns, tools and answers in the columns of a row."""

import re
from collections.abc import Sequence
from typing import Any

import orjson

from fledge.data.parsing.columns import INSTRUCTION, UNKNOWN, Row, RowError
from fledge.data.parsing.messages import json_text, read_turns, without_added_nulls
from fledge.data.parsing.turn_lists import (
    PYTHON,
    ROLE_KEYS,
    is_list_of_other_than_texts,
    is_python_value,
    is_turns,
    list_in_text,
    pairs_as_turns,
    transcript_turns,
    turn_keys,
    turns_in_text,
    turns_of,
)
from fledge.data.parsing.turn_order import in_order
from fledge.data.parsing.weights import apply_row_weights
from fledge.tokenizer.template import Message

FUNCTIONS = "functions"  # OpenAI's older name of tools: the functions alone, without {"type": "function", …} around each
INSTANCES = "instances"  # seed tasks': a list of {input, output} that follow one instruction
ALTERNATING = ("user", "assistant")
RENDERED_TURN = re.compile(
    r"(?:<\|im_start\|>|<\|start_header_id\|>|<start_of_turn>)(?:system|user|assistant|model)|\[/INST\]|<\|assistant\|>"
)
"""The beginning of a turn, or of an answer, as chat templates write it."""
RENDERED_WAY_ON = (
    "; its text is a conversation that a chat template has already written: give the turns as messages, or train every token "
    "of it in a stage of kind pretrain with data.parse_special_tokens: true"
)


def turns_of_row(row: Row) -> list[Message] | None:
    """The turns of a row, from a conversation column or from prompt columns (with input, history, system), with the weights
    that columns give them. None if it has neither."""
    value = conversation_of(row)
    if value is not None:
        return with_own_system(read_turns(value, row), row)
    prompt = row.text("prompt", joined=False)
    if prompt is None:
        return None
    transcript = transcript_turns(prompt)
    if transcript is not None and transcript[-1] == ("assistant", ""):  # the beginning of an answer
        row.event("a transcript is read as turns", changed=True)
        return with_own_system([Message(role, content) for role, content in transcript[:-1]], row)
    question = "\n".join(text for text in (prompt, _query(row)) if text)
    return with_own_system([*_history(row.value("history")), Message("user", question)], row)


def conversation_of(row: Row) -> Any:
    """The list of turns, where the row has one: in a conversation column, or as its prompt."""
    conversation = find_conversation(row)
    if conversation is not None:
        row.read.add(row.conversation_column)
    return conversation


def find_conversation(row: Row) -> Any:
    """Like `conversation_of`, but its column does not count as read."""
    if row.conversation is UNKNOWN:
        row.conversation = _find_conversation(row)
    return row.conversation


def _find_conversation(row: Row) -> Any:
    if not row.is_named("prompt") or row.source.columns.get("messages"):
        row.named("messages")
        row.conversation_column, value = row.find("messages")
        if value is not None:
            return _as_turns(value, row)
    row.conversation_column, prompt = row.find("prompt")
    if isinstance(prompt, str):
        return _in_text(prompt, "prompt", row)
    return prompt if is_list_of_other_than_texts(prompt) or prompt == [] else None


def _as_turns(value: Any, row: Row) -> Any:
    """The value of a conversation column as a list of turns: parsed if it is JSON text, taken out of an object, or made of
    texts that alternate, where the recipe says so."""
    if isinstance(value, str):
        text = value.lstrip()
        if is_python_value(text):
            raise RowError("wrong type", f"the turns are {PYTHON}")
        if text[:1] in ("[", "{"):
            try:
                value = orjson.loads(text)
            except orjson.JSONDecodeError as error:
                raise RowError("wrong type", f"the turns are text that is not JSON: {error}") from None
    if isinstance(value, dict):
        return turns_of(value, row.source) or value
    if not isinstance(value, list) or not value:
        return value
    if all(isinstance(text, str) for text in value):
        return _alternating(value, row)
    if all(isinstance(entry, dict) for entry in value) and not is_turns(value, row.source):
        return pairs_as_turns(value, row.source)
    return value


def _alternating(texts: Sequence[str], row: Row) -> list[dict[str, str]]:
    if not row.source.alternating_turns:
        detail = f"turn 1 is str, not an object; the list holds {len(texts)} texts: write alternating_turns: true if user and "
        raise RowError("wrong type", f"{detail}assistant speak in turn")
    role = turn_keys(row.source, "role", ROLE_KEYS)[0]
    content = turn_keys(row.source, "content", ("content",))[0]
    names = {name: next((own for own, meant in row.source.roles.items() if meant == name), name) for name in ALTERNATING}
    return [{role: names[ALTERNATING[number % 2]], content: text} for number, text in enumerate(texts)]


def _in_text(text: str, column: str, row: Row) -> list[Any] | None:
    """The turns in a text that may be plain text as well; RowError for turns that Python printed."""
    if is_python_value(text):
        raise RowError("wrong type", f"'{column}' is {PYTHON}")
    turns = turns_in_text(text, row.source)
    if turns is not None:
        row.event(f"JSON text in '{column}' is read as turns", changed=True)
    return turns


def _query(row: Row) -> str:
    """The text to append to the prompt: alpaca's `input`, or the query column that the recipe names."""
    alpaca = row.source.columns.get("prompt", INSTRUCTION) == INSTRUCTION
    if not row.is_named("query") and not (alpaca and row.usual("query") and not _prompt_is_query(row)):
        return ""
    extra = row.text("query")
    return extra if extra and extra.strip() else ""


def _prompt_is_query(row: Row) -> bool:
    """Whether the prompt was found in the column that would be appended to it."""
    first = next((name for name in row.usual("prompt") if dict.get(row, name) is not None), None)
    return first in row.usual("query")


def _history(value: Any) -> list[Message]:
    value = list_in_text(value)
    if not value:
        return []
    pairs = value if isinstance(value, list) else [value]
    if not all(isinstance(p, list) and len(p) == 2 and all(isinstance(text, str) for text in p) for p in pairs):
        raise RowError("wrong type", "the history is not a list of [question, answer]")
    return [Message(role, text) for pair in pairs for role, text in zip(ALTERNATING, pair, strict=True)]


def with_own_system(turns: list[Message], row: Row) -> list[Message]:
    """The turns with the weights and behind the system prompt of the row's columns, unless they begin with one."""
    turns = apply_row_weights(turns, row)
    if turns and turns[0].role == "system":
        row.named("system")
        return turns
    system = row.text("system")
    return [Message("system", system), *turns] if system else turns


def tools_of_row(row: Row) -> str | None:
    """The tool descriptions as JSON text, from their column or from the system turn; None where there are none."""
    value, functions = row.value("tools"), None
    if value is None and not row.is_named("tools"):
        turns = conversation_of(row)
        first = turns[0] if isinstance(turns, list) and turns and isinstance(turns[0], dict) else {}
        value, functions = first.get("tools"), row.get(FUNCTIONS) or first.get(FUNCTIONS)
        row.read.add(FUNCTIONS)
    value = functions if value is None else value
    if value is None or (isinstance(value, str) and not value.strip()):
        return None
    tools, text = json_text(without_added_nulls(value, "tools", row), "tools")
    if isinstance(tools, dict):
        tools, text = [tools], f"[{text}]"
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise RowError("wrong type", "the tools are not a list of objects")
    if value is functions:
        wrapped = [tool if "function" in tool else {"type": "function", "function": tool} for tool in tools]
        _, text = json_text(wrapped, "tools")
    return text if tools else None


def check_texts(turns: Sequence[Message]) -> None:
    """RowError for an answer or a question without text."""
    if any(turn.role == "assistant" and not turn.full_content.strip() and not turn.tool_calls for turn in turns):
        raise RowError("empty answer")
    if any(turn.role == "user" and not turn.content.strip() for turn in turns):
        raise RowError("empty question")


def dialogue_of_row(row: Row) -> list[Message]:
    """All turns of a row, its answer last. RowError if it has no answer, or turns in another order."""
    _open_instances(row)
    turns = turns_of_row(row)
    if turns is None:
        what = f"no conversation, prompt or instruction; {row.description()}"
        raise RowError("no known column", what + (_for_documents(row) or row.naming_hint("prompt", "response")))
    if turns and turns[-1].role in ("user", "tool"):
        turns += _response(row)
    if turns and turns[-1].role == "user" and "chosen" in row and "rejected" in row:
        raise RowError("no answer", "the row has chosen and rejected: it is for a preference stage")
    if turns and turns[-1].role == "user" and not any(turn.role == "assistant" for turn in turns) and not row.whole:
        hint = f"no column holds one; {row.description()}; name it, such as columns: {{response: NAME}}"
        raise RowError("no answer", hint)
    turns = in_order(turns, row, ends_with_answer=True)
    check_texts(turns)
    return turns


def _for_documents(row: Row) -> str:
    text = row.present("text")
    if isinstance(text, str) and RENDERED_TURN.search(text):
        return RENDERED_WAY_ON
    text = text if row.whole or set(row) == {"text"} else None
    return "; a text without a question is for a stage of kind pretrain" if isinstance(text, str) else ""


def _open_instances(row: Row) -> None:
    """Put the first instance of a seed task beside its instruction."""
    instances = dict.get(row, INSTANCES)
    if not isinstance(instances, list) or not instances or row.present("response") is not None:
        return
    first = instances[0]
    if isinstance(first, dict) and "output" in first:
        row.read.add(INSTANCES)
        row.add_columns({"input": first.get("input"), "output": first["output"]})
        if len(instances) > 1:
            row.event("of several instances only the first is read", f"{len(instances)} instances")


def _response(row: Row) -> list[Message]:
    """The answer in a column of its own, as turns; empty if the row has no such column."""
    value = row.present("response")
    if isinstance(value, str):
        value = _in_text(value, "response", row) or value
    if isinstance(value, list) and not row.is_named("response") and not is_list_of_other_than_texts(value):
        raise RowError("wrong type", "the answer is a list of texts; name a list of two, the better first, as columns.ranked")
    if is_list_of_other_than_texts(value):
        return read_turns(value, row)
    answer = row.text("response")
    return [] if answer is None else apply_row_weights([Message("assistant", answer)], row)
