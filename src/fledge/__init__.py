"""fledge raises small language models, from raw text to a model that chats.

The Python API does what the commands do: `load` a model and `chat`, `generate`, `stream` or `score` with it; `train` a recipe
and inspect the `Run`; build and check a `Recipe`. Every name is imported when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fledge.version import __version__

if TYPE_CHECKING:
    from fledge.api.model import Model, Score, load
    from fledge.api.run import Run, Sample
    from fledge.api.training import train
    from fledge.errors import FledgeError
    from fledge.generation import SamplingParams
    from fledge.recipe import Recipe
    from fledge.tokenizer import Message, Tokenizer

_HOMES = {
    "FledgeError": "fledge.errors", "Message": "fledge.tokenizer", "Model": "fledge.api.model", "Recipe": "fledge.recipe",
    "Run": "fledge.api.run", "Sample": "fledge.api.run", "SamplingParams": "fledge.generation", "Score": "fledge.api.model",
    "Tokenizer": "fledge.tokenizer", "load": "fledge.api.model", "train": "fledge.api.training",
}  # fmt: skip

__all__ = [
    "FledgeError",
    "Message",
    "Model",
    "Recipe",
    "Run",
    "Sample",
    "SamplingParams",
    "Score",
    "Tokenizer",
    "__version__",
    "load",
    "train",
]


def __getattr__(name: str) -> Any:
    """A public name, loaded from its module when it is first used."""
    if name not in _HOMES:
        raise AttributeError(f"module 'fledge' has no attribute '{name}'")
    value = getattr(import_module(_HOMES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names."""
    return sorted({*globals(), *__all__})
