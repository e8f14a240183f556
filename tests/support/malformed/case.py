"""A malformed file with the outcome that reading it must have, and builders of such files."""

import io
import json
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet

GOOD = {"text": "t", "prompt": "q", "response": "a", "chosen": "c", "rejected": "r"}
LINE = json.dumps(GOOD).encode()
KEY = "stages.x.data.train.0"


@dataclass(frozen=True, kw_only=True)
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


def as_csv(*rows: str) -> bytes:
    """A CSV file with these rows between two valid ones."""
    return "\r\n".join(["text,prompt", "one,two", *rows, "three,four"]).encode() + b"\r\n"


def as_parquet(rows: list[Any], **options: Any) -> bytes:
    """A Parquet file with these rows."""
    table = rows if isinstance(rows, pa.Table) else pa.Table.from_pylist(rows)
    buffer = io.BytesIO()
    parquet.write_table(table, buffer, **options)
    return buffer.getvalue()
