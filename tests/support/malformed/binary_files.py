"""Damaged compressed files and Parquet files."""

import gzip
import random
import string
import struct

import pyarrow as pa
import zstandard

from tests.support.malformed.case import GOOD, LINE, Case, as_csv, as_parquet


def flip_bytes(content: bytes, position: int, count: int = 1) -> bytes:
    """The content with some bytes inverted."""
    position %= len(content)
    flipped = bytes(byte ^ 0xFF for byte in content[position : position + count])
    return content[:position] + flipped + content[position + count :]


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
