"""The shape of a .json or .jsonl file, whatever its name promises: an array, an object that holds one, lines, or values over
several lines. It is decided by the beginning of the file."""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any, Literal

import orjson

from fledge.data.reading.blocks import BLOCK, DamagedFile
from fledge.data.reading.encodings import utf8_blocks
from fledge.data.reading.values import first_value
from fledge.errors import FledgeError

Shape = Literal["array", "object", "lines", "values"]
NOT_AN_ARRAY = "expected a JSON array of rows"
JSON_LINES = (".jsonl", ".ndjson")
ROLE_KEYS = ("role", "from")  # of a turn, where the recipe names no other key
CONVERSATIONS = ("messages", "conversations", "conversation")
FIRST_ELEMENT = 1 << 16  # bytes in which a turn is looked for
HINT_START = "a JSON file begins with [ or {; a file of plain text ends in .txt"


def shape_of(file: Path, encoding: str, extension: str, role_key: str | None = None) -> Shape:
    """The shape of a file with this extension. `role_key`: the key of a turn's role that the recipe names.

    Raises FledgeError for a .json file that begins with neither bracket."""
    head, complete = _head(file, encoding)
    text, of_lines = head.lstrip(), extension in JSON_LINES
    if not text:
        return "lines" if of_lines else "array"
    keys = ROLE_KEYS if role_key is None else (role_key,)
    if not of_lines and text.startswith(b"[") and not _begins_with_turn(text, keys):
        return "array"
    lines = _first_lines(text, complete, 2)
    parsed = [value for value in (_parsed(line) for line in lines) if value is not None]
    if text[:1] not in (b"[", b"{"):
        if of_lines or (len(parsed) == 2 and text[:1] == b'"'):
            return "lines"
        where = f"{file}:{head[: len(head) - len(text)].count(10) + 1}"
        raise FledgeError(f"{NOT_AN_ARRAY}; the file begins with {text[:1]!r}", where=where, hint=HINT_START)
    if len(lines) == 2 and _are_lines(lines, parsed, of_lines, keys):
        return "lines"
    return (
        _shape_of_jsonl(text, lines[0] if lines else b"", complete, keys) if of_lines else _shape_of_json(text, complete, keys)
    )


def _begins_with_turn(text: bytes, role_keys: tuple[str, ...]) -> bool:
    """Whether the first element of an array is a turn, so that the array may be a conversation."""
    element = first_value(text[1:], FIRST_ELEMENT)
    return element is not None and is_turns([_parsed(element[0])], role_keys)


def _head(file: Path, encoding: str) -> tuple[bytes, bool]:
    """The first MiB of a file as UTF-8, and whether that is all of it."""
    head = b""
    with suppress(DamagedFile):  # reported when the rows are read
        for block in utf8_blocks(file, encoding):
            head += block
            if len(head) >= BLOCK:
                return head, False
    return head, True


def _first_lines(text: bytes, complete: bool, count: int) -> list[bytes]:
    """The first lines that are not blank, without a comma at the end; the last one of a head is not taken if it may go on."""
    lines = text.split(b"\n", 50)
    lines = lines if complete and len(lines) <= 50 else lines[:-1]
    return [line.strip().removesuffix(b",") for line in lines if line.strip()][:count]


def _parsed(text: bytes) -> Any:
    """The JSON value of a text; None if it is not JSON."""
    with suppress(orjson.JSONDecodeError):
        return orjson.loads(text)
    return None


def _are_lines(lines: list[bytes], parsed: list[Any], of_lines: bool, role_keys: tuple[str, ...]) -> bool:
    """Whether a file is one of lines, seen from its first two: one of them is a complete row. In a .json file, both must
    begin like objects, or be lists of turns."""
    if of_lines:
        return bool(parsed) and lines[0] not in (b"[", b"{")
    objects = bool(parsed) and all(line.startswith(b"{") for line in lines)
    return objects or (len(parsed) == 2 and all(is_turns(value, role_keys) for value in parsed))


def _shape_of_jsonl(text: bytes, line: bytes, complete: bool, role_keys: tuple[str, ...]) -> Shape:
    """The shape of a file that is to hold one value a line, but whose first lines do not; `line` is the first one."""
    value = _parsed(line)
    if value is not None:
        return "array" if isinstance(value, list) and not is_turns(value, role_keys) else "lines"
    found = first_value(text)
    if found is not None and _parsed(found[0]) is not None:
        return "values" if text.startswith(b"{") else _shape_of_json(text, complete, role_keys)
    element = first_value(text[1:]) if text.startswith(b"[") else None
    first = None if element is None else _parsed(element[0])
    in_array = line == b"[" or (first is not None and not is_turns([first], role_keys))
    return "array" if text.startswith(b"[") and in_array else "lines"


def _shape_of_json(text: bytes, complete: bool, role_keys: tuple[str, ...]) -> Shape:
    """The shape of a text that begins with a bracket, from its first value and from what follows it."""
    bracket: Shape = "array" if text.startswith(b"[") else "object"
    found = first_value(text)
    value = None if found is None else _parsed(found[0])
    if found is None or value is None:
        return bracket
    rest = found[1].lstrip(b", \t\r\n")
    if is_turns(value, role_keys):
        return "values"
    if rest:
        return "values" if bracket == "object" and rest[:1] in (b"{", b"[") else bracket
    return "values" if complete and bracket == "object" and _is_row(value, role_keys) else bracket


def is_turns(value: Any, role_keys: tuple[str, ...] = ROLE_KEYS) -> bool:
    """Whether a value is a list of turns: of objects that each have a role."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(turn, Mapping) and any(key in turn for key in role_keys) for turn in value)
    )


def _is_row(value: Mapping[str, Any], role_keys: tuple[str, ...]) -> bool:
    """Whether the only object of a file is a row itself: it holds turns or a text, and no list of other objects."""
    if any(is_turns(value.get(name), role_keys) for name in CONVERSATIONS):
        return True
    holds_rows = any(
        isinstance(item, list) and item and all(isinstance(row, Mapping) for row in item) for item in value.values()
    )
    return not holds_rows and any(isinstance(item, str) for item in value.values())
