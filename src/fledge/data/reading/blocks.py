"""The bytes of a plain or compressed file, block by block in constant memory."""

import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import zstandard

from fledge.errors import FledgeError
from fledge.run.file_kinds import kind_of_content

BLOCK = 1 << 20  # bytes per block
GZIP_PIECE = 1 << 16  # compressed bytes decoded at a time
ZSTD_PIECE = 1 << 10  # small: zstandard does not limit its output, and 1 KiB decompresses to at most 32 MiB
ZSTD_WINDOW = 1 << 31  # bytes, the window of `zstd --long=31`


class DamagedFile(Exception):
    """The rest of a compressed file cannot be read; the blocks before were complete."""


def blocks_of(file: Path, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
    """The content of a file in blocks of about 1 MiB. `start` and `stop` (bytes) select a range of a plain file.

    Raises DamagedFile if compressed data are corrupt or end early; FledgeError if the file cannot be opened or ends before
    `stop`.
    """
    decompress = DECOMPRESSORS.get(file.suffix.lower())
    try:
        with file.open("rb") as handle:
            yield from _regrouped(decompress(handle)) if decompress else _plain(handle, file, start, stop)
    except OSError as error:
        raise FledgeError(f"cannot read it: {error.strerror or error}", where=str(file)) from None


def head_of(file: Path, size: int) -> bytes:
    """The first `size` bytes of the content; fewer if the file is shorter or damaged before."""
    head = b""
    try:
        for block in blocks_of(file):
            head += block
            if len(head) >= size:
                break
    except DamagedFile:
        pass  # reported when the rows are read
    return head[:size]


def check_is_text(file: Path, block: bytes) -> None:
    """Raise FledgeError if a text file begins with the signature of a binary format."""
    if kind := kind_of_content(block):
        raise FledgeError(f"this is {kind.description}, not what its name says", where=str(file), hint=kind.way)


def _plain(handle: BinaryIO, file: Path, start: int, stop: int | None) -> Iterator[bytes]:
    size = os.fstat(handle.fileno()).st_size
    if stop is not None and size < stop:
        raise FledgeError(f"the file has become shorter: {size:,} of {stop:,} bytes are left", where=str(file))
    handle.seek(start)
    remaining = stop - start if stop is not None else None
    while remaining != 0 and (block := handle.read(BLOCK if remaining is None else min(BLOCK, remaining))):
        remaining = None if remaining is None else remaining - len(block)
        yield block


def _regrouped(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Small pieces joined to blocks; the pieces before a damage are yielded first."""
    buffered: list[bytes] = []
    size = 0
    try:
        for piece in pieces:
            buffered.append(piece)
            size += len(piece)
            if size >= BLOCK:
                yield b"".join(buffered)
                buffered, size = [], 0
    except DamagedFile:
        if size:
            yield b"".join(buffered)
        raise
    if size:
        yield b"".join(buffered)


def _gunzip(handle: BinaryIO) -> Iterator[bytes]:
    """The members of a gzip file, decompressed; zeros after a member are padding (RFC 1952 and the gzip program)."""
    decoder, members = None, 0
    while piece := handle.read(GZIP_PIECE):
        while piece:
            if decoder is None:
                piece = piece.lstrip(b"\0") if members else piece
                if not piece:
                    break
                decoder, members = zlib.decompressobj(wbits=31), members + 1
            before = decoder.copy()
            try:
                yield decoder.decompress(piece, BLOCK)
            except zlib.error as error:
                yield _before_error(before, piece)
                raise DamagedFile(f"{error}, near byte {handle.tell() - len(piece):,} of the file") from None
            piece, decoder = (decoder.unused_data, None) if decoder.eof else (decoder.unconsumed_tail, decoder)
    if decoder is not None:
        raise DamagedFile(f"the gzip data end early, at byte {handle.tell():,} of the file")


def _before_error(decoder: "zlib._Decompress", piece: bytes) -> bytes:
    """The content of a piece before its first corrupt byte."""
    content = []
    try:
        for byte in piece:
            content.append(decoder.decompress(bytes((byte,))))
    except zlib.error:
        pass
    return b"".join(content)


def _unzstd(handle: BinaryIO) -> Iterator[bytes]:
    """The frames of a Zstandard file (RFC 8878), decompressed; skippable frames have no content."""
    unpacker = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW)
    decoder = None
    while piece := handle.read(ZSTD_PIECE):
        while piece:
            decoder = decoder or unpacker.decompressobj()
            try:
                yield decoder.decompress(piece)
            except zstandard.ZstdError as error:
                raise DamagedFile(f"{error}, near byte {handle.tell() - len(piece):,} of the file") from None
            piece, decoder = (decoder.unused_data, None) if decoder.eof else (b"", decoder)
    if decoder is not None:
        raise DamagedFile(f"the Zstandard data end early, at byte {handle.tell():,} of the file")


DECOMPRESSORS: dict[str, Callable[[BinaryIO], Iterator[bytes]]] = {".gz": _gunzip, ".zst": _unzstd}
