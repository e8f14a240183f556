"""Malformed files and rows: each is a dropped row with location and reason, or one error that names the file."""

import gzip
import io
import json
import random
import string
import struct
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from fledge.data.parsing.columns import RowError
from fledge.data.reading.formats import MAX_NESTING, ROW_LIMIT
from fledge.data.reading.records import files_of, read, row_location, spans_of
from fledge.errors import FledgeError
from fledge.recipe.schema import Source
from tests.support.parsing import parse_row

GOOD = {"text": "t", "prompt": "q", "response": "a", "chosen": "c", "rejected": "r"}
LINE = json.dumps(GOOD).encode()
KEY = "stages.x.data.train.0"


@dataclass(frozen=True)
class Case:
    """A file and the expected outcome: usable rows, dropped rows (location -> reason), or an error message."""

    name: str
    file: str
    content: bytes
    good: int = 2
    bad: dict[str, str | None] = field(default_factory=dict)  # None: some reason
    error: str | None = None
    source: dict[str, Any] = field(default_factory=dict)
    kind: str = "pretrain"


def outcome(file: Path, source: Source, kind: str) -> tuple[int, dict[str, str]]:
    """The number of usable rows, and the reasons of the others by location, read as a stage reads. A small target gives many
    ranges."""
    good, bad = 0, {}
    for span in spans_of(files_of(source, KEY), source, 64):
        for record in read(span, source):
            location = row_location(span.file, record.number).removeprefix(str(file))
            assert location not in bad or source.documents == "file"
            if record.broken:
                assert len(record.broken) < 40
                bad[location] = record.broken
                continue
            try:
                parse_row(record.value, source, kind)
                good += 1
            except RowError as error:
                bad[location] = error.reason
    return good, bad


def as_csv(*rows: str) -> bytes:
    """A CSV file with these rows between two valid ones."""
    return "\r\n".join(["text,prompt", "one,two", *rows, "three,four"]).encode() + b"\r\n"


def as_parquet(rows: list[Any], **options: Any) -> bytes:
    """A Parquet file with these rows."""
    table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows)
    buffer = io.BytesIO()
    parquet.write_table(table, buffer, **options)
    return buffer.getvalue()


def flip_bytes(content: bytes, position: int, count: int = 1) -> bytes:
    """The content with some bytes inverted."""
    position %= len(content)
    flipped = bytes(byte ^ 0xFF for byte in content[position : position + count])
    return content[:position] + flipped + content[position + count :]


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
    "a text": ("pretrain", "text"),
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
    Case(f"jsonl: {name}", "a.jsonl", b"\n".join([LINE, raw, LINE, b""]), bad={":2": reason})
    for name, (raw, reason) in BAD_JSON.items()
] + [
    Case(
        "jsonl: last line without its end and its half", "a.jsonl", LINE + b"\n" + LINE + b'\n{"te', bad={":3": "invalid JSON"}
    ),
    Case("jsonl: blank lines are no rows", "a.jsonl", b"\n\n" + LINE + b"\n \t\r\n" + LINE + b"\n\n"),
    Case("jsonl: carriage returns and line feeds", "a.jsonl", LINE + b"\r\n{\r\n" + LINE + b"\r\n", bad={":2": "invalid JSON"}),
    Case("jsonl: carriage returns alone", "a.jsonl", b"\r".join([LINE, LINE]), good=0, bad={":1": "invalid JSON"}),
    Case("jsonl: a byte order mark before a later row", "a.jsonl", LINE + b"\n\xef\xbb\xbf" + LINE + b"\n"),
    Case(
        "jsonl: NaN, a huge integer and a key written twice",
        "a.jsonl",
        b'{"text": "x", "n": NaN, "m": -Infinity}\n{"text": "a", "text": "b", "n": 123456789012345678901234567890}\n',
    ),
    Case("jsonl: an integer of 400 digits", "a.jsonl", LINE + b'\n{"text": "x", "n": 1' + b"0" * 400 + b"}\n"),
    Case(
        "jsonl: an array over several lines",
        "a.jsonl",
        b"[\n" + LINE + b",\n" + LINE + b"\n]\n",
        good=1,
        bad={":1": "invalid JSON", ":2": "invalid JSON", ":4": "invalid JSON"},
    ),
    Case("jsonl: gzip data without the ending", "a.jsonl", gzip.compress(LINE), error="this is gzip data"),
    Case("jsonl: Zstandard data without the ending", "a.ndjson", zstandard.compress(LINE), error="this is Zstandard data"),
    Case("jsonl: a ZIP archive", "a.jsonl", b"PK\x03\x04" + LINE, error="this is a ZIP archive"),
    Case("jsonl: Parquet data", "a.jsonl", as_parquet([GOOD]), error="this is Parquet data"),
]

JSON = [
    Case(f"json: {name}", "a.json", b"[\n" + LINE + b",\n" + raw + b",\n" + LINE + b"]", bad={"#1": reason})
    for name, (raw, reason) in BAD_JSON.items()
    if name not in BREAKS_ARRAY
] + [
    Case("json: nothing between two commas", "a.json", b"[" + LINE + b",," + LINE + b"]", bad={"#1": "invalid JSON"}),
    Case("json: a comma at the end", "a.json", b"[" + LINE + b"," + LINE + b", ]", bad={"#2": "invalid JSON"}),
    Case("json: a comma at the beginning", "a.json", b"[," + LINE + b"," + LINE + b"]", bad={"#0": "invalid JSON"}),
    Case(
        "json: a comma is missing", "a.json", b"[" + LINE + b" " + LINE + b"," + LINE + b"]", good=1, bad={"#0": "invalid JSON"}
    ),
    Case("json: scalars", "a.json", b"[" + LINE + b', 1, "x", null, ' + LINE + b"]", bad=dict.fromkeys(["#1", "#2", "#3"])),
    Case("json: an empty array", "a.json", b" [ ] \n", good=0),
    Case("json: blank", "a.json", b" \n\n", good=0),
    Case("json: empty", "a.json", b"", good=0),
    Case(
        "json: a quote is missing",
        "a.json",
        b"[\n" + LINE + b',\n{"text": "x},\n' + LINE + b"]",
        error="a.json:3: the array does not end",
    ),
    Case(
        "json: a bracket is missing",
        "a.json",
        b"[\n" + LINE + b',\n{"text": "x",\n' + LINE + b"]",
        error="a.json:3: the array does not end",
    ),
    Case("json: the file ends within a row", "a.json", b"[\n" + LINE + b',\n{"te', error="a.json:3: the array does not end"),
    Case("json: the file ends between rows", "a.json", b"[\n" + LINE + b",\n", error="the array does not end"),
    Case("json: two arrays", "a.json", b"[" + LINE + b"]\n[" + LINE + b"]", error="a.json:2: something follows the end"),
    Case("json: text behind the array", "a.json", b"[" + LINE + b"]\n\nend", error="a.json:3: something follows the end"),
    Case(
        "json: text behind the object",
        "a.json",
        b'{"a": [\n' + LINE + b'],\n"b":\n1}\nend',
        error="a.json:5: something follows the end",
    ),
    Case("json: a number", "a.json", b"3", error="expected a JSON array of rows"),
    Case("json: a text", "a.json", b'"text"', error="expected a JSON array of rows"),
    Case("json: HTML", "a.json", b"<html></html>", error="expected a JSON array of rows"),
    Case("json: one object", "a.json", LINE, error="expected a JSON array of rows"),
    Case("json: an object of columns", "a.json", b'{"text": ["a", "b"]}', error="expected a JSON array of rows"),
    Case(
        "json: an object of objects",
        "a.json",
        b'{"1": {"text": "a"}, "2": {"text": "b"}}',
        error="expected a JSON array of rows",
    ),
    Case(
        "json: an object with two lists of rows",
        "a.json",
        b'{"a": [' + LINE + b'],\n"b": [' + LINE + b"]}",
        error="a.json:2: the object holds several lists",
    ),
    Case("json: an object that does not end", "a.json", b'{"a": [' + LINE + b"]", error="the object does not end"),
    Case("json: a list in an object that does not end", "a.json", b'{"a": [' + LINE, error="the array does not end"),
    Case(
        "json: a broken row in an object's list",
        "a.json",
        b'{"n": [1], "a": [' + LINE + b", {]}," + LINE + b"]}",
        bad={"#1": "invalid JSON"},
    ),
    Case("json: an object a line, one broken", "a.json", b"\n".join([LINE, b"{broken", LINE]), bad={"#1": "invalid JSON"}),
    Case("json: a Parquet file", "a.json", as_parquet([GOOD]), error="this is Parquet data"),
]

CSV = [
    Case("csv: too few fields", "a.csv", as_csv("x"), bad={":3": "wrong number of fields"}),
    Case("csv: too many fields", "a.csv", as_csv("x,y,z"), bad={":3": "wrong number of fields"}),
    Case("csv: a comma at the end", "a.csv", as_csv("x,y,"), bad={":3": "wrong number of fields"}),
    Case("csv: text behind a quote", "a.csv", as_csv('"x"x,y'), bad={":3": "invalid CSV"}),
    Case("csv: a quote that is not closed", "a.csv", as_csv('"x,y'), bad={":3": "invalid CSV"}),
    Case(
        "csv: three quotes that are not closed",
        "a.csv",
        as_csv('"x,y', 'x,"y', '"x', "1,2"),
        good=3,
        bad={":3": "invalid CSV", ":4": "invalid CSV", ":5": "invalid CSV"},
    ),
    Case("csv: a quote that the next row's quote closes", "a.csv", as_csv('"x,y', '"1",2'), good=3, bad={":3": "invalid CSV"}),
    Case("csv: a lone carriage return", "a.csv", as_csv("x\rx,y"), bad={":3": "invalid CSV"}),
    Case("csv: not UTF-8", "a.csv", as_csv("x,y").replace(b"x,y", b"\xff,y"), bad={":3": "undecodable"}),
    Case(
        "csv: not UTF-8 in the second line of a row",
        "a.csv",
        as_csv('"x\nx",y').replace(b"\nx", b"\n\xff"),
        bad={":3": "undecodable"},
    ),
    Case("csv: blank texts", "a.csv", as_csv("  ,  "), bad={":3": None}),
    Case("csv: blank lines are no rows", "a.csv", as_csv("", "  ", "")),
    Case("csv: a NUL", "a.csv", as_csv("x\0,y"), good=3),
    Case("csv: header alone", "a.csv", b"text,prompt\r\n", good=0),
    Case("csv: blank", "a.csv", b"\n \n", good=0),
    Case("csv: a column twice", "a.csv", b"\ntext,text\na,b\n", error="a.csv:2: the header has two columns 'text'"),
    Case("csv: a header with an open quote", "a.csv", b'"text,prompt\na,b\n', error="a.csv:1: the header cannot be read"),
    Case("csv: a header that is not UTF-8", "a.csv", b"te\xfft,prompt\na,b\n", error="a.csv:1: the header cannot be read"),
    Case("csv: carriage returns alone", "a.csv", b"text,prompt\ra,b\rc,d", error="a.csv:1: the header cannot be read"),
    Case("csv: a header without a known column", "a.csv", b"x,y\na,b\nc,d\n", good=0, bad={":2": None, ":3": None}),
    Case("tsv: too many fields", "a.tsv", b"text\tprompt\na\tb\nx\ty\tz\nc\td\n", bad={":3": "wrong number of fields"}),
    Case("csv: a spreadsheet", "a.csv", b"PK\x03\x04\x14\x00", error="this is a ZIP archive"),
]

TEXT = [
    Case(
        "txt: a line that is not UTF-8", "a.txt", "好\n".encode() + b"\xff\xfe\n" + "坏\n".encode(), bad={":2": "undecodable"}
    ),
    Case(
        "txt: a paragraph that is not UTF-8",
        "a.txt",
        b"a\n\nb\nb\xff\nb\n\nc",
        bad={":3": "undecodable"},
        source={"documents": "paragraph"},
    ),
    Case(
        "txt: a file that is not UTF-8", "a.txt", b"a\n\xe9\nb", good=0, bad={"": "undecodable"}, source={"documents": "file"}
    ),
    Case("txt: blank", "a.txt", b"\n \n\t\n", good=0),
    Case("txt: a blank file", "a.txt", b"\n \n\t\n", good=0, source={"documents": "file"}),
    Case("txt: spaces that are not ASCII", "a.txt", "a\n\u3000\u3000\nb".encode(), bad={":2": None}),
    Case("txt: a byte order mark alone", "a.txt", b"\xef\xbb\xbf", good=0),
    Case(
        "txt: another encoding than the recipe says",
        "a.txt",
        "好\n坏\na\nb".encode(),
        source={"encoding": "ascii"},
        bad={":1": "undecodable", ":2": "undecodable"},
    ),
    Case(
        "txt: GB18030 with a broken line",
        "a.txt",
        "春眠不觉晓，处处闻啼鸟\n".encode("gb18030") * 60 + b"\xff\xff\n" + b"abc\n",
        good=61,
        bad={":61": "undecodable"},
    ),
    Case(
        "txt: UTF-16 with half a pair",
        "a.txt",
        "a\n".encode("utf-16") + b"\x00\xd8\n\x00" + "b\n".encode("utf-16-le"),
        bad={":2": "undecodable"},
    ),
    Case("txt: UTF-16 that ends within a character", "a.txt", "a\nb\nc".encode("utf-16")[:-1], bad={":3": "undecodable"}),
    Case(
        "txt: UTF-32 with a number that is no character",
        "a.txt",
        "a\n".encode("utf-32") + b"\xff\xff\xff\x7f" + "\nb".encode("utf-32-le"),
        bad={":2": "undecodable"},
    ),
    Case(
        "txt: an unknown encoding",
        "a.txt",
        b"a",
        source={"encoding": "utf-9"},
        error=f"{KEY}.encoding: 'utf-9' is not a text encoding",
    ),
    Case(
        "txt: an encoding that is none of text",
        "a.txt",
        b"a",
        source={"encoding": "base64"},
        error=f"{KEY}.encoding: 'base64' is not a text encoding",
    ),
    Case("txt: an encoding with a NUL in its name", "a.txt", b"a", source={"encoding": "\0"}, error="is not a text encoding"),
]

THREE = b"\n".join([LINE, LINE, b'{"text": "the third row, which is cut"}', b""])
MIXED = "".join(random.Random(1).choices(string.ascii_letters, k=4000)).encode()
LONG = b"\n".join(b'{"text": "%b"}' % MIXED[i : i + 40] for i in range(0, 4000, 40))
CUT_ZST = zstandard.ZstdCompressor().compress(LINE + b"\n" + LINE + b"\n") + zstandard.compress(LONG)[:-9]
COMPRESSED = [
    Case("gz: the end is missing", "a.jsonl.gz", gzip.compress(THREE)[:-16], bad={":3": "damaged file"}),
    Case("gz: the checksum is wrong", "a.jsonl.gz", flip_bytes(gzip.compress(THREE), -6), good=3, bad={":4": "damaged file"}),
    Case("gz: the length is wrong", "a.jsonl.gz", flip_bytes(gzip.compress(THREE), -1), good=3, bad={":4": "damaged file"}),
    Case("gz: text behind the end", "a.jsonl.gz", gzip.compress(THREE) + b"text", good=3, bad={":4": "damaged file"}),
    Case(
        "gz: the second member is cut",
        "a.jsonl.gz",
        gzip.compress(LINE + b"\n" + LINE + b"\n") + gzip.compress(LONG)[:14],
        bad={":3": "damaged file"},
    ),
    Case("gz: no gzip data", "a.jsonl.gz", LINE, good=0, bad={":1": "damaged file"}),
    Case("gz: only zeros", "a.jsonl.gz", bytes(100), good=0, bad={":1": "damaged file"}),
    Case("gz: only a magic number", "a.jsonl.gz", b"\x1f\x8b", good=0, bad={":1": "damaged file"}),
    Case("gz: empty", "a.jsonl.gz", b"", good=0),
    Case("gz: compressed twice", "a.jsonl.gz", gzip.compress(gzip.compress(LINE)), error="this is gzip data"),
    Case("gz: a broken row inside", "a.jsonl.gz", gzip.compress(b"\n".join([LINE, b"{", LINE])), bad={":2": "invalid JSON"}),
    Case(
        "gz: a cut array",
        "a.json.gz",
        gzip.compress(b"[" + b",".join([LINE] * 3) + b"]")[:-9],
        good=3,
        bad={"#3": "damaged file"},
    ),
    Case("gz: a cut table", "a.csv.gz", gzip.compress(as_csv())[:-14], good=1, bad={":3": "damaged file"}),
    Case(
        "gz: a cut table, within quotes",
        "a.csv.gz",
        gzip.compress(as_csv('"' + LONG.decode().replace('"', "") + '",y'))[:-200],
        good=1,
        bad={":3": "damaged file"},
    ),
    Case(
        "gz: a cut document",
        "a.txt.gz",
        gzip.compress(MIXED)[:-9],
        good=0,
        bad={"": "damaged file"},
        source={"documents": "file"},
    ),
    Case("zst: the end is missing", "a.jsonl.zst", CUT_ZST, bad={":3": "damaged file"}),
    Case("zst: no Zstandard data", "a.jsonl.zst", LINE, good=0, bad={":1": "damaged file"}),
    Case("zst: only a magic number", "a.jsonl.zst", b"\x28\xb5\x2f\xfd", good=0, bad={":1": "damaged file"}),
    Case(
        "zst: text behind the end", "a.jsonl.zst", zstandard.compress(THREE) + b"some text", good=3, bad={":4": "damaged file"}
    ),
    Case("zst: gzip data", "a.jsonl.zst", gzip.compress(LINE), good=0, bad={":1": "damaged file"}),
    Case(
        "zst: a window larger than allowed",
        "a.jsonl.zst",
        b"\x28\xb5\x2f\xfd\x00\xf8" + bytes(30),
        good=0,
        bad={":1": "damaged file"},
    ),
    Case("gz: a cut Parquet file", "a.parquet.gz", gzip.compress(as_parquet([GOOD]))[:-9], error="not a readable Parquet file"),
]

GROUPS = as_parquet(
    pa.table({"text": [f"row {i} " + "x" * 50 for i in range(30)]}), row_group_size=10, use_dictionary=False, compression="none"
)
PAGE = GROUPS.index(b"row 10 ")
NOT_UTF8 = pa.StringArray.from_buffers(2, pa.py_buffer(struct.pack("<3i", 0, 2, 6)), pa.py_buffer(b"\xff\xfefine"))
PARQUET = [
    Case("parquet: no Parquet data", "a.parquet", b"PAR1 no PAR1", error="not a readable Parquet file"),
    Case("parquet: text", "a.parquet", LINE, error="not a readable Parquet file"),
    Case("parquet: the end is missing", "a.parquet", GROUPS[:-20], error="not a readable Parquet file"),
    Case("parquet: the beginning alone", "a.parquet", GROUPS[:4], error="not a readable Parquet file"),
    Case(
        "parquet: a column name that is not UTF-8",
        "a.parquet",
        as_parquet([{"name": "x"}]).replace(b"name", b"n\x90me"),
        error="not a readable Parquet file",
    ),
    Case("parquet: empty", "a.parquet", b"", good=0),
    Case("parquet: no rows", "a.parquet", as_parquet(pa.table({"text": pa.array([], pa.string())})), good=0),
    Case(
        "parquet: text that is not UTF-8",
        "a.parquet",
        as_parquet(pa.table({"text": NOT_UTF8})),
        good=1,
        bad={"#0": "undecodable"},
    ),
    Case(
        "parquet: a date beyond Python's",
        "a.parquet",
        as_parquet(pa.table({"text": ["a", "b"], "d": pa.array([0, 10**15], pa.timestamp("s"))})),
        good=1,
        bad={"#1": "unreadable value"},
    ),
    Case(
        "parquet: bytes for text",
        "a.parquet",
        as_parquet(pa.table({"text": [b"a", b"b"]})),
        good=0,
        bad={"#0": None, "#1": None},
    ),
    Case("parquet: null", "a.parquet", as_parquet(pa.table({"text": ["a", None, "b"]})), bad={"#1": None}),
    Case(
        "parquet: a damaged page",
        "a.parquet",
        GROUPS[: PAGE - 40] + bytes(40) + GROUPS[PAGE:],
        good=20,
        bad={f"#{row}": "damaged file" for row in range(10, 20)},
    ),
]

SHAPES = [
    Case(f"{kind}: {name}", "a.jsonl", b"\n".join([LINE, json.dumps(row).encode(), LINE]), kind=kind, bad={":2": None})
    for name, (kind, row) in WRONG_SHAPES.items()
]

NAMES = [
    Case("a file of an unknown format", "a.docx", LINE, error="its extension is not one of"),
    Case("a file without an ending", "rows", LINE, error="its extension is not one of"),
    Case("a compressed file of no format", "rows.gz", gzip.compress(LINE), error="its extension is not one of"),
    Case("a hidden name that looks like an ending", ".jsonl", LINE, error="its extension is not one of"),
]

CASES = [*JSONL, *JSON, *CSV, *TEXT, *COMPRESSED, *PARQUET, *SHAPES, *NAMES]


def test_there_are_many_cases_with_unique_names() -> None:
    assert len(CASES) >= 100
    assert max(Counter(case.name for case in CASES).values()) == 1


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_malformed_row_is_reported_with_location_and_reason_and_others_stay(tmp_path: Path, case: Case) -> None:
    file = tmp_path / case.file
    file.write_bytes(case.content)
    source = Source(path=str(file), **case.source)
    if case.error:
        with pytest.raises(FledgeError) as caught:
            outcome(file, source, case.kind)
        assert case.error in str(caught.value)
        assert str(file) in str(caught.value) or KEY in str(caught.value)
        return
    good, bad = outcome(file, source, case.kind)
    assert good == case.good
    assert bad.keys() == case.bad.keys()
    assert all(expected in (None, bad[location]) for location, expected in case.bad.items())


@pytest.mark.parametrize("path", ["nowhere.jsonl", "*.nothing", "~nobody-at-all/a.jsonl", "a\0b.jsonl", "x" * 5000, ""])
def test_missing_path_is_an_error_with_its_recipe_key(tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FledgeError, match=KEY):
        files_of(Source(path=path), KEY)


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), lambda path: path.symlink_to("gone")], ids=["folder", "link"])
def test_folder_or_dead_link_named_like_a_data_file_is_ignored(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl").write_bytes(LINE)
    assert files_of(Source(path=str(tmp_path)), KEY) == [tmp_path / "b.jsonl"]


def test_file_that_was_removed_or_shortened_is_an_error_with_its_name(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b"\n".join([LINE] * 9))
    source = Source(path=str(file))
    first, *_, last = spans_of([file], source, 100)
    file.write_bytes(LINE)
    with pytest.raises(FledgeError, match=r"a\.jsonl: the file has become shorter"):
        list(read(last, source))
    file.unlink()
    with pytest.raises(FledgeError, match=r"a\.jsonl: cannot read it: No such file"):
        list(read(first, source))


def test_row_above_the_size_limit_is_dropped(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    with file.open("wb") as rows:
        rows.write(LINE + b'\n{"text": "')
        rows.writelines(b"x" * (1 << 20) for _ in range((ROW_LIMIT >> 20) + 1))
        rows.write(b'"}\n' + LINE)
    reason = f"row larger than {ROW_LIMIT >> 20} MiB"
    assert outcome(file, Source(path=str(file)), "pretrain") == (2, {":2": reason})
    array = tmp_path / "b.json"
    array.write_bytes(b"[" + file.read_bytes().replace(b"}\n", b"},\n") + b"]")
    assert outcome(array, Source(path=str(array)), "pretrain") == (2, {"#1": reason})
    text = file.rename(tmp_path / "c.txt")
    assert outcome(text, Source(path=str(text)), "pretrain") == (2, {":2": reason})
    assert outcome(text, Source(path=str(text), documents="paragraph"), "pretrain") == (0, {":1": reason})
    assert outcome(text, Source(path=str(text), documents="file"), "pretrain") == (0, {"": reason})


VALID_FILES = {
    "a.jsonl": b"\n".join([LINE] * 9),
    "a.json": json.dumps({"n": 1, "rows": [GOOD] * 9}, indent=1).encode(),
    "b.json": json.dumps([GOOD] * 9).encode(),
    "a.csv": as_csv('"x ""y""\nz",w'),
    "a.tsv": b"text\tprompt\na\tb\nc\td",
    "a.txt": "春眠不觉晓\n\n处处闻啼鸟\n".encode(),
    "b.txt": "春眠不觉晓\n处处闻啼鸟\n".encode("utf-16"),
    "c.txt": ("春眠不觉晓，处处闻啼鸟\n" * 9).encode("gb18030"),
    "a.jsonl.gz": gzip.compress(LONG),
    "a.json.zst": zstandard.compress(json.dumps([GOOD] * 9).encode()),
    "a.parquet": GROUPS,
    "b.parquet": as_parquet([GOOD] * 9),
}


@given(st.data())
def test_random_damage_gives_only_rows_and_user_errors(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(VALID_FILES)))
    content = VALID_FILES[name]
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content)))
        cut = data.draw(st.integers(0, 8))
        content = content[:at] + data.draw(st.binary(max_size=8)) + content[at + cut :]
    file = tmp_path_factory.getbasetemp() / f"damaged-{name}"
    file.write_bytes(content)
    source = Source(path=str(file), documents=data.draw(st.sampled_from(["line", "paragraph", "file"])))
    try:
        good, bad = outcome(file, source, "pretrain")
    except FledgeError as error:
        assert str(file) in str(error)
    else:
        assert good + len(bad) >= 0
