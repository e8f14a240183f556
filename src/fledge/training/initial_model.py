"""The model of a run that starts from new weights."""

from collections.abc import Callable
from pathlib import Path

from fledge.model.decoder import Decoder
from fledge.model.new import new_model
from fledge.model.protocol import LanguageModel
from fledge.recipe.schema import Recipe
from fledge.tokenizer import Tokenizer


def initial_model(recipe: Recipe, tokenizer: Tokenizer, log: Callable[[str], None]) -> LanguageModel:
    """A model with the recipe's sizes, or of the architecture that `model.config` describes; weights from the recipe's seed."""
    if recipe.model.config is not None:
        return new_model(Path(recipe.model.config), tokenizer, recipe.seed, recipe.model.implementation, log)
    model = Decoder(recipe.model, tokenizer.vocab_size)
    model.init_weights(recipe.seed)
    return model
