"""Prefix tuning (Li & Liang 2021): trained keys and values that every position of every document attends to.

They stand before the first token: the positions of the tokens begin behind them, as in PEFT. They are not rotated.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fledge.model.attention import causal_document_mask
from fledge.recipe.schema import ModelConfig

STD = 0.02  # of the first values


class PrefixedMetadata(NamedTuple):
    """What attention needs to know in a model with a prefix: `keys` and `values` [K, P, d] of the layer, and the `mask`
    [T, P + T] or [B, 1, T, P + T] of what is attended to."""

    keys: Tensor
    values: Tensor
    mask: Tensor


class Prefix(nn.Module):
    """The keys and values of P virtual tokens in all layers, as one parameter [P, layers · 2 · K · d], as in PEFT's files."""

    def __init__(self, config: ModelConfig, num_virtual_tokens: int) -> None:
        super().__init__()
        self.layers, self.heads, self.head_size = config.num_hidden_layers, config.num_key_value_heads, config.head_size
        self.prompt_embeddings = nn.Parameter(torch.empty(num_virtual_tokens, self.layers * 2 * self.heads * self.head_size))

    def init_weights(self, seed: int) -> None:
        """Draw the values from Normal(0, STD); they are a function of the seed."""
        with torch.no_grad():
            drawn = torch.randn(self.prompt_embeddings.shape, generator=torch.Generator().manual_seed(seed % 2**63))
            self.prompt_embeddings.copy_(STD * drawn)

    @property
    def length(self) -> int:
        """P."""
        return len(self.prompt_embeddings)

    def keys_and_values(self, dtype: torch.dtype) -> list[tuple[Tensor, Tensor]]:
        """The keys and values [K, P, d] of each layer."""
        parts = self.prompt_embeddings.to(dtype).view(self.length, self.layers, 2, self.heads, self.head_size)
        return [(layer[0], layer[1]) for layer in parts.permute(1, 2, 3, 0, 4)]

    def mask(self, documents: Tensor | None, tokens: Tensor) -> Tensor:
        """True where a position of tokens [B, T] attends: to the prefix, and to the earlier positions of its document; bool
        [T, P + T] or [B, 1, T, P + T]."""
        causal = causal_document_mask(documents, 0, tokens.shape[1], tokens.device)
        return torch.cat((causal.new_ones(*causal.shape[:-1], self.length), causal), dim=-1)

    def metadata(self, documents: Tensor | None, tokens: Tensor, dtype: torch.dtype) -> list[PrefixedMetadata]:
        """The metadata of each layer for tokens [B, T]."""
        mask = self.mask(documents, tokens)
        return [PrefixedMetadata(keys, values, mask) for keys, values in self.keys_and_values(dtype)]


def prefixed_attention(q: Tensor, k: Tensor, v: Tensor, metadata: PrefixedMetadata) -> Tensor:
    """Attention to the prefix and to the earlier positions of a document: q [B, H, T, d], k and v [B, K, T, d] ->
    [B, H, T, d]."""
    k = torch.cat((metadata.keys.expand(len(k), -1, -1, -1), k), dim=2)
    v = torch.cat((metadata.values.expand(len(v), -1, -1, -1), v), dim=2)
    group = q.shape[1] // k.shape[1]
    k, v = k.repeat_interleave(group, dim=1), v.repeat_interleave(group, dim=1)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=metadata.mask)
