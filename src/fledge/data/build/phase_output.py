"""The output of one phase for one shard: a folder that appears complete, by a rename, or not at all."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import orjson

RESULT_FILE = "result.json"


def is_finished(output: Path) -> bool:
    """Whether a phase has finished a shard: its output folder holds a result."""
    return (output / RESULT_FILE).exists()


def read_result(output: Path) -> dict[str, Any]:
    """The result that a phase wrote into its output folder of a shard: counts, files, events."""
    return orjson.loads((output / RESULT_FILE).read_bytes())


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
