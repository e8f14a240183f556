"""The bytes of a file, plain or decompressed: block by block, in constant memory."""

import os
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import zstandard

from fledge.errors import FledgeError

BLOCK = 1 << 20  # bytes handed on at once
GZIP_PIECE = 1 << 16  # compressed bytes decoded at once
ZSTD_PIECE = 1 << 10  # small: zstandard has no bound on what it returns, and 1 KiB unpacks to 32 MiB at most
ZSTD_WINDOW = 1 << 31  # bytes; what `zstd --long=31` writes
FOREIGN = {
    b"\x1f\x8b": ("gzip data", ".gz at the end"),
    b"\x28\xb5\x2f\xfd": ("Zstandard data", ".zst at the end"),
    b"PAR1\x15": ("Parquet data", ".parquet at the end"),
    b"PK\x03\x04": ("a ZIP archive", None),
}


class Damaged(Exception):
    """The rest of a compressed file cannot be read; the blocks before this were whole."""


def blocks_of(file: Path, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
    """The content in blocks of about 1 MiB. `start` and `stop` (bytes) choose a part of a plain file.

    Raises Damaged where compressed data end early or are corrupt; FledgeError where the file cannot be opened or ends before
    `stop`.
    """
    unpack = UNPACK.get(file.suffix.lower())
    try:
        with file.open("rb") as handle:
            yield from _gathered(unpack(handle)) if unpack else _plain(handle, file, start, stop)
    except OSError as error:
        raise FledgeError(f"cannot read it: {error.strerror or error}", where=str(file)) from None


def head_of(file: Path, size: int) -> bytes:
    """The first `size` bytes of the content; fewer where the file is shorter or damaged before."""
    head = b""
    try:
        for block in blocks_of(file):
            head += block
            if len(head) >= size:
                break
    except Damaged:
        pass  # told when the rows are read
    return head[:size]


def check_not_foreign(file: Path, block: bytes) -> None:
    """FledgeError if a file of text begins like one of a format that is none."""
    for magic, (content, ending) in FOREIGN.items():
        if block.startswith(magic):
            hint = f"rename it so that it has {ending}" if ending else "unpack it"
            raise FledgeError(f"this is {content}, not what its name says", where=str(file), hint=hint)


def _plain(handle: BinaryIO, file: Path, start: int, stop: int | None) -> Iterator[bytes]:
    size = os.fstat(handle.fileno()).st_size
    if stop is not None and size < stop:
        raise FledgeError(f"the file has become shorter: {size:,} of {stop:,} bytes are left", where=str(file))
    handle.seek(start)
    left = stop - start if stop is not None else None
    while left != 0 and (block := handle.read(BLOCK if left is None else min(BLOCK, left))):
        left = None if left is None else left - len(block)
        yield block


def _gathered(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Small pieces as blocks; what came before a damage is handed on first."""
    held: list[bytes] = []
    size = 0
    try:
        for piece in pieces:
            held.append(piece)
            size += len(piece)
            if size >= BLOCK:
                yield b"".join(held)
                held, size = [], 0
    except Damaged:
        if size:
            yield b"".join(held)
        raise
    if size:
        yield b"".join(held)


def _gunzip(handle: BinaryIO) -> Iterator[bytes]:
    """All members of a gzip file; zeros after a member are padding (RFC 1952 and the gzip program)."""
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
                yield _up_to_the_error(before, piece)
                raise Damaged(f"{error}, near byte {handle.tell() - len(piece):,} of the file") from None
            piece, decoder = (decoder.unused_data, None) if decoder.eof else (decoder.unconsumed_tail, decoder)
    if decoder is not None:
        raise Damaged(f"the gzip data end early, at byte {handle.tell():,} of the file")


def _up_to_the_error(decoder: "zlib._Decompress", piece: bytes) -> bytes:
    """What a piece holds before its first corrupt byte."""
    content = []
    try:
        for byte in piece:
            content.append(decoder.decompress(bytes((byte,))))
    except zlib.error:
        pass
    return b"".join(content)


def _unzstd(handle: BinaryIO) -> Iterator[bytes]:
    """All frames of a Zstandard file (RFC 8878); skippable frames hold nothing."""
    unpacker = zstandard.ZstdDecompressor(max_window_size=ZSTD_WINDOW)
    decoder = None
    while piece := handle.read(ZSTD_PIECE):
        while piece:
            decoder = decoder or unpacker.decompressobj()
            try:
                yield decoder.decompress(piece)
            except zstandard.ZstdError as error:
                raise Damaged(f"{error}, near byte {handle.tell() - len(piece):,} of the file") from None
            piece, decoder = (decoder.unused_data, None) if decoder.eof else (b"", decoder)
    if decoder is not None:
        raise Damaged(f"the Zstandard data end early, at byte {handle.tell():,} of the file")


UNPACK: dict[str, Callable[[BinaryIO], Iterator[bytes]]] = {".gz": _gunzip, ".zst": _unzstd}
