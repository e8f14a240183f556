"""Rotary positions (Su et al. 2021): the frequency of each pair of dimensions, and the scalings that make texts longer than
those of the training fit: linear (Chen et al. 2023), that of Llama 3.1, and YaRN (Peng et al. 2023)."""

import math
from collections.abc import Callable

import torch
from torch import Tensor

from fledge.recipe.schema import ModelConfig, RopeScaling


def rope_frequencies(config: ModelConfig) -> Tensor:
    """Radians per position of the d/2 pairs of dimensions of a head, float32."""
    plain = plain_frequencies(config.rope_theta, config.head_size)
    scaling = config.rope_scaling
    return (plain if scaling is None else SCALINGS[scaling.rope_type](plain, config.rope_theta, scaling)).float()


def rope_magnitude(config: ModelConfig) -> float:
    """The number that cosine and sine are multiplied by: 1 except with YaRN (Peng et al. 2023, eq. 22)."""
    scaling = config.rope_scaling
    if scaling is None or scaling.rope_type != "yarn":
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        own, all_dim = scaling.mscale, scaling.mscale_all_dim
        return yarn_attention_factor(scaling.factor, own) / yarn_attention_factor(scaling.factor, all_dim)
    return yarn_attention_factor(scaling.factor)


def plain_frequencies(theta: float, size: int) -> Tensor:
    """Radians per position of the pairs of dimensions of a head without scaling, [size ÷ 2], float64."""
    return theta ** -(torch.arange(0, size, 2, dtype=torch.float64) / size)


def yarn_attention_factor(factor: float, scale: float = 1.0) -> float:
    """What YaRN multiplies cosine and sine by where a model does not say (Peng et al. 2023, eq. 22)."""
    return 1.0 if factor <= 1 else 0.1 * scale * math.log(factor) + 1.0


def _linear(plain: Tensor, theta: float, scaling: RopeScaling) -> Tensor:
    """All frequencies divided by the factor."""
    return plain / scaling.factor


def _llama3(plain: Tensor, theta: float, scaling: RopeScaling) -> Tensor:
    """Frequencies that turn at least `high_freq_factor` times in the original length stay, those that turn less than
    `low_freq_factor` times are divided by the factor, and those between are mixtures of both."""
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    assert low is not None and high is not None and scaling.original_max_position_embeddings is not None  # the schema
    turns = plain * scaling.original_max_position_embeddings / (2 * math.pi)
    kept = ((turns - low) / (high - low)).clamp(0, 1)
    return kept * plain + (1 - kept) * plain / scaling.factor


def _yarn(plain: Tensor, theta: float, scaling: RopeScaling) -> Tensor:
    """As `_llama3`, with a mixture that is linear in the index of the pair: from the pair that turns `beta_fast` times in the
    original length to the pair that turns `beta_slow` times."""
    length, size = scaling.original_max_position_embeddings, 2 * len(plain)
    assert length is not None  # the schema

    def pair(turns: float) -> float:
        return size * math.log(length / (turns * 2 * math.pi)) / (2 * math.log(theta))

    first, last = pair(scaling.beta_fast or 32.0), pair(scaling.beta_slow or 1.0)
    if scaling.truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, size - 1)
    last += 0.001 if first == last else 0.0
    divided = ((torch.arange(len(plain), dtype=torch.float64) - first) / (last - first)).clamp(0, 1)
    return (1 - divided) * plain + divided * plain / scaling.factor


SCALINGS: dict[str, Callable[[Tensor, float, RopeScaling], Tensor]] = {"linear": _linear, "llama3": _llama3, "yarn": _yarn}
