"""fledge raises small language models, from raw text to a model that chats.

The Python API does what the commands do: `load` a model and `chat`, `generate`, `stream` or `score` with it; let a model of
`load_reward_model` judge answers; `train` a recipe and inspect the `Run`; build and check a `Recipe`. Every name is imported
when it is first used.
"""

from typing import TYPE_CHECKING

from fledge.lazy import lazy_names
from fledge.version import __version__

if TYPE_CHECKING:
    from fledge.api.model import Model, Score, load
    from fledge.api.run import Run, Sample
    from fledge.api.training import train
    from fledge.errors import FledgeError
    from fledge.generation import RewardModel, SamplingParams, load_reward_model
    from fledge.recipe import Recipe
    from fledge.tokenizer import Message, Tokenizer

_HOMES = {
    "fledge.api.model": ("Model", "Score", "load"),
    "fledge.api.run": ("Run", "Sample"),
    "fledge.api.training": ("train",),
    "fledge.errors": ("FledgeError",),
    "fledge.generation": ("RewardModel", "SamplingParams", "load_reward_model"),
    "fledge.recipe": ("Recipe",),
    "fledge.tokenizer": ("Message", "Tokenizer"),
}

__all__ = [
    "FledgeError",
    "Message",
    "Model",
    "Recipe",
    "RewardModel",
    "Run",
    "Sample",
    "SamplingParams",
    "Score",
    "Tokenizer",
    "__version__",
    "load",
    "load_reward_model",
    "train",
]

__getattr__, __dir__ = lazy_names(__name__, _HOMES)
