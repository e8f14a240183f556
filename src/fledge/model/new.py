"""New weights of an architecture that a config.json describes."""

from collections.abc import Callable
from pathlib import Path

import torch

from fledge.model.decoder import Decoder
from fledge.model.encoder_decoder import new_encoder_decoder
from fledge.model.hf_config import read_config
from fledge.model.huggingface_loading import new_model as new_transformers_model
from fledge.model.loading import choose_implementation
from fledge.model.protocol import LanguageModel
from fledge.run.console import Log
from fledge.tokenizer import Tokenizer


def _new_native(folder: Path, tokenizer: Tokenizer, seed: int) -> LanguageModel:
    config, _ = read_config(folder)
    model = Decoder(config, tokenizer.vocab_size)
    model.init_weights(seed)
    return model


def _new_transformers(folder: Path, tokenizer: Tokenizer, seed: int) -> LanguageModel:
    torch.manual_seed(seed)
    return new_transformers_model(folder, changes={"vocab_size": tokenizer.vocab_size, "pad_token_id": tokenizer.pad})


def _new_encoder_decoder(folder: Path, tokenizer: Tokenizer, seed: int) -> LanguageModel:
    torch.manual_seed(seed)
    special = {"pad_token_id": tokenizer.pad, "decoder_start_token_id": tokenizer.decoder_start}
    return new_encoder_decoder(folder, {"vocab_size": tokenizer.vocab_size, "eos_token_id": tokenizer.eos_id, **special})


NEW_MODELS: dict[str, Callable[[Path, Tokenizer, int], LanguageModel]] = {
    "native": _new_native,
    "transformers": _new_transformers,
    "encoder-decoder": _new_encoder_decoder,
}


def new_model(folder: Path, tokenizer: Tokenizer, seed: int, implementation: str, log: Log) -> LanguageModel:
    """A model of the architecture and the sizes in a folder's config.json, with a row for each token of the tokenizer, the
    tokenizer's special tokens, and float32 weights that are a function of the seed. FledgeError as `describe_model`."""
    with torch.random.fork_rng(devices=[]):
        return NEW_MODELS[choose_implementation(folder, implementation, log)](folder, tokenizer, seed)
