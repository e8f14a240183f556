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
    Case(name="gz: the end is missing", file="a.jsonl.gz", content=gzip.compress(THREE)[:-16], bad={":3": "damaged file"}),
    Case(
        name="gz: the checksum is wrong",
        file="a.jsonl.gz",
        content=flip_bytes(gzip.compress(THREE), -6),
        good=3,
        bad={":4": "damaged file"},
    ),
    Case(
        name="gz: the length is wrong",
        file="a.jsonl.gz",
        content=flip_bytes(gzip.compress(THREE), -1),
        good=3,
        bad={":4": "damaged file"},
    ),
    Case(
        name="gz: text behind the end",
        file="a.jsonl.gz",
        content=gzip.compress(THREE) + b"text",
        good=3,
        bad={":4": "damaged file"},
    ),
    Case(
        name="gz: the second member is cut",
        file="a.jsonl.gz",
        content=gzip.compress(LINE + b"\n" + LINE + b"\n") + gzip.compress(LONG)[:14],
        bad={":3": "damaged file"},
    ),
    Case(name="gz: no gzip data", file="a.jsonl.gz", content=LINE, good=0, bad={":1": "damaged file"}),
    Case(name="gz: only zeros", file="a.jsonl.gz", content=bytes(100), good=0, bad={":1": "damaged file"}),
    Case(name="gz: only a magic number", file="a.jsonl.gz", content=b"\x1f\x8b", good=0, bad={":1": "damaged file"}),
    Case(name="gz: empty", file="a.jsonl.gz", content=b"", good=0),
    Case(name="gz: compressed twice", file="a.jsonl.gz", content=gzip.compress(gzip.compress(LINE)), error="this is gzip data"),
    Case(
        name="gz: a broken row inside",
        file="a.jsonl.gz",
        content=gzip.compress(b"\n".join([LINE, b"{", LINE])),
        bad={":2": "invalid JSON"},
    ),
    Case(
        name="gz: a cut array",
        file="a.json.gz",
        content=gzip.compress(b"[" + b",".join([LINE] * 3) + b"]")[:-9],
        good=3,
        bad={"#3": "damaged file"},
    ),
    Case(name="gz: a cut table", file="a.csv.gz", content=gzip.compress(as_csv())[:-14], good=1, bad={":3": "damaged file"}),
    Case(
        name="gz: a cut table, within quotes",
        file="a.csv.gz",
        content=gzip.compress(as_csv('"' + LONG.decode().replace('"', "") + '",y'))[:-200],
        good=1,
        bad={":3": "damaged file"},
    ),
    Case(
        name="gz: a cut document",
        file="a.txt.gz",
        content=gzip.compress(MIXED)[:-9],
        good=0,
        bad={"": "damaged file"},
        source={"documents": "file"},
    ),
    Case(name="zst: the end is missing", file="a.jsonl.zst", content=CUT_ZST, bad={":3": "damaged file"}),
    Case(name="zst: no Zstandard data", file="a.jsonl.zst", content=LINE, good=0, bad={":1": "damaged file"}),
    Case(name="zst: only a magic number", file="a.jsonl.zst", content=b"\x28\xb5\x2f\xfd", good=0, bad={":1": "damaged file"}),
    Case(
        name="zst: text behind the end",
        file="a.jsonl.zst",
        content=zstandard.compress(THREE) + b"some text",
        good=3,
        bad={":4": "damaged file"},
    ),
    Case(name="zst: gzip data", file="a.jsonl.zst", content=gzip.compress(LINE), good=0, bad={":1": "damaged file"}),
    Case(
        name="zst: a window larger than allowed",
        file="a.jsonl.zst",
        content=b"\x28\xb5\x2f\xfd\x00\xf8" + bytes(30),
        good=0,
        bad={":1": "damaged file"},
    ),
    Case(
        name="gz: a cut Parquet file",
        file="a.parquet.gz",
        content=gzip.compress(as_parquet([GOOD]))[:-9],
        error="not a readable Parquet file",
    ),
]
GROUPS = as_parquet(
    pa.table({"text": [f"row {i} " + "x" * 50 for i in range(30)]}), row_group_size=10, use_dictionary=False, compression="none"
)
PAGE = GROUPS.index(b"row 10 ")
NOT_UTF8 = pa.StringArray.from_buffers(2, pa.py_buffer(struct.pack("<3i", 0, 2, 6)), pa.py_buffer(b"\xff\xfefine"))
PARQUET = [
    Case(name="parquet: no Parquet data", file="a.parquet", content=b"PAR1 no PAR1", error="not a readable Parquet file"),
    Case(name="parquet: text", file="a.parquet", content=LINE, error="not a readable Parquet file"),
    Case(name="parquet: the end is missing", file="a.parquet", content=GROUPS[:-20], error="not a readable Parquet file"),
    Case(name="parquet: the beginning alone", file="a.parquet", content=GROUPS[:4], error="not a readable Parquet file"),
    Case(
        name="parquet: a column name that is not UTF-8",
        file="a.parquet",
        content=as_parquet([{"name": "x"}]).replace(b"name", b"n\x90me"),
        error="not a readable Parquet file",
    ),
    Case(name="parquet: empty", file="a.parquet", content=b"", good=0),
    Case(name="parquet: no rows", file="a.parquet", content=as_parquet(pa.table({"text": pa.array([], pa.string())})), good=0),
    Case(
        name="parquet: text that is not UTF-8",
        file="a.parquet",
        content=as_parquet(pa.table({"text": NOT_UTF8})),
        good=1,
        bad={"#0": "undecodable"},
    ),
    Case(
        name="parquet: a date beyond Python's",
        file="a.parquet",
        content=as_parquet(pa.table({"text": ["a", "b"], "d": pa.array([0, 10**15], pa.timestamp("s"))})),
        good=1,
        bad={"#1": "unreadable value"},
    ),
    Case(
        name="parquet: bytes for text",
        file="a.parquet",
        content=as_parquet(pa.table({"text": [b"a", b"b"]})),
        good=0,
        bad={"#0": None, "#1": None},
    ),
    Case(name="parquet: null", file="a.parquet", content=as_parquet(pa.table({"text": ["a", None, "b"]})), bad={"#1": None}),
    Case(
        name="parquet: a damaged page",
        file="a.parquet",
        content=GROUPS[: PAGE - 40] + bytes(40) + GROUPS[PAGE:],
        good=20,
        bad={f"#{row}": "damaged file" for row in range(10, 20)},
    ),
]
