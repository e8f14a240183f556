"""The output of one phase for one shard: a folder that appears complete, by a rename, or not at all."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson
from pydantic import NonNegativeInt
from typing_extensions import TypedDict

from fledge.data.parsing.row_statistics import ShardStatistics
from fledge.data.row_events import BUILD_AGAIN, EventCounts
from fledge.run.text_files import read_json

RESULT_FILE = "result.json"


def is_finished(output: Path) -> bool:
    """Whether a phase has finished a shard: its output folder holds a result."""
    return (output / RESULT_FILE).exists()


class RowsResult(TypedDict):
    """The result of the read phase: rows, items, the files, the library of the signatures, counts of events and columns."""

    rows: NonNegativeInt
    items: NonNegativeInt
    files: list[str]
    signatures: str | None
    row_events: EventCounts
    statistics: ShardStatistics


class SplitCounts(TypedDict):
    """The counts of one split in the result of the tokenize phase, and the digest of its tokens."""

    used_rows: NonNegativeInt
    digest: str
    examples: NonNegativeInt
    ended: NonNegativeInt
    tokens: NonNegativeInt
    target_tokens: NonNegativeInt


class Splits(TypedDict):
    """The counts of both splits."""

    train: SplitCounts
    validation: SplitCounts


class TokensResult(TypedDict):
    """The result of the tokenize phase: counts of events, and of each split."""

    row_events: EventCounts
    splits: Splits


def read_rows_result(output: Path) -> dict[str, Any]:
    """The result of the read phase for a shard. Raises FledgeError if the file is damaged."""
    return read_json(output / RESULT_FILE, RowsResult, BUILD_AGAIN)


def read_tokens_result(output: Path) -> dict[str, Any]:
    """The result of the tokenize phase for a shard. Raises FledgeError if the file is damaged."""
    return read_json(output / RESULT_FILE, TokensResult, BUILD_AGAIN)


def write_output(output: Path, write: Callable[[Path], dict[str, Any]]) -> None:
    """Let `write` fill a temporary folder, add the result that it returns, and rename the folder to `output`.

    A worker can therefore die at any moment, and another one writes equal bytes. A finished output is not written again."""
    if is_finished(output):
        return
    tmp_path = output.with_name(f".{output.name}.{os.getpid()}")
    shutil.rmtree(tmp_path, ignore_errors=True)
    tmp_path.mkdir(parents=True)
    try:
        result = write(tmp_path)
        (tmp_path / RESULT_FILE).write_bytes(orjson.dumps(result))
        if output.exists():
            shutil.rmtree(output)
        tmp_path.rename(output)
    finally:
        shutil.rmtree(tmp_path, ignore_errors=True)
