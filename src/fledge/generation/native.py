"""The decoder in the form that generation runs: the same function, fewer operations, weights cast once.

Made once for each call from the model's weights, in `compute_dtype` (training casts its float32 weights in every call).
Query, key and value are one product, residuals are added and gates multiplied by the products that end in them, and the
matrices are packed for the machine (`products.py`). That is a second copy of the weights while it lives.

One pass takes the next token of every answer under way together with new prompts (Yu et al. 2022, "Orca", §4.2): their
tokens share the matrix products without padding, and only attention tells them apart.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from fledge.generation.kv_cache import KVCache, round_up
from fledge.generation.packed_linear import joint_product, module_product, product
from fledge.generation.packed_mlp import feed_of
from fledge.model.decoder import Block, Decoder

READ_GRAIN = 16  # attention reads a multiple of this many places: an odd number makes its products slower


@dataclass(frozen=True)
class ForwardBatch:
    """How the N tokens of a pass lie: first one token for each of the `going` answers, then `prompts` one after another.

    `slots` and `places` [N] are where their keys and values go, `last` [going + prompts] which tokens get logits,
    `mask` [going, 1, 1, length] is 0 where an answer may look and -inf where it may not.
    """

    slots: Tensor
    cache_positions: Tensor
    num_decoding: int
    length: int
    prompts: list[int]
    last: Tensor | None
    mask: Tensor
    cos: Tensor
    sin: Tensor


class InferenceLayer:
    """One block."""

    def __init__(self, block: Block, dtype: torch.dtype) -> None:
        attention = block.self_attn
        self.heads, self.kv_heads, self.head_size = attention.heads, attention.kv_heads, attention.head_size
        self.qkv = joint_product((attention.q_proj, attention.k_proj, attention.v_proj), dtype)
        self.out = module_product(attention.o_proj, dtype)
        self.before_attention, self.before_feed = block.input_layernorm, block.post_attention_layernorm
        self.q_norm, self.k_norm = attention.q_norm, attention.k_norm
        self.feed = feed_of(block.mlp, dtype)

    def __call__(self, x: Tensor, now: ForwardBatch, cache: KVCache, number: int) -> Tensor:
        """x [N, D] -> [N, D]; the keys and values of its tokens are added to the cache."""
        qkv = self._project(self.before_attention(x), now)
        cache.write(number, now.slots, now.cache_positions, qkv[:, self.heads :])
        mixed = []
        if now.num_decoding:
            mixed.append(
                self._continue(
                    qkv[: now.num_decoding, : self.heads], *cache.read(number, now.num_decoding, now.length), now.mask
                )
            )
        if now.prompts:
            mixed.append(self._begin(qkv[now.num_decoding :], now.prompts))
        x = self.out.plus(mixed[0] if len(mixed) == 1 else torch.cat(mixed), x)
        return self.feed(x, self.before_feed(x))

    def _project(self, normed: Tensor, now: ForwardBatch) -> Tensor:
        """Queries, keys and values [N, H + 2K, d], queries and keys rotated to their positions."""
        qkv = self.qkv(normed).view(normed.shape[0], -1, self.head_size)
        turned = qkv[:, : self.heads + self.kv_heads]
        if self.q_norm is not None and self.k_norm is not None:
            turned[:, : self.heads] = self.q_norm(turned[:, : self.heads])
            turned[:, self.heads :] = self.k_norm(turned[:, self.heads :])
        swapped = turned.roll(self.head_size // 2, -1)
        turned.mul_(now.cos).addcmul_(swapped, now.sin)
        return qkv

    def _continue(self, q: Tensor, keys: Tensor, values: Tensor, mask: Tensor) -> Tensor:
        """Attention of one token for each answer, q [n, H, d], to all of its sequence -> [n, H·d]. The heads that share
        a key are the rows of one product."""
        rows = q.shape[0]
        grouped = q.reshape(rows, self.kv_heads, self.heads // self.kv_heads, self.head_size)
        return F.scaled_dot_product_attention(grouped, keys, values, attn_mask=mask).reshape(rows, -1)

    def _begin(self, qkv: Tensor, lengths: list[int]) -> Tensor:
        """Causal attention inside each of the prompts, [N, H + 2K, d] -> [N, H·d]. They are padded on the right, where
        no token of a prompt looks."""
        if len(lengths) == 1:
            return self._causal(qkv[None])[0]
        real = torch.arange(max(lengths), device=qkv.device) < torch.tensor(lengths, device=qkv.device)[:, None]
        padded = qkv.new_zeros(*real.shape, *qkv.shape[1:])
        padded[real] = qkv
        return self._causal(padded)[real]

    def _causal(self, qkv: Tensor) -> Tensor:
        """[B, T, H + 2K, d] -> [B, T, H·d]."""
        q, k, v = qkv.transpose(1, 2).split((self.heads, self.kv_heads, self.kv_heads), dim=1)
        group = self.heads // self.kv_heads
        k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)  # PyTorch's own grouping is slower on a CPU
        return F.scaled_dot_product_attention(q, k, v, is_causal=True).transpose(1, 2).flatten(2)


class InferenceModel:
    """A decoder ready to generate. It reads the weights of the model as they are when it is made."""

    def __init__(self, model: Decoder) -> None:
        self.model, dtype = model, model.compute_dtype
        self.device, self.dtype = model.lm_head_weight.device, dtype
        embedding = model.embed_tokens
        table = embedding.weight.to(dtype) if type(embedding) is nn.Embedding else None
        self.embed = embedding if table is None else table.__getitem__
        self.head = product(model.lm_head_weight, dtype)
        self.layers = [InferenceLayer(block, dtype) for block in model.blocks()]

    def empty_cache(self, slots: int, longest: int) -> KVCache:
        """A cache for `slots` sequences of at most `longest` tokens."""
        first = self.layers[0]
        return KVCache(len(self.layers), slots, first.kv_heads, first.head_size, longest, self.dtype, self.device)

    def forward(
        self, cache: KVCache, tokens: Sequence[int], lengths: Sequence[int], prompts: Sequence[Sequence[int]]
    ) -> Tensor:
        """Logits [n + m, V] in float32 after the next token of the sequences in the first n slots, of which the cache
        holds `lengths` tokens, and after m new prompts, which get the slots that follow."""
        x, now = self._lay_out(cache, tokens, lengths, prompts)
        for number, layer in enumerate(self.layers):
            x = layer(x, now, cache, number)
        return self.head(self.model.norm(x if now.last is None else x[now.last])).float()

    def _lay_out(
        self, cache: KVCache, tokens: Sequence[int], lengths: Sequence[int], prompts: Sequence[Sequence[int]]
    ) -> tuple[Tensor, ForwardBatch]:
        going, sizes = len(tokens), [len(prompt) for prompt in prompts]
        filled = max(lengths, default=0) + 1
        cache.reserve(max(filled, *sizes, 0) if sizes else filled)
        rows = [list(tokens), list(range(going)), list(lengths)]
        last = list(range(going))
        for slot, prompt in enumerate(prompts, going):
            rows[0] += prompt
            rows[1] += [slot] * len(prompt)
            rows[2] += range(len(prompt))
            last.append(len(rows[0]) - 1)
        ids, slots, places = torch.tensor(rows).to(self.device)
        length = min(round_up(filled, READ_GRAIN), cache.capacity)
        seen = torch.arange(length, device=self.device) <= places[:going, None]
        x = self.embed(ids).to(self.dtype)
        mask = x.new_zeros(seen.shape).masked_fill_(~seen, float("-inf"))[:, None, None]
        cos, sin = (angle[0, 0, :, None] for angle in self.model.rope_cos_sin(places[None]))
        signed = torch.cat((-sin[..., : sin.shape[-1] // 2], sin[..., sin.shape[-1] // 2 :]), -1)
        chosen = torch.tensor(last, device=self.device) if prompts else None
        return x, ForwardBatch(slots, places, going, length, sizes, chosen, mask, cos, signed)
