"""Computation and optimization of a stage: runtime, batch, optimizer, schedule, EMA."""

from collections.abc import Callable, Collection
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Discriminator, Field, Tag, field_validator, model_validator

from fledge.errors import FledgeError
from fledge.recipe.sections.base import ConfigModel, Fraction, FractionOrPercent, Positive, word_or_number
from fledge.recipe.units import fraction as as_fraction
from fledge.recipe.units import memory_size, steps_or_fraction

BlockInterval = Annotated[
    Annotated[Literal["none", "full"], Tag("word")] | Annotated[Positive, Tag("number")], Discriminator(word_or_number)
]
MicroBatchRows = Annotated[
    Annotated[Literal["auto"], Tag("word")] | Annotated[Positive, Tag("number")], Discriminator(word_or_number)
]


class RuntimeConfig(ConfigModel):
    """Device, precision and compilation. `auto` is chosen by benchmarks on this machine and stored with the run."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "tf32", "bf16", "fp16"] = Field(
        default="auto", description="dtype of activations and matrix products; tf32 and fp16 are useful on GPUs only"
    )
    compile: Literal["auto"] | bool = "auto"
    attention: Literal["auto", "blocked", "sdpa", "segments", "flex", "varlen"] = "auto"
    activation_checkpointing: BlockInterval = Field(
        default="none",
        description="blocks whose activations are recomputed in the backward pass instead of stored; n: every n-th block, "
        "full: all blocks",
    )
    memory_budget: Annotated[int, BeforeValidator(memory_size), Field(gt=0)] | None = Field(
        default=None,
        description="memory that training may use, e.g. 6 GiB, for batch.micro_batch_size: auto; null: 90 % of the free memory",
    )
    deterministic: bool = Field(
        default=False,
        description="on a GPU: kernels that give the same bits each time, so that a resumed run equals an uninterrupted one "
        "byte for byte; slower, by how much is not measured. A CPU does so anyhow",
    )
    threads: Positive | None = None
    parallelism: Literal["ddp", "fsdp"] = Field(
        default="ddp",
        description="ddp: each process holds the whole model; fsdp: weights, gradients and optimizer state are sharded over "
        "the processes, for models too large for one device",
    )
    autotune: Literal["auto", "refresh"] = Field(
        default="auto", description="auto: reuse earlier measurements on this machine; refresh: measure again"
    )
    data_workers: Positive | None = Field(
        default=None, description="processes that prepare data; null: one per core for large data, none for small data"
    )

    @property
    def activation_checkpoint_every(self) -> int:
        """The interval of recomputed blocks: 0 none, 1 all, n every n-th."""
        if isinstance(self.activation_checkpointing, int):
            return self.activation_checkpointing
        return 1 if self.activation_checkpointing == "full" else 0


def _check_steps_or_fraction(value: float, name: str) -> float:
    if value >= 1 and value != int(value):
        raise ValueError(f"{name} {value} is neither a whole number of steps nor a fraction below 1")
    return value


class BatchWarmupConfig(ConfigModel):
    """Smaller batches at the beginning: accumulation grows from `initial_accumulation_steps` to its full value, one
    micro-batch at a time, in equal intervals over `ramp_steps`. The learning rate is not scaled with it."""

    initial_accumulation_steps: Positive = Field(default=1, description="accumulation steps of the first update")
    ramp_steps: Annotated[float, BeforeValidator(steps_or_fraction), Field(gt=0)] = Field(
        default=0.1, description="whole number: steps; below 1 or with %: fraction of all steps"
    )

    @field_validator("ramp_steps")
    @classmethod
    def _check_ramp_steps(cls, value: float) -> float:
        return _check_steps_or_fraction(value, "ramp_steps")


class BatchConfig(ConfigModel):
    """The size of an update in rows of `max_seq_len` tokens (preference pairs: twice as many).

    `micro_batch_size` rows are computed at a time, `gradient_accumulation_steps` times per update. Or `tokens_per_step` sets
    the size of an update, and `micro_batch_size: auto` (then the default) is as large as memory allows. Without it, `auto`
    leaves enough updates for few rows.
    """

    micro_batch_size: MicroBatchRows = 16
    gradient_accumulation_steps: Positive = 1
    tokens_per_step: Positive | None = Field(
        default=None, description="tokens of one update, a multiple of max_seq_len; replaces gradient_accumulation_steps"
    )
    merge_micro_batches: bool = Field(
        default=True,
        description="on a GPU: compute the rows of an update in fewer, larger micro-batches, as memory allows; false where "
        "micro_batch_size is written",
    )
    warmup: BatchWarmupConfig | None = Field(
        default=None, description="smaller batches at the beginning of the stage; null: none"
    )

    @model_validator(mode="before")
    @classmethod
    def _fill_in(cls, value: object) -> object:
        """`tokens_per_step` alone implies `micro_batch_size: auto`; a number as `micro_batch_size` is exact."""
        if not isinstance(value, dict):
            return value
        if value.get("tokens_per_step") is not None:
            value = {"micro_batch_size": "auto", **value}
        return value if value.get("micro_batch_size", "auto") == "auto" else {"merge_micro_batches": False, **value}

    @property
    def micro_batch_rows(self) -> int:
        """Rows of one micro-batch. Raises ValueError while it is `auto`."""
        if self.micro_batch_size == "auto":
            raise ValueError("batch.micro_batch_size: still auto, not chosen yet")
        return self.micro_batch_size

    def global_batch_rows(self, row_length: int) -> int:
        """Rows of one full update. Raises FledgeError if `tokens_per_step` is not a whole number of rows."""
        if self.tokens_per_step is None:
            return self.micro_batch_rows * self.gradient_accumulation_steps
        rows, remainder = divmod(self.tokens_per_step, row_length)
        if remainder or not rows:
            nearest = [f"{count * row_length:,}" for count in (rows, rows + 1) if count]
            raise FledgeError(
                f"{self.tokens_per_step:,} tokens are not a whole number of rows of {row_length:,}",
                where="batch.tokens_per_step",
                hint=f"write {' or '.join(nearest)}",
            )
        return rows

    @model_validator(mode="after")
    def _check_one_size(self) -> "BatchConfig":
        if (
            self.tokens_per_step is not None
            and "gradient_accumulation_steps" in self.model_fields_set
            and self.gradient_accumulation_steps != 1
        ):
            raise ValueError(
                "tokens_per_step and gradient_accumulation_steps both set the size of an update: leave one of them out"
            )
        if self.micro_batch_size == "auto" and not self.merge_micro_batches:
            raise ValueError("micro_batch_size: auto is as large as memory allows: leave merge_micro_batches: false out")
        if self.tokens_per_step is not None and self.warmup is not None:
            raise ValueError(
                "warmup counts micro-batches: write micro_batch_size and gradient_accumulation_steps instead of tokens_per_step"
            )
        return self

    @model_validator(mode="after")
    def _check_warmup_grows(self) -> "BatchConfig":
        if self.warmup is not None and self.warmup.initial_accumulation_steps >= self.gradient_accumulation_steps:
            raise ValueError(
                f"warmup.initial_accumulation_steps {self.warmup.initial_accumulation_steps} is not below the "
                f"gradient_accumulation_steps {self.gradient_accumulation_steps} that it grows to"
            )
        return self


def _auto_or_number(value: object) -> str:
    return "auto" if value == "auto" else "number"


Auto = Annotated[Literal["auto"], Tag("auto")]
LearningRate = Annotated[Annotated[float, Field(gt=0), Tag("number")] | Auto, Discriminator(_auto_or_number)]
Betas = Annotated[Annotated[tuple[Fraction, Fraction], Tag("number")] | Auto, Discriminator(_auto_or_number)]
WeightDecay = Annotated[Annotated[float, Field(ge=0), Tag("number")] | Auto, Discriminator(_auto_or_number)]


class OptimizerConfig(ConfigModel):
    """AdamW; AdamW with 8-bit state; Adafactor, whose learning rate is relative to the size of the weights; or Muon for the
    matrices of the blocks and AdamW for the rest, with one learning rate.

    `auto`, the default for pretraining, is derived from width, batch size and length of the run; the plan shows the derivation.
    In `sft`, `preference` and `kto` stages the learning rate alone may be `auto`.
    """

    name: Literal["adamw", "muon", "adamw8bit", "adafactor"] = "adamw"
    learning_rate: LearningRate = 5e-4
    betas: Betas = (0.9, 0.95)
    eps: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: WeightDecay = 0.1
    weight_decay_on: Literal["matrices", "everything"] = Field(
        default="matrices",
        description="parameters with weight decay: matrices of the blocks and the head, or also norms, biases and embeddings",
    )
    max_grad_norm: Annotated[float, Field(gt=0)] | None = Field(
        default=1.0, description="gradients are clipped to this norm; null: no clipping"
    )

    @model_validator(mode="after")
    def _check_adafactor(self) -> "OptimizerConfig":
        if self.name == "adafactor" and self.learning_rate == "auto":
            raise ValueError("learning_rate: auto is not derived for adafactor; write a number, such as 1e-3")
        return self

    @property
    def automatic(self) -> list[str]:
        """The keys that are still `auto`."""
        return [key for key in ("learning_rate", "betas", "weight_decay") if getattr(self, key) == "auto"]

    def numbers(self) -> tuple[float, tuple[float, float], float]:
        """(learning rate, betas, weight decay). Raises ValueError if one is still `auto`."""
        if self.learning_rate == "auto" or self.betas == "auto" or self.weight_decay == "auto":
            raise ValueError(f"{', '.join(self.automatic)}: still auto, not derived yet")
        return self.learning_rate, self.betas, self.weight_decay


def _with_defaults(**defaults: Any) -> Callable[[object], object]:
    """A validator that fills an optimizer section with the defaults of its stage kind, so that setting one key keeps the
    others, and that refuses other betas or eps for Adafactor, which has none."""

    def fill(value: object) -> object:
        if not isinstance(value, dict):
            return value
        if value.get("name") == "adafactor":
            _refuse_unused(value, {"betas": defaults["betas"], "eps": OptimizerConfig.model_fields["eps"].default})
        return {**defaults, **value}

    return fill


def _refuse_unused(value: dict[str, Any], defaults: dict[str, Any]) -> None:
    """Raise ValueError for a key without effect, unless it has its default, as in a recipe that a run has written."""
    for key, default in defaults.items():
        given = value.get(key, default)
        if (tuple(given) if isinstance(given, list) else given) != default:
            raise ValueError(f"{key} has no effect with adafactor; leave it out")


def _without_auto(defaults: dict[str, Any], derived: Collection[str] = ()) -> Callable[[OptimizerConfig], OptimizerConfig]:
    """A validator that refuses `auto` but for the keys that are `derived`; its message names the defaults of the stage kind."""

    def check(value: OptimizerConfig) -> OptimizerConfig:
        if refused := [key for key in value.automatic if key not in derived]:
            numbers = "; ".join(f"the default of {key} is {_yaml_number(defaults[key])}" for key in refused)
            raise ValueError(f"{', '.join(refused)}: auto is not derived for this kind of stage; write a number ({numbers})")
        return value

    return check


def _yaml_number(value: float | tuple[float, ...]) -> str:
    return f"[{', '.join(map(_yaml_number, value))}]" if isinstance(value, tuple) else f"{value:g}"


PRETRAIN_OPTIMIZER: dict[str, Any] = {"name": "muon", "learning_rate": "auto", "betas": "auto", "weight_decay": "auto"}
SFT_OPTIMIZER: dict[str, Any] = {"name": "adamw", "learning_rate": 2e-5, "betas": (0.9, 0.95), "weight_decay": 0.01}
PREFERENCE_OPTIMIZER: dict[str, Any] = {**SFT_OPTIMIZER, "learning_rate": 5e-6}
REWARD_OPTIMIZER: dict[str, Any] = {**SFT_OPTIMIZER, "learning_rate": 2e-5}
POLICY_OPTIMIZER: dict[str, Any] = {**SFT_OPTIMIZER, "learning_rate": 5e-6, "weight_decay": 0.0}
RATE = ("learning_rate",)  # may be auto in fine-tuning
USUAL_RATES = {  # by kind of stage, where a recipe names no learning rate
    "sft": SFT_OPTIMIZER["learning_rate"],
    "preference": PREFERENCE_OPTIMIZER["learning_rate"],
    "kto": PREFERENCE_OPTIMIZER["learning_rate"],
    "reward": REWARD_OPTIMIZER["learning_rate"],
    "grpo": POLICY_OPTIMIZER["learning_rate"],
}
ADAPTER_RATE_FACTOR = 10  # an adapter's best learning rate ÷ that of the weights, see decision 048
ADAPTER_RATES = {kind: ADAPTER_RATE_FACTOR * rate for kind, rate in USUAL_RATES.items()}
PretrainOptimizer = Annotated[OptimizerConfig, BeforeValidator(_with_defaults(**PRETRAIN_OPTIMIZER))]
SftOptimizer = Annotated[
    OptimizerConfig, BeforeValidator(_with_defaults(**SFT_OPTIMIZER)), AfterValidator(_without_auto(SFT_OPTIMIZER, RATE))
]
PreferenceOptimizer = Annotated[
    OptimizerConfig,
    BeforeValidator(_with_defaults(**PREFERENCE_OPTIMIZER)),
    AfterValidator(_without_auto(PREFERENCE_OPTIMIZER, RATE)),
]
RewardOptimizer = Annotated[
    OptimizerConfig, BeforeValidator(_with_defaults(**REWARD_OPTIMIZER)), AfterValidator(_without_auto(REWARD_OPTIMIZER))
]
PolicyOptimizer = Annotated[
    OptimizerConfig, BeforeValidator(_with_defaults(**POLICY_OPTIMIZER)), AfterValidator(_without_auto(POLICY_OPTIMIZER))
]


def _percent_or_number(value: object) -> str:
    return "percent" if isinstance(value, str) and value.strip().endswith("%") else "number"


def _check_percent(value: str) -> str:
    number = as_fraction(value)
    if not isinstance(number, float) or not 0 <= number <= 1:
        raise ValueError(f"the fraction '{value}' must lie between 0% and 100%")
    return value


MinLr = Annotated[
    Annotated[float, Field(ge=0), Tag("number")] | Annotated[str, AfterValidator(_check_percent), Tag("percent")],
    Discriminator(_percent_or_number),
]


class ScheduleConfig(ConfigModel):
    """The learning rate over the steps: warm-up, then the named shape down to `min_lr`."""

    name: Literal["cosine", "wsd", "linear", "constant", "onecycle"] = "linear"
    warmup: Annotated[float, BeforeValidator(steps_or_fraction), Field(ge=0)] = Field(
        default=0.02, description="whole number: steps; below 1 or with %: fraction of all steps"
    )
    min_lr: MinLr = Field(
        default=0.0,
        description="learning rate one step after the last: a number, or a percentage of optimizer.learning_rate, such as 10%",
    )
    decay_fraction: Annotated[float, BeforeValidator(as_fraction), Field(gt=0, le=1)] = Field(
        default=0.2, description="wsd only: fraction of the steps for the final decay"
    )
    decay_shape: Literal["linear", "sqrt"] = Field(default="linear", description="wsd only: linear decay (1 − p) or 1 − √p")
    div_factor: Annotated[float, Field(ge=1)] = Field(
        default=25.0, description="onecycle only: the first learning rate is learning_rate ÷ div_factor"
    )
    final_div_factor: Annotated[float, Field(ge=1)] | None = Field(
        default=None, description="onecycle only: the last learning rate is the first ÷ final_div_factor; null: min_lr"
    )

    @field_validator("warmup")
    @classmethod
    def _check_warmup(cls, value: float) -> float:
        return _check_steps_or_fraction(value, "warmup")

    @model_validator(mode="after")
    def _check_keys_of_schedule(self) -> "ScheduleConfig":
        owners = {"decay_fraction": "wsd", "decay_shape": "wsd", "div_factor": "onecycle", "final_div_factor": "onecycle"}
        for key, owner in owners.items():
            if self.name != owner and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} belongs to the schedule {owner}; this schedule is {self.name}")
        if self.final_div_factor is not None and self.min_lr != 0:
            raise ValueError("final_div_factor and min_lr both set the last learning rate: leave one of them out")
        return self


class EMAConfig(ConfigModel):
    """An exponential moving average of the weights, which becomes the result of the stage. Off without `decay`."""

    decay: Annotated[float, Field(gt=0, lt=1)] | None = Field(
        default=None, description="decay of the moving average at each update, such as 0.999; null: no averaging"
    )
    start_fraction: FractionOrPercent = Field(default=0.0, description="fraction of the steps before averaging starts")

    @model_validator(mode="after")
    def _check_start_fraction(self) -> "EMAConfig":
        if self.decay is None and self.start_fraction:
            raise ValueError("start_fraction has no effect without decay: set decay, or leave start_fraction out")
        return self
