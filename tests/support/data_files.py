"""Data files of every format, and the records that are read from them."""

import csv
import gzip
import io
import json
from collections.abc import Iterable, Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import zstandard
from hypothesis import strategies as st

from fledge.data.reading.formats import Record
from fledge.data.reading.records import read, spans_of
from fledge.recipe.schema import Source

ROWS = [{"prompt": f'第{i}个问题, "so"?\n', "response": f"答案 {i}; yes\tno 🙂"} for i in range(7)]
COMPRESS = {"": bytes, ".gz": gzip.compress, ".zst": zstandard.compress}
CHINESE = "春眠不觉晓，处处闻啼鸟。夜来风雨声，花落知多少。\n我们的国家是一个很大的国家。\n"


def encode_rows(ending: str, rows: list[dict]) -> bytes:
    """The rows as the bytes of a file with this extension."""
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    if ending in (".jsonl", ".ndjson"):
        return "\n".join(lines).encode()
    if ending == ".json":
        return json.dumps(rows, ensure_ascii=False, indent=2).encode()
    if ending == ".parquet":
        buffer = io.BytesIO()
        parquet.write_table(pa.Table.from_pylist(rows), buffer)
        return buffer.getvalue()
    text = io.StringIO()
    table = csv.DictWriter(text, list(rows[0]), delimiter="\t" if ending == ".tsv" else ",")
    table.writeheader()
    table.writerows(rows)
    return text.getvalue().encode()


def records(file: Path, target: int = 1 << 30, **source: Any) -> list[Record]:
    """All records of a file, read range by range."""
    spec = Source(path=str(file), **source)
    return [record for span in spans_of([file], spec, target) for record in read(span, spec)]


def values(file: Path, target: int = 1 << 30, **source: Any) -> list[Any]:
    """The values of a file without broken rows."""
    results = records(file, target, **source)
    assert not [record for record in results if record.broken]
    return [record.value for record in results]


def pieces(content: bytes, cuts: Iterable[int]) -> Iterator[bytes]:
    """The content split at these offsets."""
    bounds = sorted({0, len(content), *(cut % (len(content) + 1) for cut in cuts)})
    return (content[a:b] for a, b in pairwise(bounds))


CUTS = st.lists(st.integers(0, 10_000), max_size=12)
