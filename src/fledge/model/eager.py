"""Passes in which compiled code is not used."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch

_depth = [0]  # of nested contexts


@contextmanager
def force_eager() -> Iterator[None]:
    """A context in which compiled code is not used: evaluation is too short to compile its own shapes. Models compute attention
    in it with `LanguageModel.eager_attention`."""
    _depth[0] += 1
    try:
        with torch.compiler.set_stance("force_eager"):
            yield
    finally:
        _depth[0] -= 1


def is_eager_forced() -> bool:
    """Whether this is inside of `force_eager`."""
    return _depth[0] > 0
