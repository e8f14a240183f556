"""What a model of transformers is tried out on: two documents of random tokens, alone and in one packed row."""

from typing import Protocol

import torch
from torch import Tensor

PROBE_LENGTHS = (5, 3)  # tokens of the two documents
PROBE_TOLERANCE = 1e-4  # relative to the largest value


class Probed(Protocol):
    """A model that can make documents of its own kind."""

    def probe_document(self, length: int, generator: torch.Generator) -> Tensor:
        """Random tokens [1, length] that can be a document."""
        ...


def probe_documents(model: Probed) -> tuple[list[Tensor], Tensor]:
    """The two documents, each [1, n], and the numbers of the documents [1, T] in the row that packs them."""
    generator = torch.Generator().manual_seed(0)
    each = [model.probe_document(length, generator) for length in PROBE_LENGTHS]
    return each, torch.tensor([[number for number, length in enumerate(PROBE_LENGTHS, 1) for _ in range(length)]])


def is_near(left: Tensor, right: Tensor) -> bool:
    """Whether two results differ by rounding at most."""
    return bool((left - right).abs().max() <= PROBE_TOLERANCE * right.abs().max())
