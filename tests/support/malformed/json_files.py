"""Malformed JSON and JSON Lines files, and rows of valid JSON that no stage can use."""

import gzip
import json
from typing import Any

import zstandard

from fledge.data.reading.formats import MAX_NESTING
from tests.support.malformed.case import GOOD, LINE, Case, as_parquet

BAD_JSON: dict[str, tuple[bytes, str]] = {
    "no JSON": (b"hello", "invalid JSON"),
    "an open object": (b'{"text": "x"', "invalid JSON"),
    "an open string": (b'{"text": "x}', "invalid JSON"),
    "an open array": (b'{"text": ["x"}', "invalid JSON"),
    "a closed bracket too many": (b'{"text": "x"}}', "invalid JSON"),
    "two objects": (b'{"text": "x"} {"text": "y"}', "invalid JSON"),
    "two objects with a lone carriage return": (b'{"text": "x"}\r{"text": "y"}', "invalid JSON"),
    "a trailing comma": (b'{"text": "x",}', "invalid JSON"),
    "no colon": (b'{"text" "x"}', "invalid JSON"),
    "no value": (b'{"text": }', "invalid JSON"),
    "single quotes": (b"{'text': 'x'}", "invalid JSON"),
    "bare keys": (b'{text: "x"}', "invalid JSON"),
    "Python's None": (b'{"text": None}', "invalid JSON"),
    "a comment": (b'{"text": "x"} // here', "invalid JSON"),
    "a wrong escape": (b'{"text": "\\x41"}', "invalid JSON"),
    "half an escape": (b'{"text": "\\u12"}', "invalid JSON"),
    "a raw control character": (b'{"text": "a\x01b"}', "invalid JSON"),
    "a raw tab": (b'{"text": "a\tb"}', "invalid JSON"),
    "a NUL in a string": (b'{"text": "a\x00b"}', "invalid JSON"),
    "NULs alone": (b"\x00\x00\x00", "invalid JSON"),
    "a NUL behind": (b'{"text": "x"}\x00', "invalid JSON"),
    "a leading zero": (b'{"text": 01}', "invalid JSON"),
    "a number of 5,000 digits, and NaN": (b'{"n": NaN, "m": 1' + b"0" * 5000 + b', "text": }', "invalid JSON"),
    "Latin-1": ('{"text": "café au lait"}'.encode("latin-1"), "undecodable"),
    "a byte that no encoding has": (b'{"text": "\xff\xfe"}', "undecodable"),
    "half a character": (b'{"text": "\xe6\x98"}', "undecodable"),
    "an overlong form": (b'{"text": "\xc0\xaf"}', "undecodable"),
    "a surrogate in UTF-8": (b'{"text": "\xed\xa0\x80"}', "undecodable"),
    "a character beyond Unicode": (b'{"text": "\xf5\x80\x80\x80"}', "undecodable"),
    "GB18030 among UTF-8": ('{"text": "春眠不觉晓"}'.encode("gb18030"), "undecodable"),
    "a lone surrogate": (b'{"text": "\\ud800"}', "undecodable"),
    "a lone low surrogate": (b'{"text": "x\\udfff"}', "undecodable"),
    "surrogates the wrong way round": (b'{"text": "\\udc00\\ud800"}', "undecodable"),
    "arrays 100,000 deep": (b'{"text": ' + b"[" * 100_000 + b"]" * 100_000 + b"}", "nested too deeply"),
    "arrays 600 deep": (b'{"text": ' + b"[" * 600 + b"]" * 600 + b"}", "nested too deeply"),
    "objects just too deep": (b'{"a":' * (MAX_NESTING + 10) + b"1" + b"}" * (MAX_NESTING + 10), "nested too deeply"),
}


# In an array, some mistakes affect more than the row: its elements cannot be told apart any more.
BREAKS_ARRAY = {"an open object", "an open string", "an open array"}
WRONG_SHAPES: dict[str, tuple[str, Any]] = {
    "a number": ("pretrain", 3),
    "a text": ("sft", "text"),
    "a list": ("pretrain", [1, 2]),
    "null": ("pretrain", None),
    "true": ("pretrain", True),
    "an empty object": ("pretrain", {}),
    "no column that is known": ("pretrain", {"body": "x"}),
    "a text that is a number": ("pretrain", {"text": 3}),
    "a text that is null": ("pretrain", {"text": None}),
    "a text that is an object": ("pretrain", {"text": {"a": "b"}}),
    "a list with a number among the texts": ("pretrain", {"text": ["a", 3]}),
    "a blank text": ("pretrain", {"text": " \n"}),
    "an empty answer": ("sft", {"prompt": "q", "response": ""}),
    "an empty question": ("sft", {"prompt": " ", "response": "a"}),
    "no answer": ("sft", {"prompt": "q"}),
    "an answer that is an object": ("sft", {"prompt": "q", "response": {"a": 1}}),
    "no turns": ("sft", {"messages": []}),
    "turns that are a text": ("sft", {"messages": "hello"}),
    "turns that are texts": ("sft", {"messages": ["hello", "you"]}),
    "turns that are numbers": ("sft", {"messages": [1, 2]}),
    "a turn without content": ("sft", {"messages": [{"role": "user"}]}),
    "an unknown role": ("sft", {"messages": [{"role": "wizard", "content": "q"}, {"role": "assistant", "content": "a"}]}),
    "a role that is a list": ("sft", {"messages": [{"role": ["user"], "content": "q"}, {"role": "assistant", "content": "a"}]}),
    "a role that is an object": ("sft", {"messages": [{"role": {"a": 1}, "content": "q"}]}),
    "only a system turn": ("sft", {"messages": [{"role": "system", "content": "s"}]}),
    "an answer before its question": (
        "sft",
        {"messages": [{"role": "assistant", "content": "a"}, {"role": "user", "content": "q"}]},
    ),
    "a history that is a number": ("sft", {"prompt": "q", "response": "a", "history": 7}),
    "a history of singles": ("sft", {"prompt": "q", "response": "a", "history": [["q"]]}),
    "equal answers": ("preference", {"prompt": "q", "chosen": "a", "rejected": "a"}),
    "one answer": ("preference", {"prompt": "q", "chosen": "a"}),
    "no question": ("preference", {"chosen": "a", "rejected": "b"}),
    "a chosen number": ("preference", {"prompt": "q", "chosen": 1, "rejected": "b"}),
    "an empty rejected answer": ("preference", {"prompt": "q", "chosen": "a", "rejected": " "}),
}
JSONL = [
    Case(name=f"jsonl: {name}", file="a.jsonl", content=b"\n".join([LINE, raw, LINE, b""]), bad={":2": reason})
    for name, (raw, reason) in BAD_JSON.items()
] + [
    Case(
        name="jsonl: last line without its end and its half",
        file="a.jsonl",
        content=LINE + b"\n" + LINE + b'\n{"te',
        bad={":3": "invalid JSON"},
    ),
    Case(name="jsonl: blank lines are no rows", file="a.jsonl", content=b"\n\n" + LINE + b"\n \t\r\n" + LINE + b"\n\n"),
    Case(
        name="jsonl: carriage returns and line feeds",
        file="a.jsonl",
        content=LINE + b"\r\n{\r\n" + LINE + b"\r\n",
        bad={":2": "invalid JSON"},
    ),
    Case(
        name="jsonl: carriage returns alone",
        file="a.jsonl",
        content=b"\r".join([LINE, LINE]),
    ),
    Case(name="jsonl: a byte order mark before a later row", file="a.jsonl", content=LINE + b"\n\xef\xbb\xbf" + LINE + b"\n"),
    Case(
        name="jsonl: NaN, a huge integer and a key written twice",
        file="a.jsonl",
        content=b'{"text": "x", "n": NaN, "m": -Infinity}\n{"text": "a", "text": "b", "n": 123456789012345678901234567890}\n',
    ),
    Case(
        name="jsonl: an integer of 400 digits", file="a.jsonl", content=LINE + b'\n{"text": "x", "n": 1' + b"0" * 400 + b"}\n"
    ),
    Case(
        name="jsonl: an array over several lines",
        file="a.jsonl",
        content=b"[\n" + LINE + b",\n{broken},\n" + LINE + b"\n]\n",
        bad={":3": "invalid JSON"},
    ),
    Case(name="jsonl: an array on one line", file="a.jsonl", content=b"[" + LINE + b", " + LINE + b"]"),
    Case(
        name="jsonl: a comma at each line's end",
        file="a.jsonl",
        content=LINE + b",\n" + b'{"text": "x",},\n' + LINE + b" , \n",
        bad={":2": "invalid JSON"},
    ),
    Case(
        name="jsonl: objects over several lines",
        file="a.jsonl",
        content=b"{\n" + LINE[1:] + b'\n{\n"text": }\n' + LINE + b"\n",
        bad={":3": "invalid JSON"},
    ),
    Case(
        name="jsonl: the last of the objects over several lines does not end",
        file="a.jsonl",
        content=b"{\n" + LINE[1:] + b'\n{\n"text": "x"\n',
        error="a.jsonl:3: the row that begins here does not end",
    ),
    Case(
        name="jsonl: text between objects over several lines",
        file="a.jsonl",
        content=b"{\n" + LINE[1:] + b"\n\nend\n",
        error="a.jsonl:4: expected a JSON object or array",
    ),
    Case(
        name="jsonl: a first line that is broken",
        file="a.jsonl",
        content=b'{"text": "x\n' + LINE + b"\n" + LINE + b"\n",
        bad={":1": "invalid JSON"},
    ),
    Case(
        name="jsonl: nothing but a broken line",
        file="a.jsonl",
        content=b'{"text": "x\n',
        good=0,
        bad={":1": "invalid JSON"},
    ),
    Case(name="jsonl: gzip data without the ending", file="a.jsonl", content=gzip.compress(LINE), error="this is gzip data"),
    Case(
        name="jsonl: Zstandard data without the ending",
        file="a.ndjson",
        content=zstandard.compress(LINE),
        error="this is Zstandard data",
    ),
    Case(name="jsonl: a ZIP archive", file="a.jsonl", content=b"PK\x03\x04" + LINE, error="this is a ZIP archive"),
    Case(name="jsonl: Parquet data", file="a.jsonl", content=as_parquet([GOOD]), error="this is Parquet data"),
]
JSON = [
    Case(name=f"json: {name}", file="a.json", content=b"[\n" + LINE + b",\n" + raw + b",\n" + LINE + b"]", bad={"#1": reason})
    for name, (raw, reason) in BAD_JSON.items()
    if name not in BREAKS_ARRAY
] + [
    Case(
        name="json: nothing between two commas",
        file="a.json",
        content=b"[" + LINE + b",," + LINE + b"]",
        bad={"#1": "invalid JSON"},
    ),
    Case(
        name="json: a comma at the end", file="a.json", content=b"[" + LINE + b"," + LINE + b", ]", bad={"#2": "invalid JSON"}
    ),
    Case(
        name="json: a comma at the beginning",
        file="a.json",
        content=b"[," + LINE + b"," + LINE + b"]",
        bad={"#0": "invalid JSON"},
    ),
    Case(
        name="json: a comma is missing",
        file="a.json",
        content=b"[" + LINE + b" " + LINE + b"," + LINE + b"]",
        good=1,
        bad={"#0": "invalid JSON"},
    ),
    Case(
        name="json: scalars",
        file="a.json",
        content=b"[" + LINE + b', 1, "x", null, ' + LINE + b"]",
        good=3,
        bad=dict.fromkeys(["#1", "#3"]),
    ),
    Case(name="json: an empty array", file="a.json", content=b" [ ] \n", good=0),
    Case(name="json: blank", file="a.json", content=b" \n\n", good=0),
    Case(name="json: empty", file="a.json", content=b"", good=0),
    Case(
        name="json: a quote is missing",
        file="a.json",
        content=b"[\n" + LINE + b',\n{"text": "x},\n' + LINE + b"]",
        error="a.json:3: the array does not end",
    ),
    Case(
        name="json: a bracket is missing",
        file="a.json",
        content=b"[\n" + LINE + b',\n{"text": "x",\n' + LINE + b"]",
        error="a.json:3: the array does not end",
    ),
    Case(
        name="json: the file ends within a row",
        file="a.json",
        content=b"[\n" + LINE + b',\n{"te',
        error="a.json:3: the array does not end",
    ),
    Case(
        name="json: the file ends between rows", file="a.json", content=b"[\n" + LINE + b",\n", error="the array does not end"
    ),
    Case(
        name="json: two arrays",
        file="a.json",
        content=b"[" + LINE + b"]\n[" + LINE + b"]",
        error="a.json:2: something follows the end",
    ),
    Case(
        name="json: text behind the array",
        file="a.json",
        content=b"[" + LINE + b"]\n\nend",
        error="a.json:3: something follows the end",
    ),
    Case(
        name="json: text behind the object",
        file="a.json",
        content=b'{"a": [\n' + LINE + b'],\n"b":\n1}\nend',
        error="a.json:5: something follows the end",
    ),
    Case(name="json: a number", file="a.json", content=b"3", error="expected a JSON array of rows"),
    Case(name="json: a text", file="a.json", content=b'"text"', error="expected a JSON array of rows"),
    Case(name="json: HTML", file="a.json", content=b"<html></html>", error="expected a JSON array of rows"),
    Case(name="json: one row", file="a.json", content=LINE, good=1),
    Case(name="json: one row over several lines", file="a.json", content=LINE.replace(b" ", b"\n"), good=1),
    Case(name="json: rows over several lines", file="a.json", content=LINE.replace(b" ", b"\n") * 2),
    Case(name="json: an object of numbers", file="a.json", content=b'{"a": 1}', error="expected a JSON array of rows"),
    Case(
        name="json: an object of columns", file="a.json", content=b'{"text": ["a", "b"]}', error="expected a JSON array of rows"
    ),
    Case(
        name="json: an object of objects",
        file="a.json",
        content=b'{"1": {"text": "a"}, "2": {"text": "b"}}',
        error="expected a JSON array of rows",
    ),
    Case(
        name="json: an object with two lists of rows",
        file="a.json",
        content=b'{"a": [' + LINE + b'],\n"b": [' + LINE + b"]}",
        error="a.json:2: the object holds several lists",
    ),
    Case(
        name="json: an object that does not end",
        file="a.json",
        content=b'{"a": [' + LINE + b"]",
        error="the object does not end",
    ),
    Case(
        name="json: a list in an object that does not end",
        file="a.json",
        content=b'{"a": [' + LINE,
        error="the array does not end",
    ),
    Case(
        name="json: a broken row in an object's list",
        file="a.json",
        content=b'{"n": [1], "a": [' + LINE + b", {]}," + LINE + b"]}",
        bad={"#1": "invalid JSON"},
    ),
    Case(
        name="json: an object a line, one broken",
        file="a.json",
        content=b"\n".join([LINE, b"{broken", LINE]),
        bad={"#1": "invalid JSON"},
    ),
    Case(name="json: a Parquet file", file="a.json", content=as_parquet([GOOD]), error="this is Parquet data"),
]
SHAPES = [
    Case(
        name=f"{kind}: {name}",
        file="a.jsonl",
        content=b"\n".join([LINE, json.dumps(row).encode(), LINE]),
        kind=kind,
        bad={":2": None},
    )
    for name, (kind, row) in WRONG_SHAPES.items()
]
