"""The recipe: every key that fledge reads, its type, its default and its bounds.

A key that is not here is an error. Names of model sizes follow the Hugging Face configuration files.
"""

from typing import Annotated, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from fledge.recipe.sections.alerts import AlertsConfig, WebhookConfig
from fledge.recipe.sections.base import ConfigModel, Positive, Share
from fledge.recipe.sections.data import AugmentConfig, CleanConfig, Column, DataConfig, Role, Source, Sources, one_source
from fledge.recipe.sections.engine import (
    PREFERENCE_OPTIMIZER,
    PRETRAIN_OPTIMIZER,
    SFT_OPTIMIZER,
    BatchConfig,
    BatchWarmupConfig,
    EMAConfig,
    OptimizerConfig,
    PreferenceOptimizer,
    PretrainOptimizer,
    RuntimeConfig,
    ScheduleConfig,
    SftOptimizer,
)
from fledge.recipe.sections.guards import GuardsConfig
from fledge.recipe.sections.model import ModelConfig, MoeConfig, TokenizerConfig
from fledge.recipe.units import Length

__all__ = [
    "AlertsConfig",
    "AugmentConfig",
    "BatchConfig",
    "BatchWarmupConfig",
    "CheckpointConfig",
    "CleanConfig",
    "Column",
    "ConfigModel",
    "DataConfig",
    "EMAConfig",
    "EarlyStoppingConfig",
    "EvaluationConfig",
    "GenerationSamplesConfig",
    "GuardsConfig",
    "LoggingConfig",
    "ModelConfig",
    "MoeConfig",
    "OptimizerConfig",
    "PreferenceOptimizer",
    "PreferenceStage",
    "PretrainOptimizer",
    "PretrainStage",
    "PromptTestsConfig",
    "Recipe",
    "Role",
    "RuntimeConfig",
    "ScheduleConfig",
    "SftOptimizer",
    "SftStage",
    "Source",
    "Sources",
    "Stage",
    "StageBase",
    "TokenizerConfig",
    "WebhookConfig",
]


class EvaluationConfig(ConfigModel):
    """Validation during training, and what is measured before and after the stage."""

    every_steps: Positive | None = Field(default=None, description="steps between evaluations; null: ten times a stage")
    max_packed_rows: Positive = Field(default=64, description="most packed rows of validation data used")


class CheckpointConfig(ConfigModel):
    """Saved states. The newest `keep` are kept, and the best one always."""

    every_steps: Positive | None = Field(default=None, description="steps between checkpoints; null: as often as evaluations")
    keep_last: Positive = 2


class EarlyStoppingConfig(ConfigModel):
    """Stop when validation loss has not improved by `threshold` for `patience` evaluations, or reached `target_loss`."""

    patience: Positive | None = None
    threshold: Annotated[float, Field(ge=0)] = 0.0
    target_loss: Annotated[float, Field(gt=0)] | None = None


class PromptTestsConfig(ConfigModel):
    """Fixed prompts with rules for their answers, asked while a stage trains; see docs/evaluation.md."""

    prompts: str = Field(description="YAML file of cases")
    every_steps: Positive | None = Field(default=None, description="steps between examinations; null: only when the stage ends")
    max_new_tokens: Positive = 128


class StageBase(ConfigModel):
    """What every stage has."""

    init_from: str | None = Field(default=None, description="model directory to start from; null: the stage before")
    data: Annotated[DataConfig, BeforeValidator(one_source)]
    duration: str = "1 epochs"
    batch: BatchConfig = BatchConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    ema: EMAConfig = EMAConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    early_stopping: EarlyStoppingConfig = EarlyStoppingConfig()
    guards: GuardsConfig = GuardsConfig()
    prompt_tests: PromptTestsConfig | None = None
    select_checkpoint: Literal["last", "best"] = Field(
        default="last", description="which checkpoint the next stage starts from"
    )

    @property
    def loss_unit(self) -> str:
        """The unit of the stage's loss; "nats/token" where the loss is the mean negative log-likelihood of the targets."""
        return "nats/token"

    @property
    def keeps_reference_model(self) -> bool:
        """Whether the model that the stage starts from stays in memory, frozen, beside the one that is trained."""
        return False

    @field_validator("duration")
    @classmethod
    def _length(cls, value: str) -> str:
        Length.parse(value)
        return value

    @model_validator(mode="after")
    def _minimum(self) -> "StageBase":
        low, high = (
            self.schedule.min_lr,
            self.optimizer.learning_rate,
        )  # a share never is above; `auto` is checked when it is known
        if not isinstance(low, str) and not isinstance(high, str) and low > high:
            raise ValueError(
                f"schedule.min_lr {self.schedule.min_lr} is above optimizer.learning_rate {self.optimizer.learning_rate}"
            )
        return self


class PretrainStage(StageBase):
    """Next-token prediction on plain text."""

    kind: Literal["pretrain"]
    label_smoothing: Share = 0.0
    optimizer: PretrainOptimizer = OptimizerConfig(**PRETRAIN_OPTIMIZER)


class SftStage(StageBase):
    """Supervised fine-tuning on conversations: only assistant turns and their end tokens are trained."""

    kind: Literal["sft"]
    label_smoothing: Share = 0.0
    optimizer: SftOptimizer = OptimizerConfig(**SFT_OPTIMIZER)


class PreferenceStage(StageBase):
    """Direct preference optimization (Rafailov et al. 2023, eq. 7) with a frozen reference model."""

    kind: Literal["preference"]
    loss_type: Literal["sigmoid", "hinge", "ipo"] = Field(
        default="sigmoid", description="sigmoid: DPO; hinge: SLiC-HF; ipo: IPO, on log-probabilities averaged over tokens"
    )
    beta: Annotated[float, Field(gt=0)] = 0.1
    label_smoothing: Annotated[float, Field(ge=0, lt=0.5)] = Field(default=0.0, description="cDPO: share of flipped labels")
    sft_loss_weight: Annotated[float, Field(ge=0)] = Field(default=0.0, description="weight of the chosen answers' own loss")
    precompute_ref_log_probs: bool = Field(
        default=True, description="compute the reference's log-probabilities once and keep them; false: keep a second model"
    )
    optimizer: PreferenceOptimizer = OptimizerConfig(**PREFERENCE_OPTIMIZER)

    @property
    def loss_unit(self) -> str:
        """Nats for the sigmoid loss, which is a negative log-likelihood; hinge and ipo have no unit."""
        return "nats/pair" if self.loss_type == "sigmoid" else "per pair"

    @property
    def keeps_reference_model(self) -> bool:
        """Whether the reference is computed anew for each batch, by a second model."""
        return not self.precompute_ref_log_probs

    @model_validator(mode="after")
    def _smoothed_loss(self) -> "PreferenceStage":
        if self.label_smoothing and self.loss_type != "sigmoid":
            raise ValueError(
                f"label_smoothing {self.label_smoothing} is defined for loss_type sigmoid alone, not for {self.loss_type}: "
                "set label_smoothing to 0, or loss_type to sigmoid"
            )
        return self


Stage = Annotated[PretrainStage | SftStage | PreferenceStage, Field(discriminator="kind")]


class GenerationSamplesConfig(ConfigModel):
    """Fixed prompts answered before and after every stage, by greedy decoding."""

    prompts: list[str] = []
    texts: list[str] = Field(default=[], description="beginnings to continue after pretraining")
    max_new_tokens: Positive = 64


class LoggingConfig(ConfigModel):
    """What is written while training. events.jsonl is always written."""

    every_steps: Positive = Field(
        default=10,
        description="steps between lines on the console, and between measurements of update sizes and gradient noise",
    )
    tensorboard: bool = False


class Recipe(ConfigModel):
    """One run: a tokenizer, a model and its stages, in order."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] = "run"
    output: str = "runs"
    preset: str | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    built_dataset: str | None = Field(
        default=None, description="directory of `fledge data build` to train from; null: builds its own"
    )
    tokenizer: TokenizerConfig = TokenizerConfig()
    model: ModelConfig = ModelConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    stages: dict[Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")], Stage]
    generation_samples: GenerationSamplesConfig = GenerationSamplesConfig()
    logging: LoggingConfig = LoggingConfig()
    alerts: AlertsConfig = AlertsConfig()

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
                if stage.init_from is not None:
                    break
                if stage.data.max_seq_len > self.model.max_position_embeddings:
                    raise ValueError(
                        f"stages.{name}.data.max_seq_len {stage.data.max_seq_len} is longer than "
                        f"model.max_position_embeddings {self.model.max_position_embeddings}"
                    )
        return self
