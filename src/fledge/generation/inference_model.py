"""The form in which a language model generates, by its implementation."""

from collections.abc import Callable
from typing import Any

from fledge.generation.huggingface import TransformersInferenceModel
from fledge.generation.native import InferenceModel
from fledge.model.protocol import LanguageModel

INFERENCE_MODELS: dict[str, Callable[[Any], InferenceModel | TransformersInferenceModel]] = {
    "native": InferenceModel,
    "transformers": TransformersInferenceModel,
}


def inference_model(model: LanguageModel) -> InferenceModel | TransformersInferenceModel:
    """The model ready to generate, with its weights as they are now: `empty_cache(slots, max_length)` makes a cache, and
    `forward(cache, tokens, lengths, prompts)` gives the logits of the next tokens."""
    return INFERENCE_MODELS[model.implementation](model)
