"""Prompt sets that come with fledge: small ones that any chat model can be asked, in English and Chinese."""

from importlib.resources import files
from pathlib import Path

from fledge.errors import FledgeError

PREFIX = "builtin:"


def builtin_names() -> list[str]:
    """The names of the sets, as they stand behind `builtin:`."""
    return sorted(file.name.removesuffix(".yaml") for file in files(__name__).iterdir() if file.name.endswith(".yaml"))


def builtin_path(path: str, where: str) -> Path:
    """The file of a set that is named as `builtin:NAME`. Raises FledgeError, with `where`, for an unknown name."""
    name = path.removeprefix(PREFIX)
    if name not in builtin_names():
        known = ", ".join(f"{PREFIX}{one}" for one in builtin_names())
        raise FledgeError(f"there is no built-in set '{name}'", where=where, hint=f"there are {known}")
    return Path(str(files(__name__) / f"{name}.yaml"))
