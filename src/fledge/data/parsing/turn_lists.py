"""Lists of turns, wherever a file keeps them: as a value, as JSON text, inside an object, or as pairs."""

import re
from contextlib import suppress
from typing import Any

import orjson

from fledge.recipe.schema import Source

ROLE_KEYS, CONTENT_KEYS = ("role", "from"), ("content", "value")
CONVERSATION_KEYS = ("messages", "conversations", "conversation")
PAIR_KEYS = ("input", "output")  # of xtuner's conversations
PYTHON = "written as Python prints a value, not as JSON: write it with json.dumps"
PYTHON_TURNS = re.compile(r"\s*\[?\s*\{'[^']{1,40}'\s*:")
TRANSCRIPT = re.compile(r"(?:\A\s*|\n\s*\n\s*)(Human|Assistant):")
TRANSCRIPT_ROLES = {"Human": "user", "Assistant": "assistant"}


def turn_keys(source: Source, field: str, usual: tuple[str, ...]) -> tuple[str, ...]:
    """The keys that hold a turn's role or content: as set in the recipe, else the usual ones."""
    named = source.turns.get(field)  # type: ignore[call-overload]
    return usual if named is None else (named,)


def is_turns(value: Any, source: Source) -> bool:
    """Whether a value is a list of turns: of objects, of which the first has a role."""
    keys = turn_keys(source, "role", ROLE_KEYS)
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(turn, dict) for turn in value)
        and any(key in value[0] for key in keys)
    )


def is_list_of_other_than_texts(value: Any) -> bool:
    """Whether a value is a list that cannot be a text in pieces."""
    return isinstance(value, list) and not all(isinstance(entry, str) for entry in value)


def list_in_text(value: Any) -> Any:
    """The list that a text holds as JSON; any other value as it is."""
    if isinstance(value, str) and value.lstrip()[:1] == "[":
        with suppress(orjson.JSONDecodeError):
            return orjson.loads(value)
    return value


def turns_in_text(text: str, source: Source) -> list[Any] | None:
    """The turns that a text holds as JSON: a list of turns, one turn, or an object with such a list; None for other texts."""
    if text.lstrip()[:1] not in ("[", "{"):
        return None
    with suppress(orjson.JSONDecodeError):
        return turns_of(orjson.loads(text), source)
    return None


def turns_of(value: Any, source: Source) -> list[Any] | None:
    """The turns of a list, of a single turn, or of an object that holds a list of turns; None for other values."""
    if is_turns(value, source):
        return value
    if isinstance(value, dict):
        if is_turns([value], source):
            return [value]
        return next((value[key] for key in CONVERSATION_KEYS if is_turns(value.get(key), source)), None)
    return None


def is_python_value(text: str) -> bool:
    """Whether a text is an object or a list of objects as Python prints them, which is not JSON."""
    return "{'" in text[:200] and PYTHON_TURNS.match(text[:200]) is not None


def pairs_as_turns(value: list[Any], source: Source) -> list[Any]:
    """A list of {input, output} as turns of user and assistant, `system` before them; other lists stay as they are."""
    role = turn_keys(source, "role", ROLE_KEYS)
    if not all(isinstance(pair, dict) and PAIR_KEYS[1] in pair and not any(key in pair for key in role) for pair in value):
        return value
    turns = []
    for pair in value:
        question, answer = (
            {role[0]: name, "content": pair.get(key)} for key, name in zip(PAIR_KEYS, ("user", "assistant"), strict=True)
        )
        rest = {key: item for key, item in pair.items() if key not in (*PAIR_KEYS, "system")}
        system = [{role[0]: "system", "content": pair["system"]}] if pair.get("system") and not turns else []
        turns += [*system, question, {**rest, **answer}]
    return turns


def transcript_turns(text: str) -> list[tuple[str, str]] | None:
    """(role, content) of the turns of a text in which `Human:` and `Assistant:` speak in turn; None for other texts."""
    if not text.lstrip().startswith("Human:"):
        return None
    _, *pieces = TRANSCRIPT.split(text)
    turns = [(TRANSCRIPT_ROLES[name], content.strip()) for name, content in zip(pieces[::2], pieces[1::2], strict=True)]
    return turns if any(role == "assistant" for role, _ in turns) else None
