"""Text and JSON files: written so that a reader never sees half a file, and read with errors that name the file."""

import json
import os
import re
import stat
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any

from fledge.errors import FledgeError
from fledge.run.input_files import check_regular_file


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically: write a temporary file in the folder, flush it to disk, rename it.

    Raises FledgeError when the disk refuses the file.
    """
    tmp_path = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        tmp_path.unlink(missing_ok=True)
        with tmp_path.open("x", encoding="utf-8") as file:  # a new file: never through a link that somebody has put there
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        tmp_path.replace(path)
    except OSError as error:
        with suppress(OSError):
            tmp_path.unlink(missing_ok=True)
        raise FledgeError(f"cannot write: {error.strerror}", where=str(path), hint="free some space or set output") from None


PARTIAL = re.compile(r"\..+\.[0-9]+")


def remove_partial_files(root: Path) -> None:
    """Remove the temporary files that killed processes left in a folder. No other process may be writing there."""
    for folder, _, names in os.walk(root):
        for name in names:
            if PARTIAL.fullmatch(name):
                with suppress(OSError):
                    (Path(folder) / name).unlink()


def give_usual_mode(file: Path) -> None:
    """Give a file that a library wrote the mode of any new file of this process, as the umask says.

    Safetensors creates files that only their owner can read.
    """
    probe = file.with_name(f".{file.name}.mode")
    probe.touch()
    mode = stat.S_IMODE(probe.stat().st_mode)
    probe.unlink()
    file.chmod(mode)


def write_and_verify(path: Path, text: str) -> None:
    """Write one file of a folder that is renamed when it is complete, and read the file back.

    Raises OSError when the disk has not stored the text correctly.
    """
    path.write_text(text, encoding="utf-8")
    try:
        stored_correctly = path.read_bytes() == text.encode("utf-8")
    except FileNotFoundError:
        stored_correctly = False
    if not stored_correctly:
        raise OSError(f"{path.name} reads back otherwise than it was written")


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, atomically."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=1, allow_nan=True) + "\n")


def read_json(path: Path, shape: Any = None, hint: str | None = None) -> Any:
    """The value in a JSON file. Raises FledgeError when the file is missing or damaged.

    `shape`: the type that the value must have, such as a TypedDict or a data class, whose values stand in a JSON object. Keys
    beyond it are allowed. `hint`: what to do about a damaged file."""
    check_regular_file(path, hint)
    try:
        text = path.read_text(encoding="utf-8")
        value = json.loads(text)
        if shape is not None:
            _checker(shape).validate_json(text, strict=True)
        return value
    except FileNotFoundError:
        raise FledgeError("this file is missing", where=str(path)) from None
    except OSError as error:
        raise FledgeError(f"cannot read: {error.strerror}", where=str(path)) from None
    except RecursionError:
        raise FledgeError("damaged: nested too deeply", where=str(path), hint=hint) from None
    except ValueError as error:
        raise FledgeError(f"damaged: {_problem(error)}", where=str(path), hint=hint) from None


def read_json_lines(path: Path, shape: Any, hint: str | None = None) -> tuple[list[Any], str]:
    """The values of a file with one JSON value a line, made into `shape` (see `read_json`), and the text of the file. Raises
    FledgeError when the file is missing or a line is damaged."""
    check_regular_file(path, hint)
    try:
        text = path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise FledgeError("this file is missing", where=str(path), hint=hint) from None
    except OSError as error:
        raise FledgeError(f"cannot read: {error.strerror}", where=str(path)) from None
    except ValueError as error:
        raise FledgeError(f"damaged: {error}", where=str(path), hint=hint) from None
    values = []
    for number, line in enumerate(text.split("\n")[:-1], 1):
        try:
            values.append(_checker(shape).validate_json(line, strict=True))
        except (ValueError, RecursionError) as error:
            problem = _problem(error) if isinstance(error, ValueError) else "nested too deeply"
            raise FledgeError(f"damaged: {problem}", where=f"{path}:{number}", hint=hint) from None
    if text and not text.endswith("\n"):
        raise FledgeError("damaged: the last line has no end", where=str(path), hint=hint)
    return values, text


@cache
def _checker(shape: Any) -> Any:
    from pydantic import TypeAdapter  # not every program that reads a file needs it

    return TypeAdapter(shape)


def _problem(error: ValueError) -> str:
    """What a file that cannot be parsed, or has another shape, has wrong: the first problem, with its key."""
    problems = getattr(error, "errors", list)()  # of pydantic
    if not problems:
        return str(error).splitlines()[0]
    key = ".".join(str(name) for name in problems[0]["loc"])
    return f"{key}: {problems[0]['msg']}" if key else problems[0]["msg"]
