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
    template: Literal["auto", "chatml", "inst", "seq2seq", "tokenizer"] = Field(
        default="auto",
        description="chat template: the tokenizer's own if it has one, else ChatML; seq2seq for an encoder–decoder model",
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


SCALING_KEYS: dict[str, dict[str, bool]] = {
    "linear": {},
    "llama3": {"original_max_position_embeddings": True, "low_freq_factor": True, "high_freq_factor": True},
    "yarn": {
        "original_max_position_embeddings": True,
        **dict.fromkeys(("attention_factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "truncate"), False),
    },
}
"""The keys of each kind of scaling besides `factor`, and whether they are required."""
AtLeastZero = Annotated[float, Field(ge=0)]
AboveZero = Annotated[float, Field(gt=0)]


class RopeScaling(ConfigModel):
    """Rotary positions stretched by `factor`, so that texts longer than `original_max_position_embeddings` have angles that the
    model knows from training. Names and meanings are those of `rope_scaling` in config.json."""

    rope_type: Literal["linear", "llama3", "yarn"]
    factor: AboveZero
    original_max_position_embeddings: Positive | None = Field(
        default=None, description="longest sequence of the training before positions were scaled"
    )
    low_freq_factor: AboveZero | None = Field(
        default=None, description="dimensions that turn less often in the original length are scaled in full"
    )
    high_freq_factor: AboveZero | None = Field(
        default=None, description="dimensions that turn more often in the original length are not scaled"
    )
    attention_factor: AboveZero | None = Field(
        default=None, description="factor of cosine and sine; null: 0.1 · ln(factor) + 1"
    )
    beta_fast: AboveZero | None = Field(default=None, description="as high_freq_factor; null: 32")
    beta_slow: AboveZero | None = Field(default=None, description="as low_freq_factor; null: 1")
    mscale: AtLeastZero | None = Field(
        default=None,
        description="with mscale_all_dim: attention_factor is the quotient of both 0.1 · scale · ln(factor) + 1",
    )
    mscale_all_dim: AtLeastZero | None = None
    truncate: bool = Field(default=True, description="the bounds of the scaled dimensions are rounded to whole pairs")

    @model_validator(mode="after")
    def _check_keys(self) -> "RopeScaling":
        keys = SCALING_KEYS[self.rope_type]
        for name, field in type(self).model_fields.items():
            given = getattr(self, name) != field.default
            if name not in ("rope_type", "factor", *keys) and given:
                raise ValueError(f"{name} has no effect with rope_type: {self.rope_type}; leave it out")
            if keys.get(name) and not given:
                raise ValueError(f"rope_type: {self.rope_type} needs {name}")
        low, high = self.low_freq_factor, self.high_freq_factor
        if low is not None and high is not None and high <= low:
            raise ValueError(f"high_freq_factor {high} is not more than low_freq_factor {low}")
        return self


class ModelConfig(ConfigModel):
    """The decoder's sizes; or a model to start from (`path`), or the architecture of new weights (`config`), whose sizes are
    used then."""

    path: PathText | None = Field(
        default=None, description="model directory, GGUF file, or hub:owner/name, which is downloaded from the Hugging Face hub"
    )
    revision: Annotated[str, Field(min_length=1, pattern=r"^\w[\w./-]*$")] | None = Field(
        default=None, description="with a path of the hub: branch, tag or commit; null: the main branch"
    )
    config: PathText | None = Field(
        default=None,
        description="folder with a config.json of transformers: new weights of this architecture and these sizes, drawn from "
        "the seed; vocabulary and special tokens are those of the tokenizer",
    )
    implementation: Literal["auto", "native", "transformers"] = Field(
        default="auto",
        description="implementation of the model in `path` or `config`: fledge's native decoder or the library transformers "
        "(extra `hf`); auto: the native decoder if it supports the architecture, else transformers",
    )
    hidden_size: Positive = 512
    num_hidden_layers: Positive = 8
    num_attention_heads: Positive = 8
    num_key_value_heads: Positive = 2
    head_dim: Positive | None = Field(default=None, description="size of a head; null: hidden_size / num_attention_heads")
    attention_bias: Literal["none", "qkv", "qkvo"] = Field(
        default="none", description="which projections of attention add a bias: those of queries, keys and values, or o as well"
    )
    intermediate_size: Positive = 1408
    max_position_embeddings: Positive = 512
    rope_theta: Annotated[float, Field(gt=0)] = 10_000.0
    rope_scaling: RopeScaling | None = None
    rms_norm_eps: Annotated[float, Field(gt=0)] = 1e-6
    qk_norm: bool = False
    tie_word_embeddings: bool = True
    dropout: Fraction = 0.0
    initializer_range: Annotated[float, Field(gt=0)] = 0.02
    moe: MoeConfig | None = None

    @model_validator(mode="after")
    def _check_revision(self) -> "ModelConfig":
        if self.revision is not None and not (self.path or "").startswith("hub:"):
            raise ValueError("revision is of a model of the hub, which is written path: hub:owner/name")
        return self

    @model_validator(mode="after")
    def _check_implementation(self) -> "ModelConfig":
        if self.path is not None and self.config is not None:
            raise ValueError("path and config both give the model: leave one of them out")
        if self.implementation == "transformers" and self.path is None and self.config is None:
            raise ValueError(
                "implementation: transformers needs path, a model directory to start from, or config, the architecture of new "
                "weights"
            )
        return self

    @model_validator(mode="after")
    def _check_heads(self) -> "ModelConfig":
        if self.head_dim is None and self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"hidden_size {self.hidden_size} is not a multiple of num_attention_heads {self.num_attention_heads}"
            )
        if self.head_size % 2:
            name = "hidden_size / num_attention_heads" if self.head_dim is None else "head_dim"
            raise ValueError(f"{name} must be even: RoPE rotates pairs of dimensions")
        if self.num_attention_heads % self.num_key_value_heads:
            raise ValueError(
                f"num_attention_heads {self.num_attention_heads} is not a multiple of "
                f"num_key_value_heads {self.num_key_value_heads}"
            )
        return self

    @property
    def head_size(self) -> int:
        """Dimensions of a head of attention."""
        return self.head_dim or self.hidden_size // self.num_attention_heads

    @property
    def attention_size(self) -> int:
        """Dimensions of all query heads together."""
        return self.num_attention_heads * self.head_size

    @model_validator(mode="after")
    def _check_rope(self) -> "ModelConfig":
        if self.rope_scaling is not None and self.rope_scaling.rope_type == "yarn" and self.rope_theta <= 1:
            raise ValueError(f"rope_theta {self.rope_theta} is not more than 1, which rope_type: yarn needs")
        return self

    @model_validator(mode="after")
    def _check_bias_layout(self) -> "ModelConfig":
        """A model is saved as one of the architectures of transformers."""
        shared = self.moe is not None and self.moe.num_shared_experts > 0
        if self.attention_bias == "qkv" and (self.qk_norm or (self.moe is not None and not shared)):
            raise ValueError("no architecture of transformers has qk_norm with attention_bias: qkv; set it to none or qkvo")
        if self.attention_bias == "qkvo" and shared:
            raise ValueError(
                "a mixture with shared experts is saved as Qwen2-MoE, which has no bias on o: set attention_bias to none or qkv"
            )
        if shared and self.attention_size != self.hidden_size:
            raise ValueError(
                "a mixture with shared experts is saved as Qwen2-MoE, whose heads have hidden_size / num_attention_heads "
                "dimensions: leave head_dim out"
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
