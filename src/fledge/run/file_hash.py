"""Hashes of the content of files."""

from pathlib import Path

import xxhash

BLOCK = 1 << 20  # bytes read at a time


def hash_files(*files: Path) -> str:
    """The xxh3 hash of the content of files, one after another; of nothing without a file."""
    digest = xxhash.xxh3_64()
    for file in files:
        with file.open("rb") as content:
            while block := content.read(BLOCK):
                digest.update(block)
    return digest.hexdigest()
