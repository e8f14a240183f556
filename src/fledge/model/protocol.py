"""`LanguageModel`: the interface of models for training, evaluation, autotune, checkpoints and generation.

Three classes implement it: `decoder.Decoder`, the native one; `huggingface.TransformersModel`, a bridge to the decoder-only
architectures of transformers; and `encoder_decoder.EncoderDecoderModel`, a bridge to its encoder–decoders. Other code accepts
any `LanguageModel` and uses only what is declared here.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fledge.errors import FledgeError
from fledge.model.cost import ModelCost
from fledge.model.eager import is_eager_forced
from fledge.model.moe import RouterStats
from fledge.model.prefix import Prefix
from fledge.model.segments import SegmentStarts
from fledge.recipe.schema import AdapterConfig, ModelConfig, QuantizationConfig
from fledge.recipe.sections.adapter import PREFIX

ParameterRole = Literal["adapter", "embedding", "head", "gate", "matrix", "vector"]
"""The role of a parameter: `adapter`, a thin matrix of an adapter; `embedding`, a table of one vector for each token; `head`,
the matrix of the logits; `gate`, a matrix with one row for each choice (a router); `matrix`, a map between hidden states inside
a block, or a stack of such maps; `vector`, a norm or a bias."""


ADAPTER_MATRICES = ("lora_A", "lora_B")  # last parts of the names of an adapter's thin matrices
ADAPTER_TENSORS = (*ADAPTER_MATRICES, "prompt_embeddings")  # and of all tables that only an adapter has


@dataclass(frozen=True)
class Adapter:
    """The adapter of a model: its settings, and the base model's directory and `weights_hash`, if they are known.

    `quantization`: how the base's matrices were rounded to 4 bits where the adapter was trained; None: they were not."""

    config: AdapterConfig
    base: Path | None
    base_hash: str | None
    quantization: QuantizationConfig | None = None


class LanguageModel(nn.Module, ABC):
    """A language model with float32 parameters, which predicts each token from those before it. B rows, T positions, width D, V
    tokens of the vocabulary.

    Attributes:
        implementation: the key of the implementation in `loading.IMPLEMENTATIONS`.
        auto_class: the class of transformers that loads the directories of the model.
        config: sizes in the names of the recipe, for planning, for limits, and for `cost`. For an architecture that the
            recipe cannot describe, the nearest sizes.
        vocab_size: V.
        compute_dtype: dtype of activations and matrix products; may be changed between two passes.
        attention: the attention backend in use; changed by `set_attention_backend`.
        eager_attention: the attention backend of passes in `force_eager`; None: `attention` in those too.
        activation_checkpoint_every: each n-th block is computed again in the backward pass instead of kept (Chen et al.
            2016); 0: none. May be changed between two passes.
        generation_settings: the settings of generation_config.json that the model came with, such as temperature; they are
            saved with it again.
        adapter: the adapter that the model has; all weights outside of it are frozen then.
        prefix: the trained keys and values of an adapter that stand before every document; None: there are none.
        decoder_start: in an encoder–decoder, the token with which an answer begins. What stands before it in a document is the
            source, at whose positions hidden states are zero. None: the model has a decoder only.
    """

    implementation: str
    auto_class: str = "AutoModelForCausalLM"
    config: ModelConfig
    vocab_size: int
    compute_dtype: torch.dtype
    attention: str
    eager_attention: str | None = None
    activation_checkpoint_every: int
    generation_settings: dict[str, Any]
    adapter: Adapter | None = None
    prefix: Prefix | None
    decoder_start: int | None = None

    # -- computing ----------------------------------------------------------------------------------------------------

    @abstractmethod
    def forward(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        segment_starts: SegmentStarts | None = None,
    ) -> Tensor:
        """Hidden states [B, T, D] in `compute_dtype` of tokens [B, T].

        `positions` [B, T] count up from 0 in each document; None: the model counts them itself. `documents` [B, T] number
        the documents that are packed into a row, 0 is padding; no document sees another, but a branch its trunk
        (`document_numbers`), in models whose implementation says so (`loading.Implementation`). None: a row is one document.
        `segment_starts`: `segments.segment_starts` of the documents, where the caller knows them.
        """

    @abstractmethod
    def forward_with_router_stats(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        segment_starts: SegmentStarts | None = None,
    ) -> tuple[Tensor, RouterStats | None]:
        """Hidden states as from `forward`, and the routing of the native mixture of experts (None for other models)."""

    @property
    @abstractmethod
    def lm_head_weight(self) -> Tensor:
        """The matrix [V, D] of the head, for logits = hidden · matrixᵀ; the embedding matrix if they are tied."""

    @property
    def score_weight(self) -> Tensor | None:
        """The matrix [1, D] of a reward model's head, for reward = matrix · hidden; None: a language model. A reward model has
        no head for tokens."""
        return None

    def rewards(self, hidden: Tensor) -> Tensor:
        """Rewards [...] in float32 of hidden states [..., D] of a reward model."""
        assert self.score_weight is not None, "a language model gives no rewards"
        return F.linear(hidden.float(), self.score_weight.float())[..., 0]  # rounded, close rewards would be equal

    def become_reward_model(self, seed: int) -> None:
        """Replace the head for tokens by one that gives a reward, drawn from Normal(0, initializer_range) as a function of the
        seed. Raises FledgeError for a model that is not fledge's own decoder."""
        raise FledgeError(
            "transformers computes this model, and a reward model needs fledge's own decoder",
            where="model",
            hint="start from a Llama- or Qwen-shaped model",
        )

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
    def max_positions(self) -> int:
        """The longest sequence: the positions of the model without those of a prefix."""
        prefix = self.adapter.config.num_virtual_tokens if self.adapter and self.adapter.config.peft_type == PREFIX else 0
        return self.config.max_position_embeddings - prefix

    @property
    def notes(self) -> Sequence[str]:
        """Sentences for the console: what training leaves out for this model."""
        return ()

    @property
    def not_compiled_because(self) -> str | None:
        """Why the model cannot be compiled; None: it can."""
        return None

    # -- blocks and attention -------------------------------------------------------------------------------------------

    @abstractmethod
    def blocks(self) -> Sequence[nn.Module]:
        """The layers in order: units of compilation, of FSDP and of activation checkpointing."""

    @abstractmethod
    def only_first_block(self) -> AbstractContextManager[None]:
        """A context in which the model consists of embedding, first block, norm and head; used by the benchmarks of
        autotune."""

    @property
    @abstractmethod
    def attention_backends(self) -> Sequence[str]:
        """The backends that `set_attention_backend` accepts; the device may not support all of these."""

    @abstractmethod
    def set_attention_backend(self, backend: str) -> None:
        """Compute attention in all blocks with this backend, but for the passes of `eager_attention`. Raises FledgeError for a
        backend that the model does not have."""

    def attention_of_pass(self) -> str:
        """The backend of a pass that begins now."""
        return self.eager_attention if self.eager_attention is not None and is_eager_forced() else self.attention

    # -- prefix ---------------------------------------------------------------------------------------------------------

    def set_prefix(self, prefix: Prefix) -> None:
        """Put trained keys and values before the tokens of every document. Raises FledgeError if the model cannot compute with
        them."""
        self.prefix = prefix

    # -- parameters -----------------------------------------------------------------------------------------------------

    @abstractmethod
    def file_name(self, name: str) -> str:
        """The name in Hugging Face's files of the module or the parameter with this name."""

    @abstractmethod
    def parameter_role(self, name: str) -> ParameterRole:
        """The role of the parameter with this name (from `named_parameters`). Raises AttributeError for an unknown name."""

    @property
    @abstractmethod
    def cost(self) -> ModelCost:
        """Parameters, operations and memory of the model."""

    @abstractmethod
    def grow_vocabulary(self, vocab_size: int) -> None:
        """Give embedding and head rows for a vocabulary of `vocab_size` tokens. New rows are the mean of the old ones, so that
        a new token is neither likely nor unlikely (Hewitt 2021)."""

    def update_router_biases(self, routing: RouterStats, applied: Tensor | None = None) -> None:
        """Adjust the load-balancing biases of the routers after an update. `routing`: statistics of the complete update over
        all ranks; `applied`: bool scalar, nothing changes if it is false. Does nothing for a model without such biases."""

    # -- directories ----------------------------------------------------------------------------------------------------

    @abstractmethod
    def file_tensors(self) -> dict[str, Tensor]:
        """The weights under the names that they have in a model directory. These are the model's own tensors, or views of them:
        what is written into one changes the model."""

    @abstractmethod
    def save_pretrained(
        self, folder: Path, *, bos: int | None, eos: list[int], pad: int, weights: Mapping[str, Tensor] | None = None
    ) -> None:
        """Write a Hugging Face model directory with the model's weights, or with `weights` of equal names and shapes. Raises
        OSError if reading back gives other bytes than were written."""

    @abstractmethod
    def with_weights(self, weights: Mapping[str, Tensor]) -> Self:
        """A new model with the weights of a `state_dict`; architecture, device and settings are copied from this one."""


def matrix_layers(model: LanguageModel) -> dict[str, nn.Linear]:
    """The linear layers that map hidden states inside a block, by name. A layer whose weight is quantized, which only such
    layers are, has no parameter of that name."""
    linear = ((name, module) for name, module in model.named_modules() if isinstance(module, nn.Linear))
    return {
        name: module
        for name, module in linear
        if module.weight is None or model.parameter_role(f"{name}.weight") == "matrix"  # pyright: ignore[reportUnnecessaryComparison]
    }


def grown_table(table: Tensor, rows: int) -> Tensor:
    """The table [V, D] with further rows, all equal to the mean of the old ones: [rows, D]."""
    mean = table.detach().mean(dim=0, keepdim=True)
    return torch.cat((table.detach(), mean.expand(rows - len(table), -1)))


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """A context in which the model is in evaluation mode (no dropout); the earlier mode is restored at the end."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)
