"""The folder of compiled code. What lies there is executed, so only its owner may write there.

torch's own choice is a folder of a predictable name in the shared temporary directory, where any user can put code first.
"""

import atexit
import os
import shutil
import stat
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

from fledge.errors import FledgeError
from fledge.run.cache import cache_folder

VARIABLES = ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")
MOST_KERNELS = 256  # of products that oneDNN keeps on a CPU: 0.4 to 1.2 MiB of code each in bfloat16, its own limit is 1024
OTHERS_MAY_WRITE = stat.S_IWGRP | stat.S_IWOTH
_temporary: list[Path] = []


def code_cache_folder() -> Path:
    """The folder of compiled code of this user, in the cache of this machine."""
    return cache_folder() / f"compiled-{os.getuid() if hasattr(os, 'getuid') else 'user'}"


def set_code_cache() -> None:
    """Set the variables that torch and oneDNN read when they are loaded, unless the user has set them, and make the folder.

    Called by every command before torch is loaded. Folders are checked later, by `private_code_cache`.
    """
    folder = code_cache_folder()
    for name, chosen in zip(VARIABLES, (folder, folder / "triton"), strict=True):
        os.environ.setdefault(name, str(chosen))
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", str(MOST_KERNELS))
    with suppress(OSError):
        _make(folder)


def private_code_cache() -> Path:
    """The folder of compiled code, made if it is missing; a temporary one where the cache cannot be written.

    Raises FledgeError if another user owns it or can write into it, and also for a folder that the user has set.
    """
    folder = _temporary[0] if _temporary else code_cache_folder()
    try:
        _make(folder)
    except OSError:
        folder = Path(tempfile.mkdtemp(prefix="fledge-compiled-"))
        _temporary.append(folder)
        atexit.register(shutil.rmtree, folder, ignore_errors=True)
    check_private(folder, "the cache of compiled code", "remove it, or set FLEDGE_CACHE to a folder of your own")
    for name in VARIABLES:
        if chosen := set_by_user(name, folder):
            check_private(chosen, f"the code in {name}", "set it to a folder of your own, or leave it unset")
    return folder


def set_by_user(name: str, own: Path) -> Path | None:
    """The folder that the user has set by this variable; None where torch has set its default, or fledge a folder in `own`."""
    value = os.environ.get(name)
    module = sys.modules.get("torch._inductor.runtime.cache_dir_utils")
    if not value or (module and Path(value) == Path(module.default_cache_dir())):
        return None
    return None if any(Path(value).is_relative_to(folder) for folder in (own, code_cache_folder())) else Path(value)


def check_private(folder: Path, name: str, hint: str) -> None:
    """Raise FledgeError if the folder exists and another user owns it or can write into it."""
    try:
        found = folder.stat()
    except FileNotFoundError:
        return
    owner = getattr(os, "getuid", lambda: found.st_uid)()
    if found.st_uid != owner:
        problem = f"it belongs to another user (number {found.st_uid})"
    elif hasattr(os, "getuid") and found.st_mode & OTHERS_MAY_WRITE:
        problem = f"other users can write into it (mode {stat.S_IMODE(found.st_mode):o})"
    else:
        return
    raise FledgeError(f"{name} would be executed, and {problem}", where=str(folder), hint=hint)


def _make(folder: Path) -> None:
    if not folder.is_dir():
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
