"""The architectures of llama.cpp that fledge writes and reads, and the order of rows in their tensors."""

from dataclasses import dataclass

from torch import Tensor

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
FREQUENCY_FACTORS = "rope_freqs.weight"  # what the frequencies of the rotary embedding are divided by


@dataclass(frozen=True)
class GgufArchitecture:
    """An architecture of llama.cpp. `interleaved`: it rotates neighbouring dimensions of a head, where transformers rotates
    dimension i with i + half, so that the rows of query and key matrices change places. `norm_topk_prob`: whether it
    normalises the weights of a token's experts; None: it has none. `needs_head`: llama.cpp wants a head of its own in the
    file, also where it is the embedding."""

    name: str
    interleaved: bool = False
    norm_topk_prob: bool | None = None
    needs_head: bool = False


ARCHITECTURES = {
    "LlamaForCausalLM": GgufArchitecture("llama", interleaved=True),
    "MistralForCausalLM": GgufArchitecture("llama", interleaved=True),
    "Qwen2ForCausalLM": GgufArchitecture("qwen2"),
    "Qwen3ForCausalLM": GgufArchitecture("qwen3"),
    "Qwen3MoeForCausalLM": GgufArchitecture("qwen3moe", norm_topk_prob=True),
    "Qwen2MoeForCausalLM": GgufArchitecture("qwen2moe", norm_topk_prob=False, needs_head=True),
}
"""By the names of transformers."""


def rotated_heads(file_name: str, architecture: GgufArchitecture, heads: int, kv_heads: int) -> int:
    """The heads of a matrix or bias of queries or keys whose rows change places; 0 for other tensors.

    `file_name`: the name of the tensor in Hugging Face's files."""
    if not architecture.interleaved:
        return 0
    owner = file_name.split(".")[-2]
    return {"q_proj": heads, "k_proj": kv_heads}.get(owner, 0)


def interleave(tensor: Tensor, heads: int) -> Tensor:
    """The rows of each head from transformers' order into that of llama.cpp's `interleaved` architectures."""
    rows = tensor.reshape(heads, 2, -1, *tensor.shape[1:])
    return rows.transpose(1, 2).reshape(tensor.shape)


def undo_interleave(tensor: Tensor, heads: int) -> Tensor:
    """The inverse of `interleave`."""
    rows = tensor.reshape(heads, -1, 2, *tensor.shape[1:])
    return rows.transpose(1, 2).reshape(tensor.shape)
