"""Tiny models of transformers, written to directories by the library itself or by a native decoder."""

from pathlib import Path
from typing import Any

import torch
import transformers

from fledge.model.decoder import Decoder
from fledge.model.huggingface import TransformersModel
from fledge.model.huggingface_loading import from_pretrained
from tests.support.decoders import VOCAB, make_decoder, scatter_norms

SIZES: dict[str, Any] = {
    "vocab_size": VOCAB, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 48, "max_position_embeddings": 64, "initializer_range": 0.2,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("Llama", {"mlp_bias": True, "head_dim": 16}),
    "smollm3": ("SmolLM3", {"no_rope_layers": [1, 0]}),
    "mistral": ("Mistral", {"sliding_window": 4}),
    "gemma3": ("Gemma3", {"head_dim": 8, "sliding_window": 4}),
    "gpt2": ("GPT2", {"n_positions": 64, "num_key_value_heads": 4}),
    "mixtral": ("Mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
}
CLASSES = {"Gemma3": ("Gemma3TextConfig", "Gemma3ForCausalLM"), "GPT2": ("GPT2Config", "GPT2LMHeadModel")}


def write_model(folder: Path, architecture: str, **sizes: Any) -> Any:
    """A model of the library with random weights, saved to a folder; the model itself, in evaluation mode."""
    config, model = CLASSES.get(architecture, (f"{architecture}Config", f"{architecture}ForCausalLM"))
    torch.manual_seed(0)
    instance = getattr(transformers, model)(getattr(transformers, config)(**{**SIZES, **sizes}))
    scatter_norms(instance)
    instance.save_pretrained(folder)
    return instance.eval()


def write_classifier(folder: Path, architecture: str, labels: int = 1, **sizes: Any) -> Any:
    """A classifier of texts of the library with random weights, saved to a folder; the model itself, in evaluation mode."""
    torch.manual_seed(0)
    config = getattr(transformers, f"{architecture}Config")(**{**SIZES, **sizes, "num_labels": labels})
    instance = getattr(transformers, f"{architecture}ForSequenceClassification")(config)
    scatter_norms(instance)
    instance.save_pretrained(folder)
    return instance.eval()


def write_kind(folder: Path, kind: str) -> Any:
    """One of `KINDS`, saved to a folder."""
    architecture, sizes = KINDS[kind]
    return write_model(folder, architecture, **sizes)


def both(folder: Path, **changes: Any) -> tuple[Decoder, TransformersModel]:
    """A native decoder, and a model of transformers with equal weights."""
    native = make_decoder(**changes)
    native.save_pretrained(folder, bos=1, eos=[2], pad=0)
    return native, from_pretrained(folder).eval()


def native_name(name: str) -> str:
    """The decoder's name of a parameter of a Llama or Qwen3 of transformers."""
    return name.removeprefix("causal_lm.").removeprefix("model.")
