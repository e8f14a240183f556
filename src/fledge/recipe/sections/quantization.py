"""The form in which a stage with an adapter keeps the weights that it does not train."""

from typing import Literal

from pydantic import Field

from fledge.recipe.sections.base import ConfigModel


class QuantizationConfig(ConfigModel):
    """Frozen weights in 4 bits (QLoRA, Dettmers et al. 2023): each block of 64 weights has a scale of its own, and 16 levels.
    The settings are those of the library bitsandbytes, whose names begin with `bnb_4bit_`."""

    quant_type: Literal["nf4", "fp4"] = Field(
        default="nf4", description="the 16 levels; nf4: quantiles of a normal distribution, fp4: floating-point numbers"
    )
    use_double_quant: bool = Field(default=True, description="the scales are quantized too, to 8 bits")
