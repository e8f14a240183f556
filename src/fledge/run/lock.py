"""A lock between processes. The operating system releases it when its holder ends, even after a crash."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from fledge.errors import FledgeError


@contextmanager
def exclusive_lock(file: Path, folder: Path) -> Iterator[None]:
    """Hold the lock `file` while writing into `folder`. Raises FledgeError when another process holds the lock."""
    lock = FileLock(file, timeout=0)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout:
        raise FledgeError(
            "another process is writing here", where=str(folder), hint="wait until it has finished, or choose another folder"
        ) from None
    except OSError as error:
        raise FledgeError(f"cannot write: {error.strerror}", where=str(folder), hint="choose another folder") from None
    try:
        yield
    finally:
        lock.release()
