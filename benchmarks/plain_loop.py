"""An opponent: the plain training loop that people write by hand, for a model of equal sizes on equal rows.

A Llama-shaped model in a few lines with PyTorch's own kernels, torch.autocast in bfloat16, torch.compile of the whole model,
the fused AdamW for all parameters, clipping. No document masks, no loss weights, no watching, no saving.
"""

import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fledge.recipe.schema import ModelConfig


class PlainBlock(nn.Module):
    """Causal attention and SwiGLU behind norms."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        width, self.heads, self.kv_heads = config.hidden_size, config.num_attention_heads, config.num_key_value_heads
        self.head = width // self.heads
        self.before_attention, self.before_mlp = nn.RMSNorm(width, 1e-6), nn.RMSNorm(width, 1e-6)
        self.qkv = nn.Linear(width, (self.heads + 2 * self.kv_heads) * self.head, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.gate_up = nn.Linear(width, 2 * config.intermediate_size, bias=False)
        self.down = nn.Linear(config.intermediate_size, width, bias=False)

    def forward(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """x [B, T, D] -> [B, T, D]."""
        B, T, D = x.shape
        projected = self.qkv(self.before_attention(x)).view(B, T, -1, self.head).transpose(1, 2)
        q, k, v = projected.split((self.heads, self.kv_heads, self.kv_heads), dim=1)
        q, k = self._rotate(q, cos, sin), self._rotate(k, cos, sin)
        mixed = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=True)
        x = x + self.out(mixed.transpose(1, 2).reshape(B, T, D))
        gate, up = self.gate_up(self.before_mlp(x)).chunk(2, dim=-1)
        return x + self.down(F.silu(gate) * up)

    def _rotate(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        first, second = x.chunk(2, dim=-1)
        return (x * cos + torch.cat((-second, first), dim=-1) * sin).to(x.dtype)


class PlainModel(nn.Module):
    """A language model with tied embeddings; gives the mean loss."""

    def __init__(self, config: ModelConfig, vocab_size: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(PlainBlock(config) for _ in range(config.num_hidden_layers))
        self.norm = nn.RMSNorm(config.hidden_size, 1e-6)
        head = config.hidden_size // config.num_attention_heads
        angles = torch.arange(config.max_position_embeddings)[:, None] * 10_000.0 ** -(torch.arange(0, head, 2) / head)
        self.register_buffer("angles", torch.cat((angles, angles), dim=-1))
        for parameter in self.parameters():
            if parameter.dim() > 1:
                nn.init.normal_(parameter, 0.0, 0.02)

    def forward(self, tokens: Tensor, targets: Tensor) -> Tensor:
        """Tokens and targets [B, T] -> the mean cross-entropy."""
        angles = self.angles[: tokens.shape[1]]
        cos, sin = angles.cos(), angles.sin()
        x = self.embedding(tokens)
        for block in self.blocks:
            x = block(x, cos, sin)
        logits = F.linear(self.norm(x), self.embedding.weight)
        return F.cross_entropy(logits.flatten(0, 1).float(), targets.flatten())


class PlainLoop:
    """The loop; a call takes one step and returns its seconds. Batches are cut from tokens that are in memory."""

    def __init__(self, config: ModelConfig, vocab_size: int, rows: list[Tensor], micro_batch: int) -> None:
        torch.manual_seed(0)
        self.model = PlainModel(config, vocab_size)
        self.compiled = torch.compile(self.model)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=5e-4, betas=(0.9, 0.95), weight_decay=0.1, fused=True)
        self.rows, self.micro_batch, self.step = torch.stack(rows), micro_batch, 0

    def __call__(self) -> float:
        """Take one step; returns its seconds."""
        started = time.perf_counter()
        first = self.step * self.micro_batch % (len(self.rows) - self.micro_batch + 1)
        batch = self.rows[first : first + self.micro_batch]
        with torch.autocast("cpu", torch.bfloat16):
            loss = self.compiled(batch[:, :-1], batch[:, 1:])
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        float(loss.detach())
        self.step += 1
        return time.perf_counter() - started
