"""A small decoder for tests that train it."""

from fledge.model.decoder import Decoder
from fledge.recipe.schema import ModelConfig

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
