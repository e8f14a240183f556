"""Architectures of transformers behind `LanguageModel`: any decoder-only model whose logits are hidden states times one
matrix, and that keeps packed documents apart by their positions.

Both conditions are tried out when a model is loaded (`huggingface_loading.check_forward`). Parameters are float32; other
dtypes are PyTorch's autocast. This module works on models of the library without importing it.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fledge.errors import FledgeError
from fledge.model.cost import ModelCost, Parameters, checkpointed_layers
from fledge.model.huggingface_prefix import check_attention_spans, check_prefix, new_cache, prefixed_mask
from fledge.model.moe import RouterStats
from fledge.model.prefix import Prefix
from fledge.model.protocol import ADAPTER_TENSORS, LanguageModel, ParameterRole, eval_mode, grown_table, matrix_layers
from fledge.model.segments import SegmentStarts
from fledge.model.weights import verify_tensors
from fledge.recipe.schema import ModelConfig
from fledge.run.text_files import give_usual_mode, write_and_verify

ATTENTION = {"sdpa": "sdpa"}  # fledge's name of a backend -> that of transformers
ROUTERS = (".gate.weight", ".router.weight")  # ends of names, where the matrix is not an MLP's gate_proj
PREFIX = "causal_lm."


class TransformersModel(LanguageModel):
    """A causal language model of transformers as a `LanguageModel`. Its parameters have the library's names under
    `causal_lm.`."""

    implementation = "transformers"

    def __init__(self, causal_lm: Any) -> None:
        super().__init__()
        self.causal_lm = causal_lm
        self.config, self.vocab_size = self._sizes(), _text_config(causal_lm.config).vocab_size
        self.compute_dtype = torch.float32
        self.attention = self._used_attention = "sdpa"
        self.activation_checkpoint_every = 0
        self.generation_settings = {}
        self.prefix = None
        self._recomputed: frozenset[int] = frozenset()
        self._layer_lists = self._find_layer_lists()
        head = causal_lm.get_output_embeddings()
        if not isinstance(head, nn.Linear) or head.bias is not None:
            raise FledgeError(f"the head of {type(causal_lm).__name__} is more than one matrix, which is not supported")
        causal_lm.get_input_embeddings().padding_idx = None  # else the row of a token that also ends turns would not learn

    def _sizes(self) -> ModelConfig:
        """The sizes in the recipe's names."""
        return nearest_config(self.causal_lm.config)

    def _find_layer_lists(self) -> list[str]:
        """The names of the submodules that are lists of layers, in the order of `blocks`."""
        return [_find_layers(self, self.config.num_hidden_layers)]

    # -- computing ----------------------------------------------------------------------------------------------------

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        segment_starts: SegmentStarts | None = None,
    ) -> Tensor:
        """Hidden states [B, T, D]; see `LanguageModel.forward`. The library separates documents by their positions, which must
        count up from 0 in each document; it has no use for `segment_starts`."""
        self._set_recomputed_blocks()
        self._use_attention(self.attention_of_pass())
        positions = document_positions(tokens, documents) if positions is None else positions
        if self.prefix is None:
            return self.decode(tokens, positions, use_cache=False).last_hidden_state.to(self.compute_dtype)
        cache, mask = self.new_cache(len(tokens)), prefixed_mask(self.prefix, tokens, documents)
        out = self.decode(tokens, positions, attention_mask=mask, past_key_values=cache, use_cache=True)
        return out.last_hidden_state.to(self.compute_dtype)

    def new_cache(self, rows: int) -> Any:
        """A cache of the library for `rows` sequences, which begins with the prefix, if the model has one."""
        return new_cache(self.causal_lm.config, self.prefix, rows, self.compute_dtype)

    def decode(self, tokens: Tensor, positions: Tensor, **options: Any) -> Any:
        """The output of the library's decoder without the head, for tokens and positions [B, T], in `compute_dtype`. Positions
        count from the first token behind a prefix."""
        positions = positions if self.prefix is None else positions + self.prefix.length
        with self._autocast():
            return self.causal_lm.base_model(input_ids=tokens, position_ids=positions, **options)

    def library_logits(self, tokens: Tensor) -> Tensor:
        """The logits [1, T, V] that the library itself computes for one document [1, T]; for comparisons."""
        return self.causal_lm(input_ids=tokens, use_cache=False).logits.float()

    def probe_document(self, length: int, generator: torch.Generator) -> Tensor:
        """Random tokens [1, length] that can be a document."""
        return torch.randint(self.vocab_size, (1, length), generator=generator)

    def forward_with_router_stats(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        segment_starts: SegmentStarts | None = None,
    ) -> tuple[Tensor, RouterStats | None]:
        """Hidden states [B, T, D], and None: the library's mixtures of experts say nothing about their routers here."""
        return self.forward(tokens, positions, documents), None

    def _autocast(self) -> AbstractContextManager[Any]:
        if self.compute_dtype == torch.float32:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.compute_dtype)

    @property
    def lm_head_weight(self) -> Tensor:
        """The weight [V, D] of the library's output embeddings."""
        return self.causal_lm.get_output_embeddings().weight

    @property
    def draws_random_numbers(self) -> bool:
        """True: which kinds of dropout an architecture has is not known here."""
        return True

    @property
    def notes(self) -> list[str]:
        """A note for a mixture of experts: the library has no load-balancing loss here."""
        if _experts(self.causal_lm.config)[0] is None:
            return []
        return ["transformers trains the experts of this model without a load-balancing loss"]

    @property
    def not_compiled_because(self) -> str | None:
        """With a prefix: layers find their part of the library's cache by their numbers: code of one does not fit another."""
        return None if self.prefix is None else "with a prefix each layer of transformers would be compiled by itself"

    # -- blocks and attention -------------------------------------------------------------------------------------------

    def blocks(self) -> Sequence[nn.Module]:
        """The layers in order."""
        return [layer for path in self._layer_lists for layer in self._layers(path)]

    def _layers(self, path: str) -> nn.ModuleList:
        layers = self.get_submodule(path)
        assert isinstance(layers, nn.ModuleList)
        return layers

    @contextmanager
    def only_first_block(self) -> Iterator[None]:
        """A context in which the model has only its first layer, or the first one of each list of layers."""
        complete = {path: self._layers(path) for path in self._layer_lists}
        try:
            for path, layers in complete.items():
                self._set_layers(path, layers[:1])
            yield
        finally:
            for path, layers in complete.items():
                self._set_layers(path, layers)

    def _set_layers(self, path: str, layers: nn.ModuleList) -> None:
        owner, _, name = path.rpartition(".")
        setattr(self.get_submodule(owner), name, layers)

    def _set_recomputed_blocks(self) -> None:
        """Mark the layers to compute again in the backward pass. Raises FledgeError for layers that do not support it."""
        blocks = self.blocks()
        recomputed = frozenset(checkpointed_layers(len(blocks), self.activation_checkpoint_every))
        if recomputed and self.prefix is not None:
            raise FledgeError(
                "a layer of transformers that is computed again in the backward pass would be computed without the prefix",
                where="runtime.activation_checkpointing",
                hint="set it to none",
            )
        if recomputed == self._recomputed:
            return
        for number, block in enumerate(blocks):
            if not hasattr(block, "gradient_checkpointing"):
                raise FledgeError(
                    f"{type(block).__name__} of transformers cannot be computed again in the backward pass",
                    where="runtime.activation_checkpointing",
                    hint="set it to none",
                )
            block.gradient_checkpointing = number in recomputed  # type: ignore[assignment]
            block._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False)  # type: ignore[assignment]
        self._recomputed = recomputed

    @property
    def attention_backends(self) -> list[str]:
        """The backends that the library computes with."""
        return list(ATTENTION)

    def set_attention_backend(self, backend: str) -> None:
        """Choose a backend of `ATTENTION`; FledgeError for others."""
        check_attention(backend)
        self.attention = backend
        self._use_attention(backend)

    def _use_attention(self, backend: str) -> None:
        if backend != self._used_attention:
            self.causal_lm.set_attn_implementation(ATTENTION[backend])
            self._used_attention = backend

    def set_prefix(self, prefix: Prefix) -> None:
        """Put keys and values before the tokens; they are tried out. FledgeError for a model that cannot compute with them."""
        check_attention_spans(self.causal_lm.config)
        self.prefix = prefix
        if self.device.type == "meta":
            return
        try:
            with eval_mode(self), self._in_float32():
                check_prefix(self)
        except FledgeError:
            self.prefix = None
            raise

    @contextmanager
    def _in_float32(self) -> Iterator[None]:
        dtype, self.compute_dtype = self.compute_dtype, torch.float32
        try:
            yield
        finally:
            self.compute_dtype = dtype

    # -- parameters -----------------------------------------------------------------------------------------------------

    def file_name(self, name: str) -> str:
        """The library's own name."""
        return name.removeprefix(PREFIX)

    def parameter_role(self, name: str) -> ParameterRole:
        """The role of a parameter, by the module that owns it, by its name and by its shape."""
        parameter, owner = self.get_parameter(name), self.get_submodule(name.rpartition(".")[0])
        if isinstance(owner, nn.Embedding):
            return "embedding"
        if owner is self.causal_lm.get_output_embeddings():
            return "head"
        if name.rpartition(".")[2] in ADAPTER_TENSORS:
            return "adapter"
        if parameter.dim() < 2:
            return "vector"
        return "gate" if name.endswith(ROUTERS) or min(parameter.shape[-2:]) == 1 else "matrix"

    @property
    def cost(self) -> ModelCost:
        """The exact number of parameters; operations and memory are estimated as for a native decoder of the nearest sizes."""
        return ModelCost(self.config, self.vocab_size, count_parameters(self))

    def grow_vocabulary(self, vocab_size: int) -> None:
        """Add rows to embedding and head (`LanguageModel.grow_vocabulary`)."""
        grown = [grown_table(weight, vocab_size) for weight in self._tables()]
        self.causal_lm.resize_token_embeddings(vocab_size, mean_resizing=False)
        with torch.no_grad():
            for weight, values in zip(self._tables(), grown, strict=True):
                weight.copy_(values)
        self.causal_lm.get_input_embeddings().padding_idx = None
        self.vocab_size = vocab_size

    def _tables(self) -> list[Tensor]:
        """The weights of embedding and head: one and the same if they are tied."""
        return [self.causal_lm.get_input_embeddings().weight, self.causal_lm.get_output_embeddings().weight]

    # -- directories ----------------------------------------------------------------------------------------------------

    def file_tensors(self) -> dict[str, Tensor]:
        """The weights under the library's names; a tied head is left out."""
        return {name.removeprefix(PREFIX): tensor.detach() for name, tensor in self.named_parameters()}

    def save_pretrained(
        self, folder: Path, *, bos: int | None, eos: list[int], pad: int, weights: Mapping[str, Tensor] | None = None
    ) -> None:
        """Write the directory as the library does, and read its tensors back."""
        folder.mkdir(parents=True, exist_ok=True)
        special = {**self._special_tokens(), "bos_token_id": bos, "eos_token_id": eos, "pad_token_id": pad}
        for name, value in special.items():
            setattr(self.causal_lm.config, name, value)
        tensors = self._file_tensors(self.state_dict() if weights is None else weights)
        # The library refuses to save settings that it would not follow, such as a temperature without do_sample.
        settings = self.causal_lm.generation_config
        self.causal_lm.generation_config = type(settings)()
        try:
            self.causal_lm.save_pretrained(folder, state_dict=dict(tensors))
        finally:
            self.causal_lm.generation_config = settings
        write_and_verify(folder / "generation_config.json", json.dumps({**self.generation_settings, **special}, indent=1))
        for file in sorted(folder.glob("*.safetensors")):
            give_usual_mode(file)
            verify_tensors(file, tensors)

    def _special_tokens(self) -> dict[str, int]:
        """Special tokens of config.json that are the model's and not the tokenizer's."""
        return {}

    def _file_tensors(self, weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """The weights under the library's names. Weights that are tied in the model become one tensor, so that the library
        recognizes them as tied and writes one."""
        tensors: dict[str, Tensor] = {}
        first_name: dict[int, str] = {}
        live = dict(self.named_parameters(remove_duplicate=False))
        for name, tensor in weights.items():
            first = first_name.setdefault(id(live[name]), name) if name in live else name
            tensors[name.removeprefix(PREFIX)] = weights[first] if first != name else tensor
        return tensors

    def _new_library_model(self) -> Any:
        """Another model of the library with this one's configuration."""
        return type(self.causal_lm)(self.causal_lm.config)

    def with_weights(self, weights: Mapping[str, Tensor]) -> Self:
        """A new model with the weights of a `state_dict`; configuration, device and settings are copied from this one."""
        copy = type(self)(self._new_library_model()).to(self.device)
        copy.load_state_dict(weights)
        copy.compute_dtype, copy.generation_settings = self.compute_dtype, self.generation_settings
        copy.set_attention_backend(self.attention)
        copy.eager_attention = self.eager_attention
        return copy


# -- sizes and settings -------------------------------------------------------------------------------------------------


def check_attention(backend: str) -> None:
    """FledgeError for an attention backend that the library does not have under fledge's name."""
    if backend not in ATTENTION:
        raise FledgeError(
            f"a model of transformers cannot compute attention by '{backend}', only by {', '.join(ATTENTION)}",
            where="runtime.attention",
            hint="set runtime.attention to auto or sdpa",
        )


def _text_config(config: Any) -> Any:
    return config.get_text_config(decoder=True)


def required_sizes(config: Any, part: Any, names: Sequence[str]) -> dict[str, Any]:
    """Sizes by name that `part` of a configuration has. Raises FledgeError if one is missing or no whole number."""
    sizes = {name: getattr(part, name, None) for name in names}
    absent = [name for name, value in sizes.items() if not isinstance(value, int)]
    if absent:
        raise FledgeError(f"the configuration of {type(config).__name__} does not say {', '.join(absent)}")
    return sizes


def nearest_config(config: Any) -> ModelConfig:
    """The sizes of a configuration of transformers in the recipe's names, without validation; an approximation for
    architectures that the recipe cannot describe. Raises FledgeError if a size is missing."""
    text = _text_config(config)
    names = ("hidden_size", "num_hidden_layers", "num_attention_heads", "max_position_embeddings")
    sizes = required_sizes(config, text, names)
    return ModelConfig.model_construct(
        **sizes,
        num_key_value_heads=getattr(text, "num_key_value_heads", None) or sizes["num_attention_heads"],
        head_dim=getattr(text, "head_dim", None),
        intermediate_size=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        tie_word_embeddings=bool(getattr(config, "tie_word_embeddings", False)),
    )


def _find_layers(model: nn.Module, count: int) -> str:
    """The name of the submodule that is the list of layers. Raises FledgeError if there is none."""
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return name
    raise FledgeError(f"not supported: {type(model).__name__} has no list of its {count} layers")


def _experts(config: Any) -> tuple[int | None, int | None]:
    """Number of experts of a layer, and number of experts per token; None for a dense model."""
    text, names = _text_config(config), ("num_experts", "num_local_experts", "n_routed_experts")
    count = next((count for name in names if (count := getattr(text, name, None))), None)
    return count, getattr(text, "num_experts_per_tok", None)


def count_parameters(model: TransformersModel) -> Parameters:
    """Parameters of a built model, each counted once. The active share of stacked experts [E, …] is experts per token ÷ E, if
    the configuration has these numbers."""
    experts, chosen = _experts(model.causal_lm.config)
    share = chosen / experts if experts and chosen else 1.0
    total = active = matmul = 0
    for name, parameter in model.named_parameters():
        count, role = parameter.numel(), model.parameter_role(name)
        used = round(count * share) if parameter.dim() == 3 and parameter.shape[0] == experts else count
        total, active = total + count, active + used
        matmul += used if parameter is model.lm_head_weight or role in ("gate", "matrix") else 0
    sides = sum(sum(layer.weight.shape) for layer in matrix_layers(model).values())
    return Parameters(total=total, active=active, matmul=matmul, sides=sides)


def document_positions(tokens: Tensor, documents: Tensor | None) -> Tensor:
    """Positions [B, T] that count up from 0 in each document of a row; documents [B, T], None: a row is one document."""
    indices = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
    if documents is None:
        return indices
    is_start = torch.ones_like(documents, dtype=torch.bool)
    is_start[:, 1:] = documents[:, 1:] != documents[:, :-1]
    return indices - torch.where(is_start, indices, 0).cummax(dim=1).values
