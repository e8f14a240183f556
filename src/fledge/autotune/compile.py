"""torch.compile, as training uses it: one block for all layers, the head's chunk, and a cache that lasts."""

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
import xxhash

import fledge
from fledge.errors import FledgeError
from fledge.model.linear_cross_entropy import _softmax_grad_chunk
from fledge.model.protocol import LanguageModel
from fledge.plan.memory import is_out_of_memory
from fledge.run.cache import cache_folder

functorch: Any = import_module("torch._functorch.config")
_compiled_kernel: list[Any] = []


def use_compile_cache() -> str:
    """Let the compiler keep what it makes in fledge's cache folder, unless the user chose a folder; returns the folder.

    A second run then reads its code instead of making it. Must be called before anything is compiled. In its own folder,
    which is that of this version of the model's code alone, fledge also lets it keep what it found out about attention's
    own backward pass: the compiler by itself would not notice that such code has changed.
    """
    chosen = os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(_own_folder()))
    if chosen == str(_own_folder()) and hasattr(functorch, "autograd_cache_allow_custom_autograd_functions"):
        functorch.autograd_cache_allow_custom_autograd_functions = True
    return chosen


def _own_folder() -> Path:
    return cache_folder() / "inductor" / model_code()


@cache
def model_code() -> str:
    """Changes with the code of the model and of the objectives."""
    digest = xxhash.xxh3_64()
    rooms = Path(fledge.__file__).parent
    for file in (file for room in ("model", "objective") for file in sorted((rooms / room).glob("*.py"))):
        digest.update(file.read_bytes())
    return digest.hexdigest()


def compile_with_cache_retry(step: Callable[[], None], say: Callable[[str], None] = lambda text: None) -> None:
    """Run a step that compiles. Where it fails on code kept from before, that is thrown away and made once more.

    A process killed while compiling can leave half a library behind, which the compiler would trip over for ever. A
    folder that the user chose is left alone. The second failure is raised.
    """
    try:
        step()
    except Exception as error:
        if isinstance(error, FledgeError) or is_out_of_memory(error):
            raise
        folder = _own_folder()
        if use_compile_cache() != str(folder) or not folder.is_dir():
            raise
        say(f"note: compiling failed ({type(error).__name__}); {folder} is emptied and the code made again")
        aside = folder.with_name(f".{folder.name}.{os.getpid()}")
        folder.replace(aside)
        shutil.rmtree(aside, ignore_errors=True)
        torch._dynamo.reset()
        step()


def compile_blocks(model: LanguageModel) -> None:
    """Compile the block once; all layers share its code. (The stack as a whole would take layers times as long.)"""
    use_compile_cache()
    for block in model.blocks():
        if block._compiled_call_impl is None:
            block.compile(dynamic=False)


def reset_compiler() -> None:
    """Begin a stage without the compiled code of those before. The compiler keeps a bounded number of variants of one piece
    of code and would run what comes after them uncompiled; here it raises instead of doing that unsaid."""
    _compiled_kernel.clear()
    torch._dynamo.reset()
    torch._dynamo.config.fail_on_recompile_limit_hit = True  # type: ignore[attr-defined]


def uncompile(model: LanguageModel) -> None:
    """Back to plain calls."""
    for block in model.blocks():
        block._compiled_call_impl = None


def compiled_kernel() -> Any:
    """The head's chunk, compiled; one for the whole process."""
    if not _compiled_kernel:
        use_compile_cache()
        _compiled_kernel.append(torch.compile(_softmax_grad_chunk, dynamic=False))
    return _compiled_kernel[0]


@contextmanager
def force_eager() -> Iterator[None]:
    """Without compiled code: evaluation is too short to pay for compiling its own shapes."""
    with torch.compiler.set_stance("force_eager"):
        yield
