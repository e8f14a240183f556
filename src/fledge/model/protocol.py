"""`LanguageModel`: what training, evaluation, autotune, checkpoints and generation use of a model.

Two classes implement it: `decoder.Decoder`, the native one, and `huggingface.TransformersModel`, a bridge to the
architectures of transformers. Other code takes any `LanguageModel` and reads nothing that is not declared here.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fledge.model.cost import ModelCost
from fledge.model.moe import RouterStats
from fledge.recipe.schema import ModelConfig

ParameterRole = Literal["embedding", "head", "gate", "matrix", "vector"]
"""What a parameter is for: `embedding`, a table of one vector for each token; `head`, the matrix that makes logits;
`gate`, a matrix whose rows score a choice each (a router); `matrix`, a map between hidden states inside a block, or a
stack of such maps; `vector`, a norm or a bias."""


class LanguageModel(nn.Module, ABC):
    """A causal language model with float32 parameters. B rows, T positions, width D, V tokens of the vocabulary.

    Attributes:
        implementation: the key of the implementation in `loading.IMPLEMENTATIONS`.
        config: sizes in the names of the recipe, for planning, for limits, and for `cost`. Those of an architecture that
            the recipe cannot describe are the nearest ones that it can.
        vocab_size: V.
        compute_dtype: dtype of activations and matrix products; may be changed between two passes.
        attention: the attention backend in use; changed by `set_attention_backend`.
        activation_checkpoint_every: each n-th block is computed again in the backward pass instead of kept (Chen et al.
            2016); 0: none. May be changed between two passes.
    """

    implementation: str
    config: ModelConfig
    vocab_size: int
    compute_dtype: torch.dtype
    attention: str
    activation_checkpoint_every: int

    # -- computing ----------------------------------------------------------------------------------------------------

    @abstractmethod
    def forward(self, tokens: Tensor, positions: Tensor | None = None, documents: Tensor | None = None) -> Tensor:
        """Hidden states [B, T, D] in `compute_dtype` of tokens [B, T].

        `positions` [B, T] count up from 0 in each document; None: the model counts them itself. `documents` [B, T] number
        the documents that are packed into a row, 0 is padding; no document sees another. None: a row is one document.
        """

    @abstractmethod
    def forward_with_router_stats(
        self, tokens: Tensor, positions: Tensor | None = None, documents: Tensor | None = None
    ) -> tuple[Tensor, RouterStats | None]:
        """Hidden states as `forward` gives them, and how the native mixture of experts routed the tokens; None for other
        models."""

    @property
    @abstractmethod
    def lm_head_weight(self) -> Tensor:
        """The matrix [V, D] whose product with hidden states are the logits; the embedding's own where they are tied."""

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] in float32 of hidden states [..., D]."""
        return F.linear(hidden, self.lm_head_weight.to(hidden.dtype)).float()

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return self.lm_head_weight.device

    @property
    @abstractmethod
    def draws_random_numbers(self) -> bool:
        """Whether a pass in training mode may use PyTorch's generator (dropout)."""

    @property
    def notes(self) -> Sequence[str]:
        """Sentences for the console: what training leaves out for this model."""
        return ()

    # -- blocks and attention -------------------------------------------------------------------------------------------

    @abstractmethod
    def blocks(self) -> Sequence[nn.Module]:
        """The layers in order: units of compilation, of FSDP and of activation checkpointing."""

    @abstractmethod
    def only_first_block(self) -> AbstractContextManager[None]:
        """Inside, the model consists of its first block, embedding, norm and head: what autotune measures."""

    @property
    @abstractmethod
    def attention_backends(self) -> Sequence[str]:
        """The backends that `set_attention_backend` takes, whatever the device can do."""

    @abstractmethod
    def set_attention_backend(self, backend: str) -> None:
        """Compute attention in all blocks by this backend. FledgeError for one that the model does not have."""

    # -- parameters -----------------------------------------------------------------------------------------------------

    @abstractmethod
    def parameter_role(self, name: str) -> ParameterRole:
        """What the parameter of this name (as `named_parameters` gives it) is for. AttributeError for an unknown name."""

    @property
    @abstractmethod
    def cost(self) -> ModelCost:
        """Parameters, operations and memory of the model."""

    def update_router_biases(self, routing: RouterStats, applied: Tensor | None = None) -> None:
        """Move the biases of routers that are balanced by biases, after an update. `routing` is that of the whole update
        over all ranks; where the bool scalar `applied` is false, nothing changes. A model without such biases has nothing
        to do."""

    # -- directories ----------------------------------------------------------------------------------------------------

    @abstractmethod
    def save_pretrained(
        self, folder: Path, *, bos: int | None, eos: list[int], pad: int, weights: Mapping[str, Tensor] | None = None
    ) -> None:
        """Write a Hugging Face model directory: the model's own weights, or others with the names and shapes of its
        `state_dict`. OSError where the disk has not kept what was written."""

    @abstractmethod
    def with_weights(self, weights: Mapping[str, Tensor]) -> Self:
        """A new model of the same architecture, device and settings with the weights of a `state_dict`."""


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Dropout is off inside; afterwards the model is in the mode it was in before, also after an error."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
