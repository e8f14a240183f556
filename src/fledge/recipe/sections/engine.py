"""How a stage computes and learns: machine, batch, optimizer, schedule, averaging."""

from collections.abc import Callable
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, field_validator, model_validator

from fledge.errors import FledgeError
from fledge.recipe.sections.base import ConfigModel, Percent, Positive, Share, word_or_number
from fledge.recipe.units import memory_size, steps_or_share
from fledge.recipe.units import share as as_share

Blocks = Annotated[
    Annotated[Literal["none", "full"], Tag("word")] | Annotated[Positive, Tag("number")], Discriminator(word_or_number)
]
Rows = Annotated[Annotated[Literal["auto"], Tag("word")] | Annotated[Positive, Tag("number")], Discriminator(word_or_number)]


class RuntimeConfig(ConfigModel):
    """Where and how to compute. `auto` is decided by a probe on this machine and recorded with the run."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = Field(
        default="auto", description="dtype of activations and products; tf32 and fp16 need a GPU to pay"
    )
    compile: Literal["auto"] | bool = "auto"
    attention: Literal["auto", "blocked", "sdpa", "flex", "varlen"] = "auto"
    activation_checkpointing: Blocks = Field(
        default="none",
        description="activation checkpointing: blocks that are computed again in the backward pass instead of kept; "
        "n: every n-th, full: all",
    )
    memory_budget: Annotated[int, BeforeValidator(memory_size), Field(gt=0)] | None = Field(
        default=None,
        description="what training may take, e.g. 6 GiB, for batch.micro_batch_size: auto; null: nine tenths of what is free",
    )
    threads: Positive | None = None
    parallelism: Literal["ddp", "fsdp"] = Field(
        default="ddp",
        description="how several processes share a model: each has all of it (ddp), or each a part of weights, gradients and "
        "optimizer state, for models too large for one device (fsdp)",
    )
    autotune: Literal["auto", "refresh"] = Field(
        default="auto", description="auto: what was measured before on this machine is not measured again"
    )
    data_workers: Positive | None = Field(
        default=None, description="processes that prepare data; null: one a core for large data, none for small"
    )

    @property
    def activation_checkpoint_every(self) -> int:
        """Every how many blocks one is computed again: 0 none, 1 all."""
        if isinstance(self.activation_checkpointing, int):
            return self.activation_checkpointing
        return 1 if self.activation_checkpointing == "full" else 0


def _whole_or_share(value: float, name: str) -> float:
    if value >= 1 and value != int(value):
        raise ValueError(f"{name} {value} is neither a whole number of steps nor a share below 1")
    return value


class BatchWarmupConfig(ConfigModel):
    """Smaller batches at the beginning: the accumulation grows from `start` to its full count, one micro-batch at a
    time, in equal parts of `over`. The learning rate is not scaled with it."""

    initial_accumulation_steps: Positive = Field(default=1, description="accumulation of the first update")
    ramp_steps: Annotated[float, BeforeValidator(steps_or_share), Field(gt=0)] = Field(
        default=0.1, description="whole number: steps; below 1 or with %: share of all steps"
    )

    @field_validator("ramp_steps")
    @classmethod
    def _whole(cls, value: float) -> float:
        return _whole_or_share(value, "ramp_steps")


class BatchConfig(ConfigModel):
    """Rows of `context` tokens (of a preference: twice as many): `micro` at a time on the device, `accumulation` times before
    each update. Or `tokens` for each update, which `micro` divides; `micro: auto` is as large as memory allows."""

    micro_batch_size: Rows = 16
    gradient_accumulation_steps: Positive = 1
    tokens_per_step: Positive | None = Field(
        default=None, description="positions of one update, in place of accumulation: a whole number of rows"
    )
    warmup: BatchWarmupConfig | None = Field(default=None, description="smaller batches at the beginning; null: none")

    @model_validator(mode="before")
    @classmethod
    def _as_large_as_fits(cls, value: object) -> object:
        """`tokens` alone says how much an update reads, and leaves to memory how much of it at a time."""
        return (
            {"micro_batch_size": "auto", **value}
            if isinstance(value, dict) and value.get("tokens_per_step") is not None
            else value
        )

    @property
    def micro_batch_rows(self) -> int:
        """Rows of one micro-batch. ValueError while it is `auto`."""
        if self.micro_batch_size == "auto":
            raise ValueError("batch.micro_batch_size: not chosen yet")
        return self.micro_batch_size

    def global_batch_rows(self, row_length: int) -> int:
        """Rows of one full update, whatever fits at a time. FledgeError where `tokens` are no whole number of rows."""
        if self.tokens_per_step is None:
            return self.micro_batch_rows * self.gradient_accumulation_steps
        rows, rest = divmod(self.tokens_per_step, row_length)
        if rest or not rows:
            nearest = [f"{count * row_length:,}" for count in (rows, rows + 1) if count]
            raise FledgeError(
                f"{self.tokens_per_step:,} tokens are no whole number of rows of {row_length:,}",
                where="batch.tokens_per_step",
                hint=f"write {' or '.join(nearest)}",
            )
        return rows

    @model_validator(mode="after")
    def _one_way(self) -> "BatchConfig":
        if (
            self.tokens_per_step is not None
            and "gradient_accumulation_steps" in self.model_fields_set
            and self.gradient_accumulation_steps != 1
        ):
            raise ValueError("tokens and accumulation both say how much one update reads: leave one of them out")
        if self.micro_batch_size == "auto" and self.tokens_per_step is None:
            raise ValueError("micro: auto needs tokens, the size of an update that stays the same whatever fits into memory")
        if self.tokens_per_step is not None and self.warmup is not None:
            raise ValueError("warmup counts micro-batches: write micro and accumulation in place of tokens")
        return self

    @model_validator(mode="after")
    def _grows(self) -> "BatchConfig":
        if self.warmup is not None and self.warmup.initial_accumulation_steps >= self.gradient_accumulation_steps:
            raise ValueError(
                f"warmup.initial_accumulation_steps {self.warmup.initial_accumulation_steps} is not below the "
                f"gradient_accumulation_steps {self.gradient_accumulation_steps} that it grows to"
            )
        return self


def _auto_or_number(value: object) -> str:
    return "auto" if value == "auto" else "number"


Auto = Annotated[Literal["auto"], Tag("auto")]
Rate = Annotated[Annotated[float, Field(gt=0), Tag("number")] | Auto, Discriminator(_auto_or_number)]
Betas = Annotated[Annotated[tuple[Share, Share], Tag("number")] | Auto, Discriminator(_auto_or_number)]
Decay = Annotated[Annotated[float, Field(ge=0), Tag("number")] | Auto, Discriminator(_auto_or_number)]


class OptimizerConfig(ConfigModel):
    """AdamW; AdamW with its state in 8 bits; or Muon for the matrices of the blocks with AdamW for the rest, at one learning
    rate. `auto`, the default of pretraining, is derived from width, batch and length; the plan shows how."""

    name: Literal["adamw", "muon", "adamw8bit"] = "adamw"
    learning_rate: Rate = 5e-4
    betas: Betas = (0.9, 0.95)
    eps: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Decay = 0.1
    weight_decay_on: Literal["matrices", "everything"] = Field(
        default="matrices", description="what decays: matrices of the blocks and the head, or also norms, biases and embeddings"
    )
    max_grad_norm: Annotated[float, Field(gt=0)] | None = Field(
        default=1.0, description="largest gradient norm; null: no clipping"
    )

    @property
    def automatic(self) -> list[str]:
        """The keys that are still to be derived."""
        return [key for key in ("learning_rate", "betas", "weight_decay") if getattr(self, key) == "auto"]

    def numbers(self) -> tuple[float, tuple[float, float], float]:
        """Learning rate, betas and weight decay. ValueError while one of them is `auto`."""
        if self.learning_rate == "auto" or self.betas == "auto" or self.weight_decay == "auto":
            raise ValueError(f"{', '.join(self.automatic)}: not derived yet")
        return self.learning_rate, self.betas, self.weight_decay


def _over(**defaults: object) -> Callable[[object], object]:
    """Lays an optimizer section over the defaults of its kind, so that naming one key does not reset the others."""
    return lambda value: {**defaults, **value} if isinstance(value, dict) else value


def _explicit(value: OptimizerConfig) -> OptimizerConfig:
    if value.automatic:
        raise ValueError(f"{', '.join(value.automatic)}: auto is derived for pretraining only; write a number")
    return value


PRETRAIN_OPTIMIZER: dict[str, Any] = {"name": "muon", "learning_rate": "auto", "betas": "auto", "weight_decay": "auto"}
SFT_OPTIMIZER: dict[str, Any] = {"name": "adamw", "learning_rate": 2e-5, "betas": (0.9, 0.95), "weight_decay": 0.01}
PREFERENCE_OPTIMIZER: dict[str, Any] = {**SFT_OPTIMIZER, "learning_rate": 5e-6}
PretrainOptimizer = Annotated[OptimizerConfig, BeforeValidator(_over(**PRETRAIN_OPTIMIZER))]
SftOptimizer = Annotated[OptimizerConfig, BeforeValidator(_over(**SFT_OPTIMIZER)), AfterValidator(_explicit)]
PreferenceOptimizer = Annotated[OptimizerConfig, BeforeValidator(_over(**PREFERENCE_OPTIMIZER)), AfterValidator(_explicit)]


def _share_or_number(value: object) -> str:
    return "share" if isinstance(value, str) and value.strip().endswith("%") else "number"


def _share_of_rate(value: str) -> str:
    part = as_share(value)
    if not isinstance(part, float) or not 0 <= part <= 1:
        raise ValueError(f"the share '{value}' must lie between 0% and 100%")
    return value


LowestRate = Annotated[
    Annotated[float, Field(ge=0), Tag("number")] | Annotated[str, AfterValidator(_share_of_rate), Tag("share")],
    Discriminator(_share_or_number),
]


class ScheduleConfig(ConfigModel):
    """Learning rate over the steps: warm-up, then the named shape down to `min_lr`."""

    name: Literal["cosine", "wsd", "linear", "constant", "onecycle"] = "linear"
    warmup: Annotated[float, BeforeValidator(steps_or_share), Field(ge=0)] = Field(
        default=0.02, description="whole number: steps; below 1 or with %: share of all steps"
    )
    min_lr: LowestRate = Field(
        default=0.0, description="rate of the last step: a number, or with % a share of optimizer.learning_rate, such as 10%"
    )
    decay_fraction: Annotated[float, BeforeValidator(as_share), Field(gt=0, le=1)] = Field(
        default=0.2, description="wsd only: share of the steps that the final decay takes"
    )
    decay_shape: Literal["linear", "sqrt"] = Field(default="linear", description="wsd only: falls as 1 − p or as 1 − √p")
    div_factor: Annotated[float, Field(ge=1)] = Field(default=25.0, description="onecycle only: the first rate is lr ÷ this")
    final_div_factor: Annotated[float, Field(ge=1)] | None = Field(
        default=None, description="onecycle only: the last rate is the first ÷ this; null: min_lr"
    )

    @field_validator("warmup")
    @classmethod
    def _whole(cls, value: float) -> float:
        return _whole_or_share(value, "warmup")

    @model_validator(mode="after")
    def _belongs(self) -> "ScheduleConfig":
        owners = {"decay_fraction": "wsd", "decay_shape": "wsd", "div_factor": "onecycle", "final_div_factor": "onecycle"}
        for key, owner in owners.items():
            if self.name != owner and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} belongs to the schedule {owner}; this one is {self.name}")
        if self.final_div_factor is not None and self.min_lr != 0:
            raise ValueError("final_div_factor and min_lr both name the last rate: leave one of them out")
        return self


class EMAConfig(ConfigModel):
    """A moving average of the weights, which the stage's model gets at its end. Off without `decay`."""

    decay: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None, description="share of the average that each update keeps, such as 0.999; null: no averaging"
    )
    start_fraction: Percent = Field(default=0.0, description="share of the steps before the average begins")

    @model_validator(mode="after")
    def _used(self) -> "EMAConfig":
        if self.decay is None and self.start_fraction:
            raise ValueError("start says when averaging begins, but without decay there is none")
        return self
