"""The recipe's schema: every key with its type, default and bounds. Unknown keys are errors.

Names of model sizes follow Hugging Face configuration files.
"""

from collections.abc import Callable
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from fledge.recipe.sections.adapter import PREFIX, AdapterConfig
from fledge.recipe.sections.alerts import AlertsConfig, WebhookConfig
from fledge.recipe.sections.base import ConfigModel, Fraction, Name, PathText, Positive
from fledge.recipe.sections.data import (
    AugmentConfig,
    CleanConfig,
    Column,
    DataConfig,
    Role,
    Source,
    Sources,
)
from fledge.recipe.sections.engine import (
    PREFERENCE_OPTIMIZER,
    PRETRAIN_OPTIMIZER,
    REWARD_OPTIMIZER,
    SFT_OPTIMIZER,
    BatchConfig,
    BatchWarmupConfig,
    EMAConfig,
    OptimizerConfig,
    PreferenceOptimizer,
    PretrainOptimizer,
    RewardOptimizer,
    RuntimeConfig,
    ScheduleConfig,
    SftOptimizer,
)
from fledge.recipe.sections.guards import CommonGuards, GuardsConfig, RewardGuardsConfig
from fledge.recipe.sections.logging import LoggingConfig
from fledge.recipe.sections.model import ModelConfig, MoeConfig, RopeScaling, TokenizerConfig
from fledge.recipe.sections.policy import PolicySettings, RolloutConfig
from fledge.recipe.sections.policy_guards import PolicyGuardsConfig
from fledge.recipe.sections.preference import KtoSettings, PreferenceSettings, RewardSettings
from fledge.recipe.sections.quantization import QuantizationConfig
from fledge.recipe.sections.stage import (
    CheckpointConfig,
    EarlyStoppingConfig,
    EvaluationConfig,
    GeneratedAnswersConfig,
    PromptTestsConfig,
    StageBase,
)

__all__ = [
    "AdapterConfig",
    "AlertsConfig",
    "AugmentConfig",
    "BatchConfig",
    "BatchWarmupConfig",
    "CheckpointConfig",
    "CleanConfig",
    "Column",
    "CommonGuards",
    "ConfigModel",
    "DataConfig",
    "EMAConfig",
    "EarlyStoppingConfig",
    "EvaluationConfig",
    "GeneratedAnswersConfig",
    "GenerationSamplesConfig",
    "GrpoStage",
    "GuardsConfig",
    "KtoStage",
    "LoggingConfig",
    "ModelConfig",
    "MoeConfig",
    "OptimizerConfig",
    "PolicyGuardsConfig",
    "PreferenceOptimizer",
    "PreferenceStage",
    "PretrainOptimizer",
    "PretrainStage",
    "PromptTestsConfig",
    "QuantizationConfig",
    "Recipe",
    "RewardGuardsConfig",
    "RewardOptimizer",
    "RewardStage",
    "Role",
    "RolloutConfig",
    "RopeScaling",
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


class PretrainStage(StageBase):
    """Next-token prediction on plain text."""

    kind: Literal["pretrain"]
    label_smoothing: Fraction = 0.0
    optimizer: PretrainOptimizer = OptimizerConfig(**PRETRAIN_OPTIMIZER)
    guards: GuardsConfig = GuardsConfig()  # pyright: ignore[reportIncompatibleVariableOverride]

    @model_validator(mode="after")
    def _check_no_answers(self) -> "PretrainStage":
        if self.evaluation.generated_answers is not None:
            raise ValueError("evaluation.generated_answers needs rows with questions and answers; plain text has none")
        return self


class SftStage(StageBase):
    """Supervised fine-tuning on conversations; only assistant turns and their end tokens contribute to the loss."""

    kind: Literal["sft"]
    label_smoothing: Fraction = 0.0
    optimizer: SftOptimizer = OptimizerConfig(**SFT_OPTIMIZER)
    guards: GuardsConfig = GuardsConfig()  # pyright: ignore[reportIncompatibleVariableOverride]


class PreferenceStage(PreferenceSettings, StageBase):
    """Preference optimization on pairs of answers: DPO (Rafailov et al. 2023, eq. 7) and its relatives."""

    kind: Literal["preference"]
    optimizer: PreferenceOptimizer = OptimizerConfig(**PREFERENCE_OPTIMIZER)
    guards: GuardsConfig = GuardsConfig()  # pyright: ignore[reportIncompatibleVariableOverride]


class KtoStage(KtoSettings, StageBase):
    """Preference optimization on single answers with a label: KTO (Ethayarajh et al. 2024, eq. 7-8)."""

    kind: Literal["kto"]
    optimizer: PreferenceOptimizer = OptimizerConfig(**PREFERENCE_OPTIMIZER)
    guards: GuardsConfig = GuardsConfig()  # pyright: ignore[reportIncompatibleVariableOverride]


class RewardStage(RewardSettings, StageBase):
    """A reward model from pairs of answers: one number for an answer, the larger the better (Bradley & Terry 1952; Ouyang et
    al. 2022, eq. 1)."""

    kind: Literal["reward"]
    optimizer: RewardOptimizer = OptimizerConfig(**REWARD_OPTIMIZER)
    guards: RewardGuardsConfig = RewardGuardsConfig()  # pyright: ignore[reportIncompatibleVariableOverride]

    @model_validator(mode="after")
    def _check_no_answers(self) -> "RewardStage":
        for key, value in (
            ("evaluation.generated_answers", self.evaluation.generated_answers),
            ("evaluation.sets", self.evaluation.sets or None),
            ("prompt_tests", self.prompt_tests),
        ):
            if value is not None:
                raise ValueError(f"{key} needs answers, and a reward model writes none: leave it out")
        if self.adapter is not None and self.adapter.peft_type == PREFIX:
            raise ValueError("a reward stage has no prefix: write adapter: {peft_type: LORA}, or leave the section out")
        head = next((one for one in self.adapter.modules_to_save if "lm_head".endswith(one)), None) if self.adapter else None
        if head is not None:
            raise ValueError(f"adapter.modules_to_save: a reward model has no lm_head: leave {head} out; its head is trained")
        return self


class GrpoStage(PolicySettings):
    """Group relative policy optimization (Shao et al. 2024): answers drawn from the model itself are rewarded, and those above
    the mean of their group become likelier."""

    kind: Literal["grpo"]


Stage = Annotated[PretrainStage | SftStage | PreferenceStage | KtoStage | RewardStage | GrpoStage, Field(discriminator="kind")]


class GenerationSamplesConfig(ConfigModel):
    """Fixed prompts answered with greedy decoding before and after every stage."""

    prompts: list[str] = []
    texts: list[str] = Field(default=[], description="beginnings of texts to continue after pretraining")
    max_new_tokens: Positive = 64


UNSHARDED: tuple[tuple[Callable[[Stage], object], str], ...] = (
    (lambda stage: stage.answers_per_example > 1, " draws answers, which a sharded model cannot yet"),
    (lambda stage: stage.adapter, ".adapter cannot be sharded yet"),
    (lambda stage: stage.trains_reward_model, " trains a reward model, which cannot be sharded yet"),
    (lambda stage: stage.kind == "kto", " of kind kto cannot be sharded yet"),
    (lambda stage: stage.measures_disentanglement, ".disentanglement is not measured on a sharded model yet"),
)
"""What a sharded model cannot do, and the end of a sentence about it."""


def _check_goes_on(name: str, stage: Stage, before: str, start: Stage) -> None:
    """ValueError if the adapter of a stage cannot follow that of the stage `before` from whose model it starts."""
    own, theirs = stage.adapter, start.adapter
    if theirs is None or own == theirs:
        return
    if theirs.peft_type == PREFIX:
        same = "" if stage.trains_reward_model else "the same adapter, or "  # a reward model has no prefix
        what = f"stages.{name} has {'no' if own is None else 'another'} adapter"
        raise ValueError(
            f"{what}, and the prefix of stages.{before} cannot be merged into weights: write {same}stages.{name}.init_from"
        )
    if own is not None:
        raise ValueError(
            f"stages.{name}.adapter differs from stages.{before}.adapter: write the same settings, to go on with that "
            f"adapter, or null, to merge it and train the weights"
        )


class Recipe(ConfigModel):
    """One run: a tokenizer, a model and its stages, in order."""

    name: Name = "run"
    output: PathText = "runs"
    preset: str | None = None
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 42
    built_dataset: PathText | None = Field(
        default=None, description="directory written by `fledge data build`; null: the run builds its data itself"
    )
    tokenizer: TokenizerConfig = TokenizerConfig()
    model: ModelConfig = ModelConfig()
    runtime: RuntimeConfig = RuntimeConfig()
    stages: dict[Annotated[Name, Field(pattern=r"^[^.]*$")], Stage]
    generation_samples: GenerationSamplesConfig = GenerationSamplesConfig()
    logging: LoggingConfig = LoggingConfig()
    alerts: AlertsConfig = AlertsConfig()

    def stages_before(self, name: str) -> list[str]:
        """The stages before the one of this name whose models it may go on from, in order. Only another reward stage goes on
        from a reward stage: all others pass over it. Raises KeyError if there is no stage of this name."""
        names, any_model = list(self.stages), self.stages[name].trains_reward_model
        earlier = names[: names.index(name)]
        return [one for one in earlier if any_model or not self.stages[one].trains_reward_model]

    @field_validator("stages")
    @classmethod
    def _check_stage_names(cls, value: dict[str, "Stage"]) -> dict[str, "Stage"]:
        if not value:
            raise ValueError("a recipe needs at least one stage")
        reserved = {"tokenizer"} & set(value)
        if reserved:
            raise ValueError(f"a stage cannot be called '{reserved.pop()}': the run keeps its tokenizer there")
        return value

    @model_validator(mode="after")
    def _check_adapters(self) -> "Recipe":
        """An adapter belongs to a model that has learned something."""
        name, first = next(iter(self.stages.items()))
        if first.adapter is not None and self.model.path is None and first.init_from is None:
            raise ValueError(
                f"stages.{name}.adapter needs a model to adapt: name its directory as model.path or stages.{name}.init_from, "
                "or train one in a stage before"
            )
        for after, following in self.stages.items():
            before = self.stages_before(after)[-1:]
            if before and following.init_from is None:
                _check_goes_on(after, following, before[0], self.stages[before[0]])
        return self

    @model_validator(mode="after")
    def _check_sharding(self) -> "Recipe":
        for name, stage in self.stages.items() if self.runtime.parallelism == "fsdp" else ():
            problem = next((text for applies, text in UNSHARDED if applies(stage)), None)
            if problem is not None:
                raise ValueError(f"stages.{name}{problem}: set runtime.parallelism to ddp")
        return self

    @model_validator(mode="after")
    def _check_max_seq_len(self) -> "Recipe":
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
