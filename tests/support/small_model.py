"""A small decoder for tests that train it, and a model directory for tests that talk to it."""

from pathlib import Path

from fledge.model.decoder import Decoder
from fledge.recipe.schema import ModelConfig
from fledge.tokenizer import train_tokenizer
from tests.support.decoders import make_decoder

SIZES = ModelConfig(
    hidden_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=1,
    intermediate_size=32,
    qk_norm=True,
    tie_word_embeddings=False,
)


def model(vocabulary: int = 300) -> Decoder:
    """A decoder of two layers of width 16 with initial weights."""
    decoder = Decoder(SIZES, vocabulary)
    decoder.init_weights(0)
    return decoder


def write_model(folder: Path, positions: int = 100, seed: int = 0) -> Path:
    """A model of 100 positions with its tokenizer, written to a folder."""
    tokenizer = train_tokenizer(["A cat is an animal. What is a dog? Dogs are animals."] * 20, 300)
    decoder = make_decoder(seed, vocab=tokenizer.vocab_size, max_position_embeddings=positions)
    decoder.save_pretrained(folder, bos=None, eos=sorted(tokenizer.stop_ids), pad=tokenizer.pad)
    tokenizer.save(folder)
    return folder
