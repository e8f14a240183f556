"""The native decoder: a complete Llama/Qwen3-like transformer, in the order in which a token passes through it.

Pre-norm blocks (RMSNorm: Zhang & Sennrich 2019) of grouped-query attention (Ainslie et al. 2023) with rotary
positions (Su et al. 2021) and SwiGLU (Shazeer 2020). Parameters have the names of the Hugging Face files.
Parameters are float32; activations and matrix products have the dtype `compute_dtype`.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from fledge.errors import FledgeError
from fledge.model.attention import BACKENDS
from fledge.model.cost import ModelCost, checkpointed_layers
from fledge.model.cuda_attention import ON_CUDA, attention_metadata
from fledge.model.cuda_attention import backend as attention_backend
from fledge.model.dropout import dropout
from fledge.model.hf_config import hf_config
from fledge.model.linear import Linear
from fledge.model.moe import MoELayer, Router, RouterStats, update_biases
from fledge.model.prefix import Prefix, PrefixedMetadata, prefixed_attention
from fledge.model.protocol import ADAPTER_TENSORS, LanguageModel, ParameterRole, grown_table
from fledge.model.rope import rope_frequencies, rope_magnitude
from fledge.model.segment_attention import ON_CPU
from fledge.model.segments import SegmentStarts
from fledge.model.weights import HEADS, file_tensors, write_model_directory
from fledge.recipe.schema import ModelConfig


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + ε) · weight, computed in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """x [..., size] -> [..., size] in the dtype of x."""
        wide = x.float()
        wide = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + self.eps)
        return (wide * self.weight).to(x.dtype)


def rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotate the pairs (i, i + d/2) of x [B, H, T, d] by the angles of their positions [B, 1, T, d]."""
    first, second = x.chunk(2, dim=-1)
    return (x * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)


class Attention(nn.Module):
    """Grouped-query self-attention."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, head = config.hidden_size, config.head_size
        self.heads, self.kv_heads, self.head_size = config.num_attention_heads, config.num_key_value_heads, head
        bias = config.attention_bias != "none"
        self.q_proj = Linear(width, self.heads * head, bias=bias)
        self.k_proj = Linear(width, self.kv_heads * head, bias=bias)
        self.v_proj = Linear(width, self.kv_heads * head, bias=bias)
        self.o_proj = Linear(self.heads * head, width, bias=config.attention_bias == "qkvo")
        self.q_norm = RMSNorm(head, config.rms_norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(head, config.rms_norm_eps) if config.qk_norm else None
        self.backend = BACKENDS["sdpa"]

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, H, T, d], keys and values [B, K, T, d] of x [B, T, D], queries and keys rotated to their positions."""
        B, T, _ = x.shape
        q = self.q_proj(x).view(B, T, self.heads, self.head_size)
        k = self.k_proj(x).view(B, T, self.kv_heads, self.head_size)
        v = self.v_proj(x).view(B, T, self.kv_heads, self.head_size)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        return rotate(q, cos, sin), rotate(k, cos, sin), v

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, documents: Any) -> Tensor:
        """x [B, T, D] -> [B, T, D]. `documents`: result of `cuda_attention.attention_metadata` for the backend, or the
        `PrefixedMetadata` of the layer."""
        B, T, _ = x.shape
        q, k, v = self.project(x, cos, sin)
        is_prefixed = isinstance(documents, PrefixedMetadata)
        mixed = prefixed_attention(q, k, v, documents) if is_prefixed else self.backend(q, k, v, documents)
        return self.o_proj(mixed.transpose(1, 2).reshape(B, T, self.heads * self.head_size))


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) · up(x))."""

    def __init__(self, width: int, size: int) -> None:
        super().__init__()
        self.gate_proj = Linear(width, size, bias=False)
        self.up_proj = Linear(width, size, bias=False)
        self.down_proj = Linear(size, width, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., D] -> [..., D]."""
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


def feed_forward(config: ModelConfig) -> FeedForward | MoELayer:
    """The feed-forward part of a block: one network, or a mixture of experts."""
    width, size, moe = config.hidden_size, config.intermediate_size, config.moe
    if moe is None:
        return FeedForward(width, size)
    return MoELayer(config, moe, FeedForward(width, moe.num_shared_experts * size) if moe.num_shared_experts else None)


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = feed_forward(config)
        self.dropout = config.dropout

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, documents: Any, token_mask: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """x [B, T, D] -> hidden states [B, T, D], and the statistics of a mixture's router over the tokens where
        `token_mask` [B, T] is true (`MoELayer.forward_with_stats`), or None. `documents` as in `Attention.forward`."""
        x = x + self._drop(self.self_attn(self.input_layernorm(x), cos, sin, documents))
        normed = self.post_attention_layernorm(x)
        if not isinstance(self.mlp, MoELayer):
            return x + self._drop(self.mlp(normed)), None
        mixed, statistics = self.mlp.forward_with_stats(normed, token_mask)
        return x + self._drop(mixed), statistics

    def _drop(self, x: Tensor) -> Tensor:
        return dropout(x, self.dropout) if self.dropout and self.training else x


class Decoder(LanguageModel):
    """The native language model: computes hidden states from tokens, and has the matrix of the head for the logits."""

    implementation = "native"

    def __init__(self, config: ModelConfig, vocab_size: int, *, has_score: bool = False) -> None:
        """`has_score`: a reward model, with the head `score` in place of `lm_head`."""
        super().__init__()
        self.config, self.vocab_size = config, vocab_size
        self.compute_dtype = torch.float32
        self.attention = "sdpa"
        self.activation_checkpoint_every = 0
        self.generation_settings = {}
        self.embed_tokens = nn.Embedding(vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        is_tied = config.tie_word_embeddings or has_score
        self.lm_head = None if is_tied else Linear(config.hidden_size, vocab_size, bias=False)
        self.score = Linear(config.hidden_size, 1, bias=False) if has_score else None
        self.prefix: Prefix | None = None  # of an adapter
        self.register_buffer("frequencies", rope_frequencies(config), persistent=False)
        self.magnitude = rope_magnitude(config)

    def init_weights(self, seed: int) -> None:
        """Draw the matrices from Normal(0, initializer_range), the two projections that write to the residual with a standard
        deviation scaled by 1/√(2·layers) (Radford et al. 2019, §2.3). Biases are 0. The weights are a function of the seed."""
        generator = torch.Generator().manual_seed(seed)
        std = self.config.initializer_range
        residual = std / math.sqrt(2 * self.config.num_hidden_layers)
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                writes = name.removesuffix(".weight").endswith(("o_proj", "down_proj"))
                nn.init.normal_(parameter, 0.0, residual if writes else std, generator=generator)
            elif name.endswith(".bias"):
                nn.init.zeros_(parameter)

    # -- computing ----------------------------------------------------------------------------------------------------

    def rope_cos_sin(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """Cosine and sine [B, 1, T, d] of the rotary angles of positions [B, T], times `rope.rope_magnitude`."""
        angles = positions[:, :, None].float() * self.frequencies  # type: ignore[operator]
        angles = torch.cat((angles, angles), dim=-1)[:, None]
        cos, sin = angles.cos(), angles.sin()
        if self.magnitude != 1:
            cos, sin = cos * self.magnitude, sin * self.magnitude
        return cos.to(self.compute_dtype), sin.to(self.compute_dtype)

    def forward(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        segment_starts: SegmentStarts | None = None,
    ) -> Tensor:
        """Hidden states [B, T, D]; see `LanguageModel.forward`. `positions=None`: 0 … T - 1 in each row."""
        return self._hidden_states(tokens, positions, documents, segment_starts)[0]

    def forward_with_router_stats(
        self,
        tokens: Tensor,
        positions: Tensor | None = None,
        documents: Tensor | None = None,
        segment_starts: SegmentStarts | None = None,
    ) -> tuple[Tensor, RouterStats | None]:
        """Hidden states [B, T, D], and the statistics of the routers without padding (None for a dense model)."""
        return self._hidden_states(tokens, positions, documents, segment_starts)

    def _hidden_states(
        self, tokens: Tensor, positions: Tensor | None, documents: Tensor | None, segment_starts: SegmentStarts | None
    ) -> tuple[Tensor, RouterStats | None]:
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        cos, sin = self.rope_cos_sin(positions if self.prefix is None else positions + self.prefix.length)
        metadata = self._metadata(tokens, documents, segment_starts)
        x = self.embed_tokens(tokens).to(self.compute_dtype)
        token_mask = None if documents is None or self.config.moe is None else documents > 0
        statistics, recomputed = [], self._recomputed_blocks()
        for number, block in enumerate(self.layers):
            known = metadata[number]
            if number in recomputed:
                # The generator's state is a copy from the device, and only dropout draws from it.
                keep = self.draws_random_numbers
                x, routed = checkpoint(block, x, cos, sin, known, token_mask, use_reentrant=False, preserve_rng_state=keep)
            else:
                x, routed = block(x, cos, sin, known, token_mask)
            if routed is not None:
                statistics.append(routed)
        return self.norm(x), RouterStats.of_layers(statistics) if statistics else None

    def _metadata(self, tokens: Tensor, documents: Tensor | None, segment_starts: SegmentStarts | None) -> Sequence[Any]:
        """The last argument of attention in each layer."""
        if self.prefix is not None:
            return self.prefix.metadata(documents, tokens, self.compute_dtype)
        (B, T), dtype = tokens.shape, self.compute_dtype
        backend = self.attention_of_pass()
        self._use_attention(backend)
        one = attention_metadata(backend, documents, B, T, tokens.device, dtype=dtype, starts=segment_starts)
        return [one] * len(self.layers)

    def _recomputed_blocks(self) -> frozenset[int]:
        """Indices of the blocks to compute again in the backward pass; empty without gradients."""
        if not (self.training and torch.is_grad_enabled()):
            return frozenset()
        return frozenset(checkpointed_layers(len(self.layers), self.activation_checkpoint_every))

    @property
    def lm_head_weight(self) -> Tensor:
        """The matrix of the head [V, D]; the embedding matrix if they are tied. Raises FledgeError if another module wraps the
        head: losses and logits are products with this matrix, a chunk at a time, and would not call the module."""
        assert self.score is None, "a reward model has no head for tokens"
        head = self.embed_tokens if self.lm_head is None else self.lm_head
        if type(head) not in (nn.Embedding, Linear):
            raise FledgeError(f"the head of the model is a {type(head).__name__}, which cannot be used as one matrix")
        return head.weight

    @property
    def score_weight(self) -> Tensor | None:
        """The matrix [1, D] of a reward model's head; None: a language model."""
        return None if self.score is None else self.score.weight

    def become_reward_model(self, seed: int) -> None:
        """Put the head `score` in the place of `lm_head` (`LanguageModel.become_reward_model`)."""
        self.lm_head, self.score = None, Linear(self.config.hidden_size, 1, bias=False)
        generator = torch.Generator().manual_seed(seed)
        nn.init.normal_(self.score.weight, 0.0, self.config.initializer_range, generator=generator)
        self.score.to(self.device)

    @property
    def device(self) -> torch.device:
        """The device of the parameters."""
        return self.embed_tokens.weight.device

    @property
    def draws_random_numbers(self) -> bool:
        """Whether the recipe asks for dropout, of the model or of its adapter."""
        return self.config.dropout > 0 or (self.adapter is not None and self.adapter.config.lora_dropout > 0)

    # -- blocks and attention -------------------------------------------------------------------------------------------

    def blocks(self) -> list[Block]:
        """The layers in order."""
        return [block for block in self.layers if isinstance(block, Block)]

    @contextmanager
    def only_first_block(self) -> Iterator[None]:
        """A context in which the model has only its first layer."""
        layers = self.layers
        self.layers = layers[:1]
        try:
            yield
        finally:
            self.layers = layers

    @property
    def attention_backends(self) -> list[str]:
        """All backends of `attention`, `segment_attention` and `cuda_attention`."""
        return [*BACKENDS, *ON_CPU, *ON_CUDA]

    def set_attention_backend(self, backend: str) -> None:
        """Choose the attention backend of every layer: one of `attention_backends`."""
        self.attention = backend
        self._use_attention(backend)

    def _use_attention(self, name: str) -> None:
        backend = attention_backend(name)
        for block in self.blocks():
            block.self_attn.backend = backend

    # -- parameters -----------------------------------------------------------------------------------------------------

    def file_name(self, name: str) -> str:
        """The name with `model.` before it, except for a head."""
        return name if f"{name}.".startswith(HEADS) else f"model.{name}"

    def parameter_role(self, name: str) -> ParameterRole:
        """The role of a parameter, by the module that owns it and by its shape."""
        parameter, owner = self.get_parameter(name), self.get_submodule(name.rpartition(".")[0])
        if owner is self.embed_tokens:
            return "embedding"
        if owner is self.lm_head or owner is self.score:
            return "head"
        if name.rpartition(".")[2] in ADAPTER_TENSORS:
            return "adapter"
        if parameter.dim() < 2:
            return "vector"
        return "gate" if isinstance(owner, Router) or min(parameter.shape[-2:]) == 1 else "matrix"

    @property
    def cost(self) -> ModelCost:
        """The cost of a decoder of these sizes."""
        return ModelCost(self.config, self.vocab_size, has_lm_head=self.score is None)

    def grow_vocabulary(self, vocab_size: int) -> None:
        """Add rows to embedding and head (`LanguageModel.grow_vocabulary`)."""
        tables: list[nn.Module] = [self.embed_tokens, *([] if self.lm_head is None else [self.lm_head])]
        for module in tables:
            module.weight = nn.Parameter(grown_table(module.weight, vocab_size))  # type: ignore[arg-type]
        self.vocab_size = self.embed_tokens.num_embeddings = vocab_size
        if self.lm_head is not None:
            self.lm_head.out_features = vocab_size

    def update_router_biases(self, routing: RouterStats, applied: Tensor | None = None) -> None:
        """Move the biases of all routers (`moe.update_biases`)."""
        update_biases(self, routing, applied)

    # -- directories ----------------------------------------------------------------------------------------------------

    def file_tensors(self) -> dict[str, Tensor]:
        """The weights under their names in a model directory; the matrices of experts are views of the stacked tensors."""
        return file_tensors(self.state_dict())

    def save_pretrained(
        self, folder: Path, *, bos: int | None, eos: list[int], pad: int, weights: Mapping[str, Tensor] | None = None
    ) -> None:
        """Write config.json, generation_config.json and model.safetensors (float32)."""
        is_reward_model = self.score is not None
        config = hf_config(self.config, self.vocab_size, bos=bos, eos=eos, pad=pad, is_reward_model=is_reward_model)
        weights = self.state_dict() if weights is None else weights
        write_model_directory(folder, config, weights, self.generation_settings)

    def with_weights(self, weights: Mapping[str, Tensor]) -> "Decoder":
        """A new decoder with the weights of a `state_dict`; sizes, device and settings are copied from this one."""
        copy = Decoder(self.config, self.vocab_size, has_score=self.score is not None).to(self.device)
        copy.load_state_dict(weights)
        copy.compute_dtype, copy.generation_settings = self.compute_dtype, self.generation_settings
        copy.set_attention_backend(self.attention)
        copy.eager_attention = self.eager_attention
        return copy
