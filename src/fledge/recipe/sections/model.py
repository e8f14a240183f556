"""The tokenizer and the sizes of the model."""

import datetime
from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, model_validator

from fledge.recipe.sections.base import ConfigModel, Fraction, PathText, Positive

TokenText = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^\S(.*\S)?$")]


def _as_list(value: object) -> object:
    return [value] if isinstance(value, str) else value


class TokenizerConfig(ConfigModel):
    """Train a byte-level BPE tokenizer on the training text of all stages, or load a directory or tokenizer.json from
    `path`."""

    path: PathText | None = None
    vocab_size: Annotated[int, Field(ge=300, le=1_000_000)] = 6400
    template: Literal["auto", "chatml", "inst", "tokenizer"] = Field(
        default="auto", description="chat template: the tokenizer's own if it has one, else ChatML"
    )
    template_date: datetime.date | None = Field(
        default=None,
        description="the date that a chat template with strftime_now writes, such as 2025-01-31; null: the day on which the "
        "data is built, which is saved with the tokenizer",
    )
    special_tokens: Annotated[list[TokenText], BeforeValidator(_as_list)] = Field(
        default=[], description="texts that are one token each wherever they are written, such as <think>; added if missing"
    )

    @model_validator(mode="after")
    def _check_special_tokens(self) -> "TokenizerConfig":
        repeated = next((text for text in self.special_tokens if self.special_tokens.count(text) > 1), None)
        if repeated is not None:
            raise ValueError(f"special_tokens names {repeated} twice")
        return self


class MoeConfig(ConfigModel):
    """Mixture of experts: the feed-forward network of each block is replaced by `num_experts` networks, of which
    `num_experts_per_tok` are active per token.

    Shared experts are active for every token; together they are one network of width `num_shared_experts` ×
    `intermediate_size`.
    """

    num_experts: Positive
    num_experts_per_tok: Positive
    num_shared_experts: Annotated[int, Field(ge=0)] = 0
    norm_topk_prob: bool = Field(default=True, description="normalise the weights of a token's experts to sum to 1")
    load_balancing: Literal["aux_loss", "bias"] = Field(
        default="aux_loss",
        description="balance the load of the experts by an auxiliary loss, or by a bias on the expert choice without a loss",
    )
    router_aux_loss_coef: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.01, description="weight of the load-balancing loss (Fedus et al. 2022); used with load_balancing: aux_loss"
    )
    router_z_loss_coef: Annotated[float, Field(ge=0, le=1)] = Field(
        default=0.001, description="weight of the squared log-sum-exp of the router's logits (Zoph et al. 2022)"
    )
    bias_update_rate: Annotated[float, Field(gt=0, le=1)] = Field(
        default=0.001, description="change of the biases after each update (Wang et al. 2024); used with load_balancing: bias"
    )

    @model_validator(mode="after")
    def _check_consistent(self) -> "MoeConfig":
        if self.num_experts_per_tok > self.num_experts:
            raise ValueError(f"num_experts_per_tok {self.num_experts_per_tok} is more than the {self.num_experts} experts")
        if self.num_experts_per_tok == 1 and self.num_experts > 1 and self.norm_topk_prob:
            raise ValueError(
                "num_experts_per_tok 1 needs norm_topk_prob: false; otherwise every weight is 1 and the router cannot learn"
            )
        unused = "bias_update_rate" if self.load_balancing == "aux_loss" else "router_aux_loss_coef"
        if getattr(self, unused) != type(self).model_fields[unused].default:
            raise ValueError(f"{unused} has no effect with load_balancing: {self.load_balancing}; leave it out")
        return self


class ModelConfig(ConfigModel):
    """The decoder's sizes, or a model directory to start from (`path`), whose own sizes are used then."""

    path: PathText | None = None
    implementation: Literal["auto", "native", "transformers"] = Field(
        default="auto",
        description="implementation of the model in `path`: fledge's native decoder or the library transformers (extra `hf`); "
        "auto: the native decoder if it supports the architecture, else transformers",
    )
    hidden_size: Positive = 512
    num_hidden_layers: Positive = 8
    num_attention_heads: Positive = 8
    num_key_value_heads: Positive = 2
    intermediate_size: Positive = 1408
    max_position_embeddings: Positive = 512
    rope_theta: Annotated[float, Field(gt=0)] = 10_000.0
    rms_norm_eps: Annotated[float, Field(gt=0)] = 1e-6
    qk_norm: bool = False
    tie_word_embeddings: bool = True
    dropout: Fraction = 0.0
    initializer_range: Annotated[float, Field(gt=0)] = 0.02
    moe: MoeConfig | None = None

    @model_validator(mode="after")
    def _check_implementation(self) -> "ModelConfig":
        if self.implementation == "transformers" and self.path is None:
            raise ValueError("implementation: transformers needs path, a model directory to start from")
        return self

    @model_validator(mode="after")
    def _check_heads(self) -> "ModelConfig":
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        if (self.hidden_size // self.num_attention_heads) % 2:
            raise ValueError("hidden_size / num_attention_heads must be even: RoPE rotates pairs of dimensions")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        return self

    @model_validator(mode="after")
    def _check_moe_layout(self) -> "ModelConfig":
        """A mixture of experts is saved as one of two architectures of transformers, which fix `qk_norm`."""
        if self.moe is not None and self.moe.num_shared_experts == 0 and not self.qk_norm:
            raise ValueError(
                "a mixture without shared experts is saved as Qwen3-MoE, which normalises queries and keys: set qk_norm: true"
            )
        if self.moe is not None and self.moe.num_shared_experts and self.qk_norm:
            raise ValueError(
                "a mixture with shared experts is saved as Qwen2-MoE, which does not normalise queries and keys: "
                "set qk_norm: false"
            )
        return self
