"""The recipe: every key that fledge reads, its type, its default and its bounds.

A key that is not here is an error. Names of model sizes follow the Hugging Face configuration files.
"""

from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, Tag, field_validator, model_validator

from fledge.recipe.units import Length, share, steps_or_share

Share = Annotated[float, Field(ge=0, lt=1)]
Positive = Annotated[int, Field(gt=0)]


class Section(BaseModel):
    """A part of the recipe: frozen, and closed to unknown keys."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class TokenizerConfig(Section):
    """Train byte-level BPE on the training text of all stages, or load a directory or tokenizer.json from `path`."""

    path: str | None = None
    vocab_size: Annotated[int, Field(ge=300, le=1_000_000)] = 6400
    template: Literal["auto", "chatml", "inst", "tokenizer"] = Field(
        default="auto", description="chat template: the tokenizer's own if it has one, else ChatML"
    )


class MoeConfig(Section):
    """Mixture of experts: each block's feed-forward network becomes `experts` of them, `top_k` active per token."""

    experts: Positive
    top_k: Positive
    shared_experts: Annotated[int, Field(ge=0)] = 0

    @model_validator(mode="after")
    def _active(self) -> "MoeConfig":
        if self.top_k > self.experts:
            raise ValueError(f"top_k {self.top_k} is more than the {self.experts} experts")
        return self


class ModelConfig(Section):
    """The native decoder, or a model directory to start from (`path`), whose own sizes then hold."""

    path: str | None = None
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
    dropout: Share = 0.0
    initializer_range: Annotated[float, Field(gt=0)] = 0.02
    moe: MoeConfig | None = None

    @model_validator(mode="after")
    def _heads(self) -> "ModelConfig":
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


class MachineConfig(Section):
    """Where and how to compute. `auto` is decided by a probe on this machine and recorded with the run."""

    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    compile: Literal["auto"] | bool = "auto"
    attention: Literal["auto", "blocked", "sdpa"] = "auto"
    threads: Positive | None = None


class Source(Section):
    """A file, folder or glob of rows. `columns` names the columns where they cannot be recognised."""

    path: str
    name: str | None = None
    columns: dict[Literal["text", "prompt", "response", "system", "messages", "chosen", "rejected"], str | list[str]] = {}
    documents: Literal["line", "paragraph", "file"] = Field(default="line", description="what one document is in a .txt file")
    max_rows: Positive | None = None

    @model_validator(mode="after")
    def _one_column(self) -> "Source":
        for role in ("messages", "chosen", "rejected"):
            if isinstance(self.columns.get(role), list):
                raise ValueError(f"columns.{role} names one column, not a list")
        return self


def _as_sources(value: object) -> object:
    if isinstance(value, str | dict):
        value = [value]
    if isinstance(value, list):
        return [{"path": item} if isinstance(item, str) else item for item in value]
    return value


Sources = Annotated[list[Source], BeforeValidator(_as_sources)]
ShareOrSources = Annotated[
    Annotated[Share, Tag("share")] | Annotated[Sources, Tag("sources")],
    Discriminator(lambda value: "share" if isinstance(value, int | float) else "sources"),
]


class DataConfig(Section):
    """What a stage reads: training sources, and validation as a share of them or as sources of its own."""

    train: Annotated[Sources, Field(min_length=1)]
    validation: Annotated[ShareOrSources, BeforeValidator(share)] = 0.02
    context: Annotated[int, Field(ge=8)] = 512
    system: str | None = Field(default=None, description="system prompt for conversations that bring none")


class BatchConfig(Section):
    """Rows of `context` tokens: `micro` at a time on the device, `accumulation` times before each update."""

    micro: Positive = 16
    accumulation: Positive = 1


class OptimizerConfig(Section):
    """AdamW, or Muon for the matrices of the blocks with AdamW for the rest, at one learning rate; no decay on norms,
    biases and embeddings."""

    name: Literal["adamw", "muon"] = "adamw"
    lr: Annotated[float, Field(gt=0)] = 5e-4
    betas: tuple[Share, Share] = (0.9, 0.95)
    eps: Annotated[float, Field(gt=0)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    clip: Annotated[float, Field(gt=0)] | None = Field(default=1.0, description="largest gradient norm; null: no clipping")


def _fine_tuning(lr: float) -> Callable[[object], object]:
    """Lays an optimizer section over the defaults of fine-tuning, so that naming one key does not reset the others."""
    return lambda value: {"lr": lr, "weight_decay": 0.01, **value} if isinstance(value, dict) else value


SftOptimizer = Annotated[OptimizerConfig, BeforeValidator(_fine_tuning(2e-5))]
PreferenceOptimizer = Annotated[OptimizerConfig, BeforeValidator(_fine_tuning(5e-6))]


class ScheduleConfig(Section):
    """Learning rate over the steps: linear warm-up, then the named shape down to `min_lr`."""

    name: Literal["cosine", "wsd", "linear", "constant"] = "cosine"
    warmup: Annotated[float, BeforeValidator(steps_or_share), Field(ge=0)] = Field(
        default=0.02, description="whole number: steps; below 1 or with %: share of all steps"
    )
    min_lr: Annotated[float, Field(ge=0)] = 0.0
    decay: Annotated[float, BeforeValidator(share), Field(gt=0, le=1)] = Field(
        default=0.2, description="wsd only: share of the steps that the final decay takes"
    )

    @field_validator("warmup")
    @classmethod
    def _whole(cls, value: float) -> float:
        if value >= 1 and value != int(value):
            raise ValueError(f"warmup {value} is neither a whole number of steps nor a share below 1")
        return value


class EvaluationConfig(Section):
    """Validation during training, and what is measured before and after the stage."""

    every: Positive | None = Field(default=None, description="steps between evaluations; null: ten times a stage")
    max_rows: Positive = Field(default=64, description="most packed rows of validation data used")


class CheckpointConfig(Section):
    """Saved states. The newest `keep` are kept, and the best one always."""

    every: Positive | None = Field(default=None, description="steps between checkpoints; null: as often as evaluations")
    keep: Positive = 2


class EarlyStopConfig(Section):
    """Stop when validation loss has not improved by `threshold` for `patience` evaluations, or reached `target_loss`."""

    patience: Positive | None = None
    threshold: Annotated[float, Field(ge=0)] = 0.0
    target_loss: Annotated[float, Field(gt=0)] | None = None


class StageBase(Section):
    """What every stage has."""

    start: str | None = Field(default=None, description="model directory to start from; null: the stage before")
    data: DataConfig
    length: str = "1 epochs"
    batch: BatchConfig = BatchConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    early_stop: EarlyStopConfig = EarlyStopConfig()
    keep: Literal["last", "best"] = Field(default="last", description="which checkpoint the next stage starts from")

    @field_validator("length")
    @classmethod
    def _length(cls, value: str) -> str:
        Length.parse(value)
        return value

    @model_validator(mode="after")
    def _minimum(self) -> "StageBase":
        if self.schedule.min_lr > self.optimizer.lr:
            raise ValueError(f"schedule.min_lr {self.schedule.min_lr} is above optimizer.lr {self.optimizer.lr}")
        return self


class PretrainStage(StageBase):
    """Next-token prediction on plain text."""

    kind: Literal["pretrain"]
    label_smoothing: Share = 0.0


class SftStage(StageBase):
    """Supervised fine-tuning on conversations: only assistant turns and their end tokens are trained."""

    kind: Literal["sft"]
    label_smoothing: Share = 0.0
    optimizer: SftOptimizer = OptimizerConfig(lr=2e-5, weight_decay=0.01)


class PreferenceStage(StageBase):
    """Direct preference optimisation (Rafailov et al. 2023, eq. 7) with a frozen reference model."""

    kind: Literal["preference"]
    loss: Literal["sigmoid"] = "sigmoid"
    beta: Annotated[float, Field(gt=0)] = 0.1
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = Field(default=0.0, description="cDPO: share of flipped labels")
    sft_weight: Annotated[float, Field(ge=0)] = Field(default=0.0, description="weight of the chosen answers' own loss")
    reference: Literal["precomputed", "live"] = "precomputed"
    optimizer: PreferenceOptimizer = OptimizerConfig(lr=5e-6, weight_decay=0.01)


Stage = Annotated[PretrainStage | SftStage | PreferenceStage, Field(discriminator="kind")]


class SamplesConfig(Section):
    """Fixed prompts answered before and after every stage, by greedy decoding."""

    prompts: list[str] = []
    texts: list[str] = Field(default=[], description="beginnings to continue after pretraining")
    max_new_tokens: Positive = 64


class LoggingConfig(Section):
    """What is written while training. events.jsonl is always written."""

    every: Positive = Field(default=10, description="steps between lines on the console")
    tensorboard: bool = False


class Recipe(Section):
    """One run: a tokenizer, a model and its stages, in order."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "run"
    output: str = "runs"
    preset: str | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    tokenizer: TokenizerConfig = TokenizerConfig()
    model: ModelConfig = ModelConfig()
    machine: MachineConfig = MachineConfig()
    stages: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")], Stage]
    samples: SamplesConfig = SamplesConfig()
    logging: LoggingConfig = LoggingConfig()

    @field_validator("stages")
    @classmethod
    def _stages(cls, value: dict[str, "Stage"]) -> dict[str, "Stage"]:
        if not value:
            raise ValueError("a recipe needs at least one stage")
        reserved = {"tokenizer"} & set(value)
        if reserved:
            raise ValueError(f"a stage cannot be called '{reserved.pop()}': the run keeps its tokenizer there")
        return value

    @model_validator(mode="after")
    def _context(self) -> "Recipe":
        if self.model.path is None:
            for name, stage in self.stages.items():
                if stage.start is not None:
                    break
                if stage.data.context > self.model.max_position_embeddings:
                    raise ValueError(
                        f"stages.{name}.data.context {stage.data.context} is longer than "
                        f"model.max_position_embeddings {self.model.max_position_embeddings}"
                    )
        return self
