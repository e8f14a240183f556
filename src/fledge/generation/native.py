"""The native decoder for inference: equal values up to rounding, with fewer operations and with weights that are cast once.

Each engine builds one from the model's weights, in `compute_dtype` (training casts its float32 weights in every call). Query,
key and value are one product; additions of residuals and multiplications by gates are fused into the products before them;
matrices are packed for the machine (`packed_linear.py`). The packed matrices are a second copy of the weights.

One pass takes the next token of every running request together with complete new prompts (Yu et al. 2022, "Orca", §4.2): all
tokens share the matrix products without padding, and only attention distinguishes the requests.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fledge.generation.kv_cache import KVCache, round_up
from fledge.generation.packed_linear import joint_product, module_product, product
from fledge.generation.packed_mlp import feed_of
from fledge.model.attention import avoid_cudnn_attention
from fledge.model.decoder import Block, Decoder
from fledge.model.device_copy import to_device

READ_GRAIN = 16  # attention reads a multiple of this many positions: an odd number makes its products slower


@dataclass(frozen=True, kw_only=True)
class ForwardBatch:
    """The layout of the N tokens of a pass: one token for each of the n decoding requests, then m prompts one after another.

    `slots` and `cache_positions` [N]: slot and position in the cache of each token's key and value. `logit_index` [n + m]: the
    tokens that get logits (None: all). `num_prompts`: m. `padded` [m · T] and `unpadded` [N - n]: indices that lay the prompts'
    tokens out in m rows of T and back (None for a single prompt); what stands behind the end of a prompt is any token.
    `mask` [n, 1, 1, length]: 0 where a decoding request attends, -inf elsewhere. `cos` and `sin` [N, 1, d]: of the rotary
    angles of the tokens; the first half of `sin` is negated.
    """

    slots: Tensor
    cache_positions: Tensor
    num_decoding: int
    length: int
    num_prompts: int
    padded: Tensor | None
    unpadded: Tensor | None
    logit_index: Tensor | None
    mask: Tensor
    cos: Tensor
    sin: Tensor


class InferenceLayer:
    """One block of the decoder for inference."""

    def __init__(self, block: Block, dtype: torch.dtype, prefix: tuple[Tensor, Tensor] | None = None) -> None:
        """`prefix`: the keys and values [K, P, d] of an adapter, before those of every request."""
        self.prefix = prefix
        attention = block.self_attn
        self.heads, self.kv_heads, self.head_size = attention.heads, attention.kv_heads, attention.head_size
        self.qkv = joint_product((attention.q_proj, attention.k_proj, attention.v_proj), dtype)
        self.out = module_product(attention.o_proj, dtype)
        self.before_attention, self.before_feed = block.input_layernorm, block.post_attention_layernorm
        self.q_norm, self.k_norm = attention.q_norm, attention.k_norm
        self.feed = feed_of(block.mlp, dtype)

    def __call__(self, x: Tensor, batch: ForwardBatch, cache: KVCache, layer: int) -> Tensor:
        """x [N, D] -> [N, D]; the keys and values of the tokens are added to the cache under the number of the layer."""
        n = batch.num_decoding
        qkv = self._project(self.before_attention(x), batch)
        cache.write(layer, batch.slots, batch.cache_positions, qkv[:, self.heads :])
        attended = []
        if n:
            attended.append(self._decode(qkv[:n, : self.heads], *cache.read(layer, n, batch.length), batch.mask))
        if batch.num_prompts:
            attended.append(self._prefill(qkv[n:], batch))
        x = self.out.plus(attended[0] if len(attended) == 1 else torch.cat(attended), x)
        return self.feed(x, self.before_feed(x))

    def _project(self, normed: Tensor, batch: ForwardBatch) -> Tensor:
        """Queries, keys and values [N, H + 2K, d], queries and keys rotated to their positions."""
        qkv = self.qkv(normed).view(normed.shape[0], -1, self.head_size)
        rotated = qkv[:, : self.heads + self.kv_heads]
        if self.q_norm is not None and self.k_norm is not None:
            rotated[:, : self.heads] = self.q_norm(rotated[:, : self.heads])
            rotated[:, self.heads :] = self.k_norm(rotated[:, self.heads :])
        swapped = rotated.roll(self.head_size // 2, -1)
        rotated.mul_(batch.cos).addcmul_(swapped, batch.sin)
        return qkv

    def _decode(self, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Attention of one token of each decoding request, q [n, H, d], to its whole sequence -> [n, H·d]. The heads that
        share a key are the rows of one product."""
        rows = q.shape[0]
        if self.prefix is not None:
            keys, values = self._after_prefix(keys, values)
            mask = F.pad(mask, (self.prefix[0].shape[1], 0))
        grouped = q.reshape(rows, self.kv_heads, self.heads // self.kv_heads, self.head_size)
        return F.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask).reshape(rows, -1)

    def _prefill(self, qkv: Tensor, batch: ForwardBatch) -> Tensor:
        """Causal attention inside each of the prompts, [N, H + 2K, d] -> [N, H·d]. Prompts are padded on the right, where
        causal attention never looks."""
        if batch.padded is None or batch.unpadded is None:
            return self._causal(qkv[None])[0]
        rows = qkv.index_select(0, batch.padded).view(batch.num_prompts, -1, *qkv.shape[1:])
        return self._causal(rows).flatten(0, 1).index_select(0, batch.unpadded)

    def _causal(self, qkv: Tensor) -> Tensor:
        """[B, T, H + 2K, d] -> [B, T, H·d]."""
        q, k, v = qkv.transpose(1, 2).split((self.heads, self.kv_heads, self.kv_heads), dim=1)
        if self.prefix is not None:
            k, v = self._after_prefix(k, v)
        group = self.heads // self.kv_heads
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)  # PyTorch's own grouping is slower on a CPU
        return self._attend(q, k, v).transpose(1, 2).flatten(2)

    def _attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        if self.prefix is None:
            return F.scaled_dot_product_attention(q, k, v, is_causal=True)
        length, begun = q.shape[2], k.shape[2] - q.shape[2]
        mask = torch.ones(length, length + begun, dtype=torch.bool, device=q.device).tril(begun)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)

    def _after_prefix(self, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values [n, K, T, d] with those of the prefix before them."""
        assert self.prefix is not None
        before = (one.expand(len(keys), -1, -1, -1) for one in self.prefix)
        return torch.cat((next(before), keys), dim=2), torch.cat((next(before), values), dim=2)


def _padding(lengths: Sequence[int]) -> tuple[list[int], list[int]]:
    """`ForwardBatch.padded` and `ForwardBatch.unpadded` for prompts of these lengths, one after another."""
    longest, padded, unpadded, start = max(lengths), list[int](), list[int](), 0
    for row, length in enumerate(lengths):
        padded += [*range(start, start + length), *[start] * (longest - length)]
        unpadded += range(row * longest, row * longest + length)
        start += length
    return padded, unpadded


class InferenceModel:
    """A decoder ready to generate. Matrices are copied when it is built: after the model's weights change, build another."""

    def __init__(self, model: Decoder) -> None:
        self.model, dtype = model, model.compute_dtype
        self.device, self.dtype = model.lm_head_weight.device, dtype
        avoid_cudnn_attention(self.device)
        embedding = model.embed_tokens
        table = embedding.weight.to(dtype) if type(embedding) is nn.Embedding else None
        self.embed = embedding if table is None else table.__getitem__
        self.head = product(model.lm_head_weight, dtype)
        self.prefix_length = 0 if model.prefix is None else model.prefix.length
        prefixes = [None] * len(model.layers) if model.prefix is None else model.prefix.keys_and_values(dtype)
        self.layers = [InferenceLayer(block, dtype, prefix) for block, prefix in zip(model.blocks(), prefixes, strict=True)]

    def empty_cache(self, slots: int = 0, max_length: int = 0) -> KVCache:
        """A cache for `slots` sequences of at most `max_length` tokens; both can grow."""
        first = self.layers[0]
        return KVCache(
            num_layers=len(self.layers),
            slots=slots,
            num_kv_heads=first.kv_heads,
            head_dim=first.head_size,
            max_length=max_length,
            dtype=self.dtype,
            device=self.device,
        )

    def forward(
        self, cache: KVCache, tokens: Sequence[int], lengths: Sequence[int], prompts: Sequence[Sequence[int]]
    ) -> Tensor:
        """Logits [n + m, V] in float32 for the token that follows each sequence.

        The first n slots hold sequences of which `lengths` tokens are in the cache, and `tokens` is the next one of each.
        The m prompts are new sequences, which get the slots after those.
        """
        x, batch = self._lay_out(cache, tokens, lengths, prompts)
        for number, layer in enumerate(self.layers):
            x = layer(x, batch, cache, number)
        return self.head(self.model.norm(x if batch.logit_index is None else x[batch.logit_index])).float()

    def _lay_out(
        self, cache: KVCache, tokens: Sequence[int], lengths: Sequence[int], prompts: Sequence[Sequence[int]]
    ) -> tuple[Tensor, ForwardBatch]:
        num_decoding, prompt_lengths = len(tokens), [len(prompt) for prompt in prompts]
        filled = max(lengths, default=0) + 1
        cache.reserve(max(filled, *prompt_lengths, 0) if prompt_lengths else filled)
        rows = [list(tokens), list(range(num_decoding)), list(lengths)]
        last = list(range(num_decoding))
        for slot, prompt in enumerate(prompts, num_decoding):
            rows[0] += prompt
            rows[1] += [slot] * len(prompt)
            rows[2] += range(len(prompt))
            last.append(len(rows[0]) - 1)
        padding = _padding(prompt_lengths) if len(prompts) > 1 else ([], [])
        parts = [*rows, last if prompts else [], *padding]  # one copy to the device for all of them
        together = to_device([number for part in parts for number in part], self.device)
        ids, slots, positions, logit_index, padded, unpadded = together.split([len(part) for part in parts])
        length = min(round_up(filled, READ_GRAIN), cache.capacity)
        attends = torch.arange(length, device=self.device) <= positions[:num_decoding, None]
        x = self.embed(ids).to(self.dtype)
        cos, sin = (angle[0, 0, :, None] for angle in self.model.rope_cos_sin(positions[None] + self.prefix_length))
        return x, ForwardBatch(
            slots=slots,
            cache_positions=positions,
            num_decoding=num_decoding,
            length=length,
            num_prompts=len(prompts),
            padded=padded if len(prompts) > 1 else None,
            unpadded=unpadded if len(prompts) > 1 else None,
            logit_index=logit_index if prompts else None,
            mask=x.new_zeros(attends.shape).masked_fill_(~attends, float("-inf"))[:, None, None],
            cos=cos,
            sin=torch.cat((-sin[..., : sin.shape[-1] // 2], sin[..., sin.shape[-1] // 2 :]), -1),
        )
