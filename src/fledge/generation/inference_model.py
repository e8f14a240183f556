"""The form in which a language model generates, by its implementation."""

from collections.abc import Callable
from typing import Any

from fledge.generation.encoder_decoder import EncoderDecoderInferenceModel
from fledge.generation.huggingface import TransformersInferenceModel
from fledge.generation.native import InferenceModel
from fledge.model.protocol import LanguageModel

AnyInferenceModel = InferenceModel | TransformersInferenceModel | EncoderDecoderInferenceModel

INFERENCE_MODELS: dict[str, Callable[[Any], AnyInferenceModel]] = {
    "native": InferenceModel,
    "transformers": TransformersInferenceModel,
    "encoder-decoder": EncoderDecoderInferenceModel,
}


def inference_model(model: LanguageModel) -> AnyInferenceModel:
    """The model ready to generate, with its weights as they are now: `empty_cache(slots, max_length)` makes a cache, and
    `forward(cache, tokens, lengths, prompts)` gives the logits of the next tokens."""
    return INFERENCE_MODELS[model.implementation](model)
