"""Tiny encoder–decoders of transformers, and sequences of source, start token and answer."""

import json
from pathlib import Path
from typing import Any

import torch
import transformers

from fledge.data import PackedDataset
from tests.support.packed import Sequence, pack

VOCAB, START, END = 60, 0, 1
SIZES: dict[str, Any] = {
    "vocab_size": VOCAB, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 4,
    "pad_token_id": START, "eos_token_id": END, "decoder_start_token_id": START, "dropout_rate": 0.1,
}  # fmt: skip
FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "t5 tied": ("T5", {"feed_forward_proj": "relu"}),
    "t5 untied": ("T5", {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}),
    "mt5": ("MT5", {}),
    "umt5": ("UMT5", {}),
}


def write_encoder_decoder(folder: Path, family: str = "t5 tied", **sizes: Any) -> Any:
    """A model of the library with random weights, saved to a folder; the model itself, in evaluation mode."""
    name, more = FAMILIES[family]
    torch.manual_seed(0)
    config = getattr(transformers, f"{name}Config")(**{**SIZES, **more, **sizes})
    model = getattr(transformers, f"{name}ForConditionalGeneration")(config)
    if more.get("tie_word_embeddings") is False:
        model.lm_head.weight = torch.nn.Parameter(torch.randn(config.vocab_size, config.d_model))
    model.save_pretrained(folder)
    return model.eval()


def write_config(folder: Path, **sizes: Any) -> Path:
    """A folder with the config.json of a T5, without weights."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {**SIZES, "model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True, **sizes}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def random_answers(sizes: list[tuple[int, int]], seed: int = 0) -> list[tuple[list[int], list[int]]]:
    """(source, answer) of these lengths, each with an end token behind it."""
    generator = torch.Generator().manual_seed(seed)

    def text(length: int) -> list[int]:
        return [*torch.randint(2, VOCAB, (length,), generator=generator).tolist(), END]

    return [(text(source), text(answer)) for source, answer in sizes]


def sequence(source: list[int], answer: list[int]) -> Sequence:
    """A source and its answer as one sequence, with weight on the answer."""
    tokens = torch.tensor([*source, START, *answer])
    return Sequence(tokens, (torch.arange(len(tokens)) > len(source)).float())


def pack_answers(pairs: list[tuple[list[int], list[int]]], packed_length: int = 48, seed: int = 1) -> PackedDataset:
    """Sources with their answers as packed data."""
    return pack([sequence(*pair) for pair in pairs], packed_length, seed=seed)
