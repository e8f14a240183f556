"""The package gguf, which knows the types of weights in GGUF files and the names of tensors."""

from typing import Any

from fledge.errors import missing_extra


def import_gguf() -> Any:
    """The package gguf. Raises FledgeError if it is not installed."""
    try:
        import gguf
    except ImportError:
        raise missing_extra("gguf", "gguf", "a GGUF file") from None
    return gguf
