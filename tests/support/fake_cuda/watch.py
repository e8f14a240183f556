"""A list of the places where the host waits for a CUDA device."""

import sys
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

import fledge
from fledge.model import grouped_mm

PACKAGE = str(Path(fledge.__file__).parent)
HOST_ONLY = (
    *("view", "_unsafe_view", "reshape", "transpose", "permute", "expand", "squeeze", "unsqueeze", "slice", "select", "split"),
    *("unbind", "detach", "alias", "as_strided", "empty", "new_empty", "lift"),
)  # beginnings of the names of operators that start nothing on the device
DATA_DEPENDENT = {
    "aten::nonzero": "nonzero",
    "aten::equal": "equal",
    "aten::masked_select": "masked_select",
    "aten::_unique2": "unique",
    "aten::unique_dim": "unique",
    "aten::repeat_interleave": "repeat_interleave",
}


def is_cuda(value: Any) -> bool:
    """Whether a value is a tensor on the (fake) GPU."""
    return isinstance(value, Tensor) and value.device.type == "cuda"


def place() -> str:
    """The innermost function of fledge on the stack, as "folder/file.py:Class.function"; "backward" where there is none,
    because autograd has called the kernel."""
    frame = sys._getframe(1)
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(PACKAGE):
            return f"{file[len(PACKAGE) + 1 :]}:{frame.f_code.co_qualname.replace('<locals>.', '')}"
        frame = frame.f_back
    return "backward"


class HostWaits(TorchDispatchMode):
    """Counts waits, as {"place: kind": number}, and launches. Values that only a device could know are 1, or true.

    A wait is whatever makes the host stand still until the device has done all that was asked of it: reading a number,
    `nonzero` and its relatives, a copy that is not asynchronous, in either direction (PyTorch ends it with a wait for the
    stream), `synchronize`.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[str] = Counter()
        self.launches = 0
        self.pinned = WeakTensorKeyDictionary()
        self._lock = threading.Lock()

    def note(self, kind: str) -> None:
        """Count a wait."""
        with self._lock:
            self.waits[f"{place()}: {kind}"] += 1

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = func.overloadpacket._qualified_op_name if hasattr(func, "overloadpacket") else str(func)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        on_device = any(map(is_cuda, tensors))
        if name == "aten::_local_scalar_dense":
            if on_device:
                self.note("item")
            elif not hasattr(args[0], "fake_mode"):
                return func(*args, **kwargs)
            return _unknown(args[0].dtype)
        if name.startswith("fledge::") and on_device:  # an operator of our own: what matters is what it does inside
            with self:
                return getattr(grouped_mm, name.partition("::")[2])._init_fn(*args, **kwargs)
        if (
            func.namespace == "aten" and func._can_decompose()
        ):  # as called from inside such an operator; everywhere else autograd has done it
            with self:
                return func.decompose(*args, **kwargs)
        if name in DATA_DEPENDENT and any(hasattr(tensor, "fake_mode") for tensor in tensors):
            return self._data_dependent(func, name, args, kwargs)
        if name in ("aten::_to_copy", "aten::copy_"):
            self._note_copy(name, args, kwargs)
        if name in ("aten::index", "aten::index_put_", "aten::index_put", "aten::_unsafe_index") and is_cuda(args[0]):
            self._note_index(args[1])
            if name == "aten::index" and any(isinstance(one, Tensor) and one.dtype == torch.bool for one in args[1]):
                return _masked(args[0], args[1])
        pin = kwargs.pop("pin_memory", False) if "pin_memory" in kwargs else False
        if on_device and name != "aten::t" and not name.partition("::")[2].startswith(HOST_ONLY):
            self.launches += 1
        out = func(*args, **kwargs)
        if pin:
            self.pinned[out] = True
        return out

    def _data_dependent(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        if name == "aten::repeat_interleave" and kwargs.get("output_size") is not None:
            return func(*args, **kwargs)
        x = args[0]
        if is_cuda(x):
            self.note(DATA_DEPENDENT[name])
        if name == "aten::equal":
            return True
        if name == "aten::nonzero":
            return x.new_empty((1, x.dim()), dtype=torch.int64)
        raise NotImplementedError(f"{name} has no size here")

    def _note_copy(self, name: str, args: Any, kwargs: Any) -> None:
        if name == "aten::_to_copy":
            source, target = args[0], torch.device(kwargs.get("device") or args[0].device)
            asynchronous = kwargs.get("non_blocking", False)
        else:
            source, target = args[1], args[0].device
            asynchronous = args[2] if len(args) > 2 else kwargs.get("non_blocking", False)
        if source.device.type == target.type:
            return
        into_pinned = name == "aten::copy_" and args[0] in self.pinned
        pinned = source in self.pinned if target.type == "cuda" else into_pinned
        direction = "to the device" if target.type == "cuda" else "to the host"
        if not asynchronous:
            self.note(f"copy {direction}")
        elif not pinned:
            self.note(f"copy {direction} of memory that is not pinned")

    def _note_index(self, indices: Any) -> None:
        for index in indices:
            if isinstance(index, Tensor) and index.dtype == torch.bool and is_cuda(index):
                self.note("index by a mask")
            elif isinstance(index, Tensor) and not is_cuda(index) and index.dim():
                self.note("index on the host")


def _unknown(dtype: torch.dtype) -> bool | int | float:
    return True if dtype == torch.bool else 1.0 if dtype.is_floating_point else 1


def _nested(value: Any, shape: tuple[int, ...]) -> Any:
    """The value in nested lists of this shape."""
    return value if not shape else [_nested(value, shape[1:]) for _ in range(shape[0])]


def _masked(x: Tensor, indices: Any) -> Tensor:
    """x[mask] as if the mask were true everywhere."""
    mask, *others = indices
    if others or mask is None:
        raise NotImplementedError("a mask beside other indices has no size here")
    return x.new_empty((mask.numel(), *x.shape[mask.dim() :]))


@contextmanager
def watched() -> Iterator[HostWaits]:
    """A context in which new tensors on CUDA are fake, and waits are counted."""
    from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

    watch = HostWaits()

    class Event:
        """A CUDA event; everything it is asked about has been done."""

        def __init__(self, **flags: Any) -> None: ...

        def record(self, *stream: Any) -> None: ...

        def query(self) -> bool:
            return True

        def synchronize(self) -> None:
            watch.note("event")

        def elapsed_time(self, other: Any) -> float:
            return 1.0

    def pin(tensor: Tensor, *device: Any) -> Tensor:
        copy = tensor.clone()
        watch.pinned[copy] = True
        return copy

    def tolist(tensor: Tensor) -> Any:
        if is_cuda(tensor):
            watch.note("tolist")
        return _nested(_unknown(tensor.dtype), tuple(tensor.shape))

    cuda: Any = torch.cuda
    FakeTensor.tolist = tolist  # type: ignore[method-assign]
    cuda.Event, cuda.synchronize = Event, lambda *device: watch.note("synchronize")
    Tensor.pin_memory = pin  # type: ignore[method-assign]
    Tensor.is_pinned = lambda tensor, *device: tensor in watch.pinned  # type: ignore[method-assign]
    with FakeTensorMode(allow_non_fake_inputs=True), watch:
        yield watch
