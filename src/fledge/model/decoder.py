"""The native decoder: a Llama/Qwen3-shaped transformer, whole, in the order in which a token passes through it.

Pre-norm blocks (RMSNorm: Zhang & Sennrich 2019) of grouped-query attention (Ainslie et al. 2023) with rotary
positions (Su et al. 2021) and SwiGLU (Shazeer 2020). Parameter names are those of the Hugging Face files.
Parameters are float32; `compute_dtype` is what activations and matrix products use.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fledge.errors import FledgeError
from fledge.model.attention import BACKENDS
from fledge.recipe.schema import ModelConfig


@dataclass
class Cache:
    """Keys and values of tokens already read: per layer [B, K, capacity, d]; `length` positions are filled.

    `valid` [B, capacity] says which of them a row may see (padding on the left is not).
    """

    keys: list[Tensor]
    values: list[Tensor]
    valid: Tensor
    length: int = 0

    def keep(self, rows: Tensor) -> None:
        """Only these rows go on."""
        self.keys = [k[rows] for k in self.keys]
        self.values = [v[rows] for v in self.values]
        self.valid = self.valid[rows]


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Dropout is off inside; afterwards the model is in the mode it was in before, also after an error."""
    was_training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(was_training)


def linear(x: Tensor, weight: Tensor) -> Tensor:
    """x·Wᵀ in the dtype of x; the float32 weight is rounded on the way."""
    return F.linear(x, weight.to(x.dtype))


class RMSNorm(nn.Module):
    """x / sqrt(mean(x²) + ε) · weight, computed in float32."""

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
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
        width, head = config.hidden_size, config.hidden_size // config.num_attention_heads
        self.heads, self.kv_heads, self.head_size = config.num_attention_heads, config.num_key_value_heads, head
        self.q_proj = nn.Linear(width, width, bias=False)
        self.k_proj = nn.Linear(width, self.kv_heads * head, bias=False)
        self.v_proj = nn.Linear(width, self.kv_heads * head, bias=False)
        self.o_proj = nn.Linear(width, width, bias=False)
        self.q_norm = RMSNorm(head, config.rms_norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(head, config.rms_norm_eps) if config.qk_norm else None
        self.backend = BACKENDS["sdpa"]

    def project(self, x: Tensor, cos: Tensor, sin: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Queries [B, H, T, d], keys and values [B, K, T, d], rotated to their positions."""
        B, T, _ = x.shape
        q = linear(x, self.q_proj.weight).view(B, T, self.heads, self.head_size)
        k = linear(x, self.k_proj.weight).view(B, T, self.kv_heads, self.head_size)
        v = linear(x, self.v_proj.weight).view(B, T, self.kv_heads, self.head_size)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        q, k, v = q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)
        return rotate(q, cos, sin), rotate(k, cos, sin), v

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, documents: Tensor | None) -> Tensor:
        B, T, width = x.shape
        q, k, v = self.project(x, cos, sin)
        mixed = self.backend(q, k, v, documents)
        return linear(mixed.transpose(1, 2).reshape(B, T, width), self.o_proj.weight)

    def extend(self, x: Tensor, cos: Tensor, sin: Tensor, cache: Cache, layer: int) -> Tensor:
        """Attend from new tokens to the cache and to themselves, writing their keys and values into it."""
        B, T, width = x.shape
        q, k, v = self.project(x, cos, sin)
        start, stop = cache.length, cache.length + T
        keys, values = cache.keys[layer], cache.values[layer]
        keys[:, :, start:stop], values[:, :, start:stop] = k, v
        causal = torch.ones(T, stop, dtype=torch.bool, device=x.device).tril(start)
        mask = causal & cache.valid[:, None, None, :stop]
        mask = mask | torch.eye(T, stop, dtype=torch.bool, device=x.device).roll(start, 1)  # padding sees itself: no NaN
        mixed = F.scaled_dot_product_attention(
            q, keys[:, :, :stop], values[:, :, :stop], attn_mask=mask, enable_gqa=self.heads != self.kv_heads
        )
        return linear(mixed.transpose(1, 2).reshape(B, T, width), self.o_proj.weight)


class FeedForward(nn.Module):
    """SwiGLU: down(silu(gate(x)) · up(x))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        gated = F.silu(linear(x, self.gate_proj.weight)) * linear(x, self.up_proj.weight)
        return linear(gated, self.down_proj.weight)


class Block(nn.Module):
    """x + attention(norm(x)), then x + feed-forward(norm(x))."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.self_attn = Attention(config)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.mlp = FeedForward(config)
        self.dropout = config.dropout

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor, documents: Tensor | None) -> Tensor:
        x = x + self._drop(self.self_attn(self.input_layernorm(x), cos, sin, documents))
        return x + self._drop(self.mlp(self.post_attention_layernorm(x)))

    def extend(self, x: Tensor, cos: Tensor, sin: Tensor, cache: Cache, layer: int) -> Tensor:
        """The same with a cache; generation never drops."""
        x = x + self.self_attn.extend(self.input_layernorm(x), cos, sin, cache, layer)
        return x + self.mlp(self.post_attention_layernorm(x))

    def _drop(self, x: Tensor) -> Tensor:
        return F.dropout(x, self.dropout, self.training) if self.dropout else x


def refuse_unsupported(config: ModelConfig) -> None:
    """FledgeError for what the schema knows and the decoder does not build yet."""
    if config.moe is not None:
        raise FledgeError(
            "this version plans mixtures of experts (--dry-run) but cannot train them yet",
            where="model.moe",
            hint="set model.moe to null for the dense model of the same width",
        )


class Decoder(nn.Module):
    """Tokens to hidden states; the head's matrix turns those into logits (see `head.py` for losses)."""

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        refuse_unsupported(config)
        self.config, self.vocab_size = config, vocab_size
        self.compute_dtype = torch.float32
        self.embed_tokens = nn.Embedding(vocab_size, config.hidden_size)
        self.layers = nn.ModuleList(Block(config) for _ in range(config.num_hidden_layers))
        self.norm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.lm_head = None if config.tie_word_embeddings else nn.Linear(config.hidden_size, vocab_size, bias=False)
        head = config.hidden_size // config.num_attention_heads
        frequencies = config.rope_theta ** -(torch.arange(0, head, 2, dtype=torch.float64) / head)
        self.register_buffer("frequencies", frequencies.float(), persistent=False)

    def initialise(self, seed: int) -> None:
        """Normal(0, initializer_range); the two projections that write to the residual are scaled by 1/√(2·layers)
        (Radford et al. 2019, §2.3). The same seed gives the same weights."""
        generator = torch.Generator().manual_seed(seed)
        std = self.config.initializer_range
        residual = std / math.sqrt(2 * self.config.num_hidden_layers)
        for name, parameter in self.named_parameters():
            if parameter.dim() > 1:
                writes = name.endswith(("o_proj.weight", "down_proj.weight"))
                nn.init.normal_(parameter, 0.0, residual if writes else std, generator=generator)

    @property
    def head_weight(self) -> Tensor:
        """The matrix of the head [V, D]; the embedding's own where they are tied."""
        return self.embed_tokens.weight if self.lm_head is None else self.lm_head.weight

    def use_attention(self, backend: str) -> None:
        """Choose the attention backend of every layer (a key of `attention.BACKENDS`)."""
        for block in self.blocks():
            block.self_attn.backend = BACKENDS[backend]

    def blocks(self) -> list[Block]:
        """The layers, typed."""
        return [block for block in self.layers if isinstance(block, Block)]

    def angles(self, positions: Tensor) -> tuple[Tensor, Tensor]:
        """cos and sin [B, 1, T, d] of positions [B, T]."""
        angles = positions[:, :, None].float() * self.frequencies  # type: ignore[operator]
        angles = torch.cat((angles, angles), dim=-1)[:, None]
        return angles.cos().to(self.compute_dtype), angles.sin().to(self.compute_dtype)

    def forward(self, tokens: Tensor, positions: Tensor | None = None, documents: Tensor | None = None) -> Tensor:
        """Hidden states [B, T, D] of tokens [B, T]. Without positions they count from 0; without documents a row is
        one document."""
        if positions is None:
            positions = torch.arange(tokens.shape[1], device=tokens.device).expand_as(tokens)
        cos, sin = self.angles(positions)
        x = self.embed_tokens(tokens).to(self.compute_dtype)
        for block in self.layers:
            x = block(x, cos, sin, documents)
        return self.norm(x)

    def logits(self, hidden: Tensor) -> Tensor:
        """Logits [..., V] in float32."""
        return linear(hidden, self.head_weight).float()

    def empty_cache(self, rows: int, capacity: int) -> Cache:
        """Room for `capacity` tokens in each of `rows` sequences."""
        attention = self.blocks()[0].self_attn
        shape = (rows, attention.kv_heads, capacity, attention.head_size)
        device = self.embed_tokens.weight.device
        fresh = [torch.zeros(shape, dtype=self.compute_dtype, device=device) for _ in range(2 * len(self.layers))]
        valid = torch.zeros(rows, capacity, dtype=torch.bool, device=device)
        return Cache(fresh[: len(self.layers)], fresh[len(self.layers) :], valid)

    def extend(self, tokens: Tensor, positions: Tensor, cache: Cache) -> Tensor:
        """Hidden states [B, T, D] of new tokens [B, T] after those in the cache. `cache.valid` must already say
        which of the new places are real."""
        cos, sin = self.angles(positions)
        x = self.embed_tokens(tokens).to(self.compute_dtype)
        for layer, block in enumerate(self.blocks()):
            x = block.extend(x, cos, sin, cache, layer)
        cache.length += tokens.shape[1]
        return self.norm(x)
