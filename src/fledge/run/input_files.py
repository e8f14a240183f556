"""Checks of a file that a user names, before its content is read."""

from pathlib import Path

from fledge.errors import FledgeError

LFS_POINTER = b"version https://git-lfs.github.com/spec/"


def check_input_file(file: Path, where: str | None = None) -> None:
    """Raise FledgeError if a file cannot be opened, is a pipe or a device, or is a Git LFS pointer instead of the content.

    `where`: the recipe key that names the file; None: the file itself."""
    place = where or str(file)
    try:
        if not file.is_file():
            raise FledgeError(
                f"'{file}' is not a regular file", where=place, hint=None if file.exists() else "it does not exist"
            )
        with file.open("rb") as handle:
            head = handle.read(len(LFS_POINTER))
    except OSError as error:
        raise FledgeError(f"cannot read '{file}': {error.strerror or error}", where=place) from None
    if head == LFS_POINTER:
        raise FledgeError(
            f"'{file}' is a Git LFS pointer, not the file itself",
            where=place,
            hint="run `git lfs pull` in the repository that it came from, or download the file",
        )
