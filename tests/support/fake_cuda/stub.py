"""The stub that makes a CPU build of PyTorch believe in one CUDA device. It changes the process for good."""

import ctypes
import importlib.util
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import xxhash

SOURCE = Path(__file__).with_name("guard.cpp")


def compiler() -> str | None:
    """The C++ compiler that builds the stub, if there is one."""
    return next((found for name in ("g++", "c++", "clang++") if (found := shutil.which(name))), None)


def _torch_folder() -> Path:
    spec = importlib.util.find_spec("torch")
    assert spec is not None and spec.origin is not None
    return Path(spec.origin).parent


def missing() -> str | None:
    """The reason why the stub cannot be built here; None if it can."""
    if compiler() is None:
        return "fake CUDA needs a C++ compiler (g++), and there is none"
    if not (_torch_folder() / "include" / "ATen" / "detail" / "CUDAHooksInterface.h").exists():
        return "fake CUDA needs the headers of PyTorch, and they are not installed"
    if next((_torch_folder() / "lib").glob("libtorch_cuda*"), None) is not None:
        return "fake CUDA is for CPU builds of PyTorch, and this is a CUDA build"
    return None


def build(folder: Path) -> Path:
    """The compiled stub in a folder; it is compiled if it is not there yet."""
    torch_folder = _torch_folder()
    version = (torch_folder / "version.py").read_bytes()
    target = folder / f"fake_cuda_{xxhash.xxh3_64_hexdigest(SOURCE.read_bytes() + version)}.so"
    if not target.exists():
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            out = Path(scratch) / "stub.so"
            command = [str(compiler()), "-O0", "-shared", "-fPIC", "-std=c++20", f"-I{torch_folder / 'include'}", str(SOURCE)]
            command += [f"-L{torch_folder / 'lib'}", "-lc10", "-ltorch_cpu", "-o", str(out)]
            done = subprocess.run(command, capture_output=True, text=True)
            if done.returncode:
                raise RuntimeError(f"the stub of fake CUDA does not compile:\n{done.stderr[-3000:]}")
            os.replace(out, target)
    return target


def load(library: Path) -> None:
    """Load the stub. Must be called before torch is imported."""
    libraries = _torch_folder() / "lib"
    names = [*sorted(file.name for file in libraries.glob("libgomp*")), "libc10.so", "libtorch_cpu.so"]
    for name in names:
        ctypes.CDLL(str(libraries / name), ctypes.RTLD_GLOBAL)
    ctypes.CDLL(str(library)).install()


def pretend(capability: tuple[int, int]) -> None:
    """Make `torch.cuda` answer for one GPU of this compute capability."""
    import torch
    from torch._subclasses.fake_tensor import FakeTensorMode

    cuda: Any = torch.cuda
    FakeTensorMode.avoid_device_init = property(lambda self: True)  # type: ignore[assignment]
    answers: dict[str, Any] = {
        "is_available": True,
        "device_count": 1,
        "current_device": 0,
        "get_device_capability": capability,
        "get_device_name": "fake GPU",
        "get_device_properties": SimpleNamespace(multi_processor_count=132, total_memory=80 << 30),
        "get_arch_list": ["sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120"],
        "mem_get_info": (70 << 30, 80 << 30),
        "memory_allocated": 0,
        "max_memory_allocated": 0,
        "empty_cache": None,
        "reset_peak_memory_stats": None,
    }
    for name, answer in answers.items():
        setattr(cuda, name, lambda *args, answer=answer, **named: answer)
    torch.__future__.set_overwrite_module_params_on_conversion(True)  # `model.to("cuda")` makes new parameters
