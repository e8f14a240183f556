"""The settings of stages that train a policy on rewards: group relative policy optimization."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, model_validator

from fledge.recipe.sections.base import ConfigModel, Positive
from fledge.recipe.sections.data import DataConfig, as_training_source
from fledge.recipe.sections.engine import POLICY_OPTIMIZER, OptimizerConfig, PolicyOptimizer
from fledge.recipe.sections.policy_guards import PolicyGuardsConfig
from fledge.recipe.sections.preference import KeptReferenceSettings
from fledge.recipe.sections.rewards import Rewards
from fledge.recipe.sections.stage import EvaluationConfig, GeneratedAnswersConfig, SelectionMetricName, StageBase
from fledge.recipe.units import Duration


class RolloutConfig(ConfigModel):
    """How answers are drawn from the model that is trained."""

    num_generations: Annotated[int, Field(ge=2)] = Field(default=8, description="answers to each prompt: a group")
    max_new_tokens: Positive = Field(default=128, description="tokens of an answer, at most; data.max_seq_len limits it too")
    temperature: Annotated[float, Field(gt=0)] = 1.0
    top_k: Annotated[int, Field(ge=0)] = Field(default=0, description="0: all tokens")
    top_p: Annotated[float, Field(gt=0, le=1)] = 1.0
    updates_per_rollout: Positive = Field(
        default=1, description="updates that share the answers of one rollout; above 1 the last of them are off-policy"
    )
    redraw_equal_groups: Annotated[int, Field(ge=0)] = Field(
        default=0, description="how often a group whose rewards are all equal is drawn again"
    )


def _last_turn(data: DataConfig) -> DataConfig:
    """The data with the last answer of a conversation as the reference."""
    if data.train_on_turns == "all" and "train_on_turns" in data.model_fields_set:
        raise ValueError("train_on_turns: all has no effect: a prompt is answered once, leave it out")
    return data.model_copy(update={"train_on_turns": "last"})


class PolicySettings(KeptReferenceSettings, StageBase):
    """Group relative policy optimization (Shao et al. 2024): answers drawn from the model itself are rewarded, and those above
    the mean of their group become likelier."""

    data: Annotated[DataConfig, BeforeValidator(as_training_source), AfterValidator(_last_turn)]
    rewards: Rewards = Field(description="what an answer is rewarded for, by name")
    reward_timeout: Annotated[float, Field(gt=0)] = Field(
        default=60.0, description="seconds that one reward may take for the answers of a rollout"
    )
    rollout: RolloutConfig = RolloutConfig()
    loss_type: Literal["grpo", "dr_grpo", "dapo"] = Field(
        default="dapo",
        description="dapo: mean over tokens; grpo: over answers of the mean over tokens; dr_grpo: constant divisor",
    )
    scale_rewards: Literal["group", "batch", "none"] = Field(
        default="group", description="what the standard deviation is taken of, by which advantages are divided"
    )
    beta: Annotated[float, Field(ge=0)] = Field(default=0.0, description="weight of the KL divergence from the start model")
    epsilon: Annotated[float, Field(gt=0, lt=1)] = Field(default=0.2, description="clipping of the importance ratio")
    epsilon_high: Annotated[float, Field(gt=0)] | None = Field(
        default=None, description="clipping above 1, such as 0.28; null: epsilon"
    )
    mask_truncated: bool = Field(default=False, description="answers that are cut do not count in the loss")
    optimizer: PolicyOptimizer = OptimizerConfig(**POLICY_OPTIMIZER)
    evaluation: EvaluationConfig = EvaluationConfig(generated_answers=GeneratedAnswersConfig())
    guards: PolicyGuardsConfig = PolicyGuardsConfig()  # pyright: ignore[reportIncompatibleVariableOverride]
    metric_for_best_model: SelectionMetricName = Field(
        default="reward",
        description="what is best at an evaluation: the highest mean reward or another score of greedy answers, or the lowest "
        "loss of the validation rows' own answers",
    )

    @property
    def loss_unit(self) -> str:
        """The objective has no unit."""
        return "per token" if self.loss_type == "dapo" else "per answer"

    @property
    def answers_per_example(self) -> int:
        """Answers to each prompt."""
        return self.rollout.num_generations

    @property
    def keeps_reference_model(self) -> bool:
        """Whether the start model stays in memory, for the KL divergence."""
        return self.beta > 0

    @model_validator(mode="before")
    @classmethod
    def _fill_in_answers(cls, value: Any) -> Any:
        """Answers to validation rows are generated unless `generated_answers: null` says otherwise, by default as long as those
        of the rollout."""
        if not isinstance(value, dict):
            return value
        evaluation, rollout = value.get("evaluation", {}), value.get("rollout", {})
        if not isinstance(evaluation, dict) or not isinstance(rollout, dict):
            return value
        answers = evaluation.get("generated_answers", {})
        if not isinstance(answers, dict) or "max_new_tokens" not in rollout:
            return {**value, "evaluation": {**evaluation, "generated_answers": answers}}
        answers = {"max_new_tokens": rollout["max_new_tokens"], **answers}
        return {**value, "evaluation": {**evaluation, "generated_answers": answers}}

    @model_validator(mode="after")
    def _check_prompts(self) -> "PolicySettings":
        if self.batch.tokens_per_step is not None:
            raise ValueError(
                "batch.tokens_per_step: an update of grpo is a number of prompts: write micro_batch_size × "
                "gradient_accumulation_steps"
            )
        if Duration.parse(self.duration).unit == "tokens":
            raise ValueError(
                f"duration: {self.duration}: how many tokens grpo draws is not known before: write epochs or steps"
            )
        if self.rollout.max_new_tokens > self.data.max_seq_len:
            raise ValueError(
                f"rollout.max_new_tokens {self.rollout.max_new_tokens} is above data.max_seq_len {self.data.max_seq_len}, "
                "which holds prompt and answer"
            )
        return self
