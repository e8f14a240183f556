"""The rotary positions of a GGUF file in the names of config.json, and back."""

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from fledge.model.gguf.architectures import FREQUENCY_FACTORS
from fledge.model.gguf.header import GgufHeader
from fledge.model.rope import SCALINGS, plain_frequencies, yarn_attention_factor
from fledge.recipe.schema import RopeScaling
from fledge.recipe.sections.model import SCALING_KEYS

if TYPE_CHECKING:
    from fledge.model.gguf.config import Sizes

TOLERANCE = 1e-4  # of factors of frequencies, relative
LONG_FACTORS = ("rope_factors_long.weight", "rope_factors_short.weight")


def rope_settings(sizes: "Sizes", head: int, positions: int) -> dict[str, Any]:
    """`rope_parameters` of config.json. Raises FledgeError for scalings that fledge does not compute."""
    header = sizes.header
    theta = {"rope_theta": sizes.real("rope.freq_base", 10_000.0)}
    kind = str(sizes.get("rope.scaling.type", "linear" if sizes.has("rope.scale_linear") else "none"))
    factors = header.tensors.get(FREQUENCY_FACTORS)
    if any(name in header.tensors for name in LONG_FACTORS) or kind not in ("none", "linear", "yarn"):
        raise sizes.error(f"fledge does not compute rotary positions scaled by {kind if kind != 'none' else LONG_FACTORS[0]}")
    if factors is not None:
        if kind != "none":
            raise sizes.error(f"rotary positions are scaled twice: by {FREQUENCY_FACTORS} and by {kind}")
        return {**_llama3(sizes, factors_of(header), theta["rope_theta"], head, positions), **theta}
    if kind == "none":
        return {"rope_type": "default", **theta}
    factor = sizes.real("rope.scaling.factor", sizes.real("rope.scale_linear", 0.0) or None)
    if kind == "linear":
        return {"rope_type": "linear", "factor": factor, **theta} if factor != 1 else {"rope_type": "default", **theta}
    return {**_yarn(sizes, factor, positions), **theta}


def _yarn(sizes: "Sizes", factor: float, positions: int) -> dict[str, Any]:
    """llama.cpp multiplies the attention factor of YaRN, 0.1 · ln(factor) + 1, by that of the file."""
    if sizes.real("rope.scaling.yarn_ext_factor", 1.0) not in (1.0, -1.0):
        raise sizes.error(f"fledge does not compute {sizes.prefix}rope.scaling.yarn_ext_factor other than 1")
    yarn: dict[str, Any] = {"rope_type": "yarn", "factor": factor}
    yarn["original_max_position_embeddings"] = sizes.whole("rope.scaling.original_context_length", positions)
    extra = sizes.real("rope.scaling.attn_factor", 1.0) * sizes.real("rope.scaling.yarn_attn_factor", 1.0)
    if extra != 1:
        yarn["attention_factor"] = float(f"{extra * yarn_attention_factor(factor):.6g}")  # it is stored in 32 bits
    for name in ("beta_fast", "beta_slow"):
        if sizes.has(f"rope.scaling.yarn_{name}"):
            yarn[name] = sizes.real(f"rope.scaling.yarn_{name}")
    return yarn


# -- the scaling of Llama 3 ---------------------------------------------------------------------------------------------


def factors_of(header: GgufHeader) -> np.ndarray:
    """What the frequencies are divided by, [head size ÷ 2], in float64."""
    tensor = header.tensors[FREQUENCY_FACTORS]
    with header.file.open("rb") as file:
        file.seek(tensor.start)
        return np.frombuffer(file.read(tensor.size), np.float32 if tensor.type_name == "F32" else np.float16).astype(np.float64)


def llama3_factors(rope: Mapping[str, Any], theta: float, head: int) -> np.ndarray:
    """What llama.cpp divides the frequencies by, [head size ÷ 2], for the scaling of Llama 3."""
    plain = plain_frequencies(theta, head)
    scaling = RopeScaling(**{name: rope[name] for name in ("rope_type", "factor", *SCALING_KEYS["llama3"])})
    return (plain / SCALINGS["llama3"](plain, theta, scaling)).float().numpy()


def _llama3(sizes: "Sizes", factors: np.ndarray, theta: float, head: int, positions: int) -> dict[str, Any]:
    """The settings of Llama 3's scaling that give these factors.

    Between the two bounds the share of a frequency that is kept is linear in the frequency: slope and height of this line say
    everything. One of the three numbers may be chosen, because equal multiples of all give the same factors: the original
    length, as Llama 3.1 has it if the others are then round.
    """
    wrong = sizes.error(f"{FREQUENCY_FACTORS} is not the scaling of Llama 3, and fledge computes no other factors")
    if factors.shape != (head // 2,) or not np.isfinite(factors).all() or factors.min() < 1 - TOLERANCE:
        raise wrong
    factor = float(str(np.float32(factors.max())))
    if factor <= 1 + TOLERANCE:
        return {"rope_type": "default"}
    plain = plain_frequencies(theta, head).numpy()
    kept = (1 / factors - 1 / factor) / (1 - 1 / factor)
    between = (kept > TOLERANCE) & (kept < 1 - TOLERANCE)
    said = sizes.header.settings.get(f"{sizes.prefix}rope.scaling.original_context_length")
    for low, high, original in _llama3_candidates(plain[between], kept[between], said, positions):
        rope = {
            "rope_type": "llama3",
            "factor": factor,
            "low_freq_factor": low,
            "high_freq_factor": high,
            "original_max_position_embeddings": original,
        }
        if low > 0 and high > low and np.allclose(llama3_factors(rope, theta, head), factors, rtol=TOLERANCE, atol=0):
            return rope
    raise wrong


def _llama3_candidates(plain: np.ndarray, kept: np.ndarray, said: Any, positions: int) -> list[tuple[float, float, int]]:
    """Possible low and high factors with original lengths, the likeliest first."""
    originals = [said] if isinstance(said, int) and said > 0 else [8192, *(2**power for power in range(3, 21)), positions]
    candidates = [(1.0, 4.0, original) for original in originals]
    if len(plain) < 2:
        return candidates
    slope, height = np.polyfit(plain, kept, 1)
    if height < 0 < slope:  # a low factor of 1, as Llama 3.1 has it
        originals.insert(0, max(1, round(2 * math.pi * slope / -height)))
    for original in originals:
        width = original / (2 * math.pi * slope)
        low, high = float(-height * width), float((1 - height) * width)
        candidates += [(round(low, 3), round(high, 3), original), (low, high, original)]
    return candidates
