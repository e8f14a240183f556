"""The text of a log file, whatever its encoding, compressed or not."""

import codecs
import gzip
import re
import zlib
from pathlib import Path

from fledge.errors import FledgeError
from fledge.run.file_kinds import kind_of_content
from fledge.run.input_files import check_input_file

MAX_BYTES = 2**30
CHUNK = 2**20
GZIP = b"\x1f\x8b"
BOMS = (
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
ANSI = re.compile(r"\x1b\[[0-?]*[ -/]*[@-~]|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)|\x1b[@-_]")
CONTROL = frozenset(range(32)) - {7, 8, 9, 10, 12, 13, 27}
HEAD = 65_536


def read_bytes(path: Path) -> bytes:
    """The content of a file, unpacked if it is gzip data. Raises FledgeError for what cannot be read, and above 1 GiB."""
    check_input_file(path)
    try:
        with path.open("rb") as file:
            packed = file.read(2) == GZIP
        with gzip.open(path, "rb") if packed else path.open("rb") as file:
            content = bytearray()  # grows with the file: one read of the largest size would ask for all of it
            while len(content) <= MAX_BYTES and (part := file.read(CHUNK)):
                content += part
    except (OSError, EOFError, zlib.error) as error:
        if isinstance(error, EOFError | zlib.error | gzip.BadGzipFile):
            raise FledgeError(
                "this gzip file is damaged or cut off", where=str(path), hint="unpack what can be unpacked: zcat FILE > log.txt"
            ) from None
        raise FledgeError(f"cannot read: {error.strerror or error}", where=str(path)) from None
    if len(content) > MAX_BYTES:
        raise FledgeError("this file is too large for a log: more than 1 GiB", where=str(path), hint="name a part of it")
    return bytes(content)


def looks_binary(content: bytes) -> bool:
    """Whether these bytes are no text in an encoding that is known here."""
    head = content[:HEAD]
    if any(head.startswith(bom) for bom, _ in BOMS):
        return False
    if kind_of_content(head) is not None:
        return True
    return sum(byte in CONTROL for byte in head) > len(head) // 100


def decode(content: bytes, path: Path) -> str:
    """The text of a file: by its byte order mark, else UTF-8, else GB18030. Raises FledgeError if it is none of them."""
    for bom, encoding in BOMS:
        if content.startswith(bom):
            return content.decode(encoding, errors="replace")
    kind = kind_of_content(content[:HEAD])
    if kind is not None:
        raise FledgeError(f"this is {kind.description}, not a log", where=str(path), hint=kind.way)
    if looks_binary(content):
        raise FledgeError("this file is binary and no log that is known here", where=str(path), hint=LOG_HINT)
    try:
        return content.decode("utf-8")
    except UnicodeDecodeError as error:
        if error.start >= len(content) - 4:  # cut off inside a character
            return content.decode("utf-8", errors="ignore")
    try:
        return content.decode("gb18030")
    except UnicodeDecodeError:
        return content.decode("utf-8", errors="replace")


def read_text(path: Path) -> str:
    """The text of a log file."""
    return decode(read_bytes(path), path)


def without_colours(text: str) -> str:
    """The text without the codes that colour a terminal or move its cursor."""
    return ANSI.sub("", text) if "\x1b" in text else text


LOG_HINT = (
    "name a run of fledge, trainer_state.json, trainer_log.jsonl, a TensorBoard or W&B file, a JSONL or CSV file with columns "
    "of figures, or the text that the trainer printed"
)
