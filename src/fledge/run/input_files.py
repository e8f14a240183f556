"""Checks of a file that a user names, before its content is read."""

import re
from pathlib import Path

from fledge.errors import FledgeError

LFS_POINTER = b"version https://git-lfs.github.com/spec/"
HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+")  # owner/name


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


def lookup_hint(path: Path) -> str:
    """Where a path of a recipe that leads nowhere was looked for, and what to do."""
    if path.is_absolute():
        return "check the path, or put the data there"
    return (
        f"looked in {Path.cwd()}: relative paths start where the command runs; run it elsewhere, or write the path to your data"
    )


def looks_like_hub_name(path: Path) -> bool:
    """Whether nothing is at a path that has the form of a name on the Hugging Face hub, `owner/name`."""
    return not path.exists() and not path.parent.exists() and HUB_NAME.fullmatch(str(path)) is not None


def check_regular_file(file: Path, hint: str | None = None) -> None:
    """Raise FledgeError for a pipe, a device or a folder in place of a file: it might never end. A missing file passes."""
    if file.exists() and not file.is_file():
        raise FledgeError("this is not a regular file", where=str(file), hint=hint)


def hub_name_error(path: Path, where: str | None = None) -> FledgeError | None:
    """The error for a path that does not exist and looks like the name of a model on the Hugging Face hub; None for others.

    `where`: the recipe key that names the path; None: the path itself."""
    if not looks_like_hub_name(path):
        return None
    return FledgeError(
        f"there is no such folder; '{path}' looks like a name on the Hugging Face hub",
        where=where or str(path),
        hint=f"write hub:{path} to download it; or run `hf download {path} --local-dir {path.name}`, and write {path.name}",
    )
