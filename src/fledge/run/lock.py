"""A lock between processes. The operating system releases it when its holder ends, even after a crash."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fledge.errors import FledgeError


def lock_file(folder: Path) -> Path:
    """The file that `exclusive_lock` locks for a folder. Raises FledgeError for a loop of symbolic links."""
    try:
        real = folder.resolve()
    except RuntimeError:
        raise FledgeError("this path is a loop of symbolic links", where=str(folder), hint="choose another folder") from None
    return real.with_name(f".{real.name}.lock")


@contextmanager
def exclusive_lock(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder while writing into it: `.<name>.lock` beside the real folder, so that every path to it, also
    through symbolic links, means one lock. Raises FledgeError when another process holds the lock."""
    from filelock import FileLock, Timeout  # here: processes that hold no lock start sooner without it

    file = lock_file(folder)
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
