"""torch.compile: one block whose code all layers share, the head's kernel, and a persistent compile cache."""

import os
import shutil
import sys
from collections.abc import Callable, Iterator
from functools import cache
from importlib import import_module
from json import JSONDecodeError
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
import xxhash

from fledge.errors import first_line
from fledge.model.linear_cross_entropy import _softmax_grad_chunk
from fledge.model.protocol import LanguageModel
from fledge.run.code_cache import private_code_cache, set_by_user

functorch: Any = import_module("torch._functorch.config")
IMPORT_DEFAULT_FOLDER = ("torch._inductor.runtime.runtime_utils", "torch._inductor.codecache")  # they import its function
BROKEN_LIBRARY = (  # of the loader of libraries, and of CUDA for a kernel that it cannot read
    "file too short", "invalid ELF header", "file truncated", "device kernel image is invalid",
)  # fmt: skip
_compiled_kernel: list[Any] = []


def use_compile_cache() -> str:
    """Make torch.compile keep its code in fledge's own cache, unless the user has set TORCHINDUCTOR_CACHE_DIR.

    Returns the directory. Must be called before anything is compiled; a second run then loads the code instead of compiling it.
    fledge's own directory is specific to this version of the model's code. There the backward pass of attention, a custom
    autograd function, is cached too: the compiler alone would not notice a change of that code.

    Raises FledgeError if another user could have put code into the directory.
    """
    base = private_code_cache()
    chosen = set_by_user("TORCHINDUCTOR_CACHE_DIR", base) or base / model_code()
    if chosen == base / model_code() and hasattr(functorch, "autograd_cache_allow_custom_autograd_functions"):
        functorch.autograd_cache_allow_custom_autograd_functions = True
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(chosen)
    os.environ["TRITON_CACHE_DIR"] = str(set_by_user("TRITON_CACHE_DIR", base) or base / "triton")
    _redirect_default_folder(base)
    return str(chosen)


def _redirect_default_folder(base: Path) -> None:
    """torch keeps some files, such as precompiled headers, in its default folder whatever the variables say: make it ours."""
    utils: Any = import_module("torch._inductor.runtime.cache_dir_utils")
    loaded: list[Any] = [sys.modules[name] for name in IMPORT_DEFAULT_FOLDER if name in sys.modules]
    for module in (utils, *loaded):
        module.default_cache_dir = lambda: str(base)
    for module in loaded:
        if hasattr(module, "_HEADER_DIR"):
            module._HEADER_DIR = str(base / "precompiled_headers")
            module._HEADER_LOCK_DIR = str(base / "precompiled_headers" / "locks")


@cache
def model_code() -> str:
    """Hash of the source code of the model and the objectives."""
    digest = xxhash.xxh3_64()
    package = Path(__file__).parents[1]
    for file in (file for name in ("model", "objective") for file in sorted((package / name).glob("*.py"))):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def compile_with_cache_retry(step: Callable[[], None], log: Callable[[str], None] = lambda text: None) -> None:
    """Run a step that compiles; if cached code cannot be loaded, empty the cache and try once more.

    A process killed during compilation can leave an incomplete library behind, which would fail forever. Any other error, such
    as that of a backend without a kernel for this device, is raised unchanged, and so is the second failure. A directory set by
    the user is left untouched.
    """
    try:
        step()
    except Exception as error:
        base = private_code_cache()
        own = [folder for folder in (base / model_code(), base / "triton") if folder.is_dir()]
        if not own or use_compile_cache() != str(base / model_code()) or not is_damaged_cache(error, base):
            raise
        names = ", ".join(map(str, own))
        log(f"note: cached code could not be loaded ({first_line(error)}); {names}: emptied, and the code is compiled again")
        for folder in own:
            stale = folder.with_name(f".{folder.name}.{os.getpid()}")
            folder.replace(stale)
            shutil.rmtree(stale, ignore_errors=True)
        torch._dynamo.reset()
        step()


def is_damaged_cache(error: BaseException, folder: Path) -> bool:
    """Whether an error, or one of its causes, says that a file of cached code in `folder` is incomplete or not readable.

    A compiler wraps the error of its backend, so all causes are looked at. A module or a compiler that is missing is not a
    damaged cache: emptying it, which other processes use, would not help.
    """
    return any(_is_unreadable(cause, folder) for cause in _causes(error))


def _is_unreadable(error: BaseException, folder: Path) -> bool:
    text = str(error)
    if isinstance(error, EOFError | UnpicklingError | JSONDecodeError) or any(words in text for words in BROKEN_LIBRARY):
        return True
    named = f"{text} {getattr(error, 'filename', None)}"
    is_reading = isinstance(error, OSError | SyntaxError | ImportError)
    return is_reading and not isinstance(error, ModuleNotFoundError) and str(folder) in named


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error, what it was raised from, and the errors that torch's wrappers hold."""
    seen: list[BaseException] = []
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is not None and one not in seen:
            seen.append(one)
            waiting += [one.__cause__, one.__context__, getattr(one, "inner_exception", None)]
            yield one


def compile_blocks(model: LanguageModel) -> None:
    """Compile one block; all layers share its code. Compiling the whole stack would take one time per layer."""
    use_compile_cache()
    for block in model.blocks():
        if block._compiled_call_impl is None:
            block.compile(dynamic=False)


def reset_compiler() -> None:
    """Drop the compiled code of earlier stages.

    The compiler keeps a limited number of variants of each function and silently runs further ones uncompiled. After this call
    it raises an error instead.
    """
    _compiled_kernel.clear()
    torch._dynamo.reset()
    torch._dynamo.config.fail_on_recompile_limit_hit = True  # type: ignore[attr-defined]


def uncompile(model: LanguageModel) -> None:
    """Make the model's blocks run uncompiled again."""
    for block in model.blocks():
        block._compiled_call_impl = None


def compiled_kernel() -> Any:
    """The compiled kernel of the head; one per process."""
    if not _compiled_kernel:
        use_compile_cache()
        _compiled_kernel.append(torch.compile(_softmax_grad_chunk, dynamic=False))
    return _compiled_kernel[0]
