"""The adapter that a stage trains instead of the weights."""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from fledge.recipe.sections.base import ConfigModel, Fraction, Positive

ALL_LINEAR = "all-linear"
PositiveNumber = Annotated[float, Field(gt=0)]
ModuleName = Annotated[str, Field(min_length=1)]


LORA, PREFIX = "LORA", "PREFIX_TUNING"


class AdapterConfig(ConfigModel):
    """Low-rank adaptation (LoRA, Hu et al. 2021): the weights stay as they are, and each adapted matrix W gets a trained
    product of two thin ones, W + (lora_alpha ÷ r)·B·A. Or prefix tuning (Li & Liang 2021): trained keys and values before the
    first token of every document. The keys are those of PEFT's `LoraConfig` and `PrefixTuningConfig`."""

    peft_type: Literal["LORA", "PREFIX_TUNING"] = Field(
        default=LORA,
        description="LORA: low-rank matrices beside the weights; PREFIX_TUNING: keys and values before each document",
    )
    num_virtual_tokens: Positive = Field(default=20, description="keys and values of a prefix in each layer")
    r: Positive = Field(default=16, description="rank: rows of A and columns of B")
    lora_alpha: PositiveNumber = Field(default=32.0, description="the product is scaled by lora_alpha ÷ r")
    lora_dropout: Annotated[Fraction, Field(lt=1)] = Field(default=0.0, description="dropout of the input of A")
    target_modules: list[ModuleName] | ModuleName = Field(
        default=ALL_LINEAR,
        description="linear layers that are adapted: names such as q_proj, one regular expression for whole names, or "
        "all-linear: all of every block",
    )
    rank_pattern: dict[str, Positive] = Field(default={}, description="other ranks, by regular expression of module names")
    alpha_pattern: dict[str, PositiveNumber] = Field(
        default={}, description="other lora_alpha, by regular expression of module names"
    )
    use_rslora: bool = Field(default=False, description="scale by lora_alpha ÷ √r instead (Kalajdzievski 2023)")
    use_dora: bool = Field(
        default=False, description="train the length of each row of W + B·A by itself (DoRA, Liu et al. 2024)"
    )
    modules_to_save: Annotated[list[ModuleName], BeforeValidator(lambda value: value or [])] = Field(
        default=[], description="modules that are trained whole and saved with the adapter, such as embed_tokens"
    )

    @model_validator(mode="after")
    def _check_targets(self) -> "AdapterConfig":
        if not self.target_modules:
            raise ValueError("target_modules names no module: write all-linear, or names such as q_proj and v_proj")
        return self

    @model_validator(mode="after")
    def _check_kind(self) -> "AdapterConfig":
        prefix_only = ("num_virtual_tokens",)
        for name, field in type(self).model_fields.items():
            belongs = PREFIX if name in prefix_only else LORA
            if name != "peft_type" and belongs != self.peft_type and getattr(self, name) != field.default:
                raise ValueError(f"{name} belongs to peft_type: {belongs}, and this one is {self.peft_type}")
        return self
