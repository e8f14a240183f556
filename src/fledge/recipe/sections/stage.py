"""The sections and keys that all kinds of stage have."""

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BeforeValidator, Field, field_validator, model_validator

from fledge.metric_names import ALWAYS, ANSWER_METRICS, SELECTION_NAMES
from fledge.recipe.sections.adapter import AdapterConfig
from fledge.recipe.sections.base import ConfigModel, Name, PathText, Positive
from fledge.recipe.sections.data import DataConfig, as_training_source
from fledge.recipe.sections.doctor import DoctorConfig, as_doctor
from fledge.recipe.sections.engine import ADAPTER_RATES, BatchConfig, EMAConfig, OptimizerConfig, ScheduleConfig
from fledge.recipe.sections.evaluation_sets import EvaluationSetConfig
from fledge.recipe.sections.guards import CommonGuards
from fledge.recipe.sections.preference import AnswerSettings
from fledge.recipe.sections.quantization import QuantizationConfig
from fledge.recipe.sections.verdict import VerdictConfig
from fledge.recipe.units import Duration


def _check_answer_metric(name: str) -> str:
    if name not in ANSWER_METRICS:
        raise ValueError(f"'{name}' is no metric of answers (they are {', '.join(ANSWER_METRICS)})")
    return name


def _check_selection_metric(name: str) -> str:
    if name not in SELECTION_NAMES:
        raise ValueError(f"'{name}' cannot choose a checkpoint (these can: {', '.join(SELECTION_NAMES)})")
    return name


class GeneratedAnswersConfig(ConfigModel):
    """Greedy answers to the questions of validation rows, compared with the rows' own answers at each evaluation."""

    rows: Positive = Field(default=200, description="number of validation rows, spread evenly over the data; all, if fewer")
    max_new_tokens: Positive = 128
    bleu: Literal["auto", "zh", "13a", "intl", "char", "none"] | None = Field(
        default=None,
        description="BLEU-4 of the answers too, with this tokenization of sacrebleu; auto: zh where most of the rows' answers "
        "have Chinese characters, else 13a; null: no BLEU",
    )
    metrics: list[Annotated[str, AfterValidator(_check_answer_metric)]] = Field(
        default=[], description="further metrics of the answers, such as [bleu, rouge_l, repetition, refusal]"
    )

    @property
    def scores(self) -> tuple[str, ...]:
        """The names of all metrics of the answers."""
        return tuple(dict.fromkeys((*ALWAYS, *(["bleu"] if self.bleu else []), *self.metrics)))


class EvaluationConfig(ConfigModel):
    """Evaluation on validation data during training, and before and after the stage."""

    every_steps: Positive | None = Field(default=None, description="steps between evaluations; null: ten evaluations per stage")
    max_packed_rows: Positive = Field(default=64, description="number of packed rows of validation data to use, at most")
    generated_answers: GeneratedAnswersConfig | None = Field(
        default=None, description="generate answers to validation questions and score them; null: only the loss is measured"
    )
    sets: dict[Name, EvaluationSetConfig] = Field(
        default={}, description="evaluation sets by name, asked before and after the stage, and while it trains"
    )
    verdict: VerdictConfig = Field(
        default=VerdictConfig(),
        description="thresholds of the verdict at the end of the stage: release, keep training, roll back",
    )


class CheckpointConfig(ConfigModel):
    """Checkpoints during training. The newest `keep_last` are kept, and the best one always."""

    every_steps: Positive | None = Field(default=None, description="steps between checkpoints; null: at every evaluation")
    keep_last: Positive = Field(default=2, description="number of newest checkpoints to keep")


class EarlyStoppingConfig(ConfigModel):
    """Stop the stage if `metric_for_best_model` has not improved by `threshold` in `patience` evaluations, or if the validation
    loss reached `target_loss`."""

    patience: Positive | None = None
    threshold: Annotated[float, Field(ge=0)] = 0.0
    target_loss: Annotated[float, Field(gt=0)] | None = None


class PromptTestsConfig(ConfigModel):
    """Fixed prompts with rules for the answers, run while a stage trains; see docs/evaluation.md."""

    prompts: PathText = Field(description="YAML file with the test cases")
    every_steps: Positive | None = Field(
        default=None, description="steps between runs of the tests; null: only at the end of the stage"
    )
    max_new_tokens: Positive = 128


def _without_eval_prefix(value: object) -> object:
    """The metric without the prefix that transformers allows."""
    return value.removeprefix("eval_") if isinstance(value, str) else value


SelectionMetricName = Annotated[str, BeforeValidator(_without_eval_prefix), AfterValidator(_check_selection_metric)]


OF_REWARDS = ("reward",)  # metrics that only stages with rewards have


class StageBase(ConfigModel):
    """The keys that all kinds of stage have."""

    init_from: PathText | None = Field(
        default=None, description="model directory to start from; null: the result of the previous stage"
    )
    adapter: AdapterConfig | None = Field(
        default=None, description="train a low-rank adapter and leave the weights as they are; null: train the weights"
    )
    quantization: QuantizationConfig | None = Field(
        default=None, description="keep the weights beside the adapter in 4 bits (QLoRA); null: as the model has them"
    )
    data: Annotated[DataConfig, BeforeValidator(as_training_source)]
    duration: str = "1 epochs"
    batch: BatchConfig = BatchConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    schedule: ScheduleConfig = ScheduleConfig()
    ema: EMAConfig = EMAConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()
    early_stopping: EarlyStoppingConfig = EarlyStoppingConfig()
    guards: CommonGuards = CommonGuards()
    doctor: Annotated[DoctorConfig, BeforeValidator(as_doctor)] = DoctorConfig()
    prompt_tests: PromptTestsConfig | None = None
    select_checkpoint: Literal["auto", "last", "best"] = Field(
        default="auto",
        description="which checkpoint the next stage starts from, the one before the first step included; auto: the best where "
        "validation data can decide, else the last",
    )
    metric_for_best_model: SelectionMetricName = Field(
        default="loss",
        description="what is best at an evaluation: the lowest loss, or the highest score of the answers that "
        "evaluation.generated_answers generates",
    )

    @property
    def loss_unit(self) -> str:
        """The unit of the stage's loss: "nats/token" for the mean negative log-likelihood of the targets."""
        return "nats/token"

    @property
    def answers_per_example(self) -> int:
        """Sequences that an update trains for each example of the data, if it draws them itself; else 1."""
        return 1

    @property
    def trains_reward_model(self) -> bool:
        """Whether the result gives rewards for answers, and is no language model."""
        return False

    @property
    def asks_in_turns(self) -> bool:
        """Whether the stage asks its model questions through the chat template, whatever it trains on."""
        return self.prompt_tests is not None or any(one.uses_chat_template for one in self.evaluation.sets.values())

    @property
    def keeps_reference_model(self) -> bool:
        """Whether a frozen copy of the initial model stays in memory during training."""
        return False

    @property
    def precomputes_reference(self) -> bool:
        """Whether the initial model computes the log-probabilities of all examples once, before the first step."""
        return False

    @property
    def prompt_sharing(self) -> Literal["auto"] | bool:
        """Whether the sequences of an example are to share their prompt; false where an example has but one."""
        return False

    @property
    def measures_disentanglement(self) -> bool:
        """Whether evaluations compare the gradients of chosen and rejected answers."""
        return False

    @property
    def reference_placement(self) -> tuple[str | None, str | None]:
        """Precision and device of that copy; None: those of the model in training."""
        return None, None

    @model_validator(mode="before")
    @classmethod
    def _adapter_rate(cls, value: Any) -> Any:
        """An adapter's own learning rate where the recipe names none."""
        if not isinstance(value, dict) or value.get("adapter") is None or value.get("kind") not in ADAPTER_RATES:
            return value
        optimizer = value.get("optimizer", {})
        if not isinstance(optimizer, dict) or "learning_rate" in optimizer:
            return value
        return {**value, "optimizer": {**optimizer, "learning_rate": ADAPTER_RATES[value["kind"]]}}

    @field_validator("duration")
    @classmethod
    def _check_duration(cls, value: str) -> str:
        Duration.parse(value)
        return value

    @model_validator(mode="after")
    def _check_adapter_optimizer(self) -> "StageBase":
        if self.adapter is not None and self.optimizer.name == "adafactor":
            raise ValueError(
                "adafactor moves matrices by a share of their size, and half of an adapter begins as zero: it would hardly "
                "learn; set optimizer.name to adamw"
            )
        return self

    @model_validator(mode="after")
    def _check_lengths_of_answers(self) -> "StageBase":
        lengths = {name: getattr(self.data, name) for name in ("max_prompt_length", "max_completion_length")}
        if given := [name for name, length in lengths.items() if length is not None and not isinstance(self, AnswerSettings)]:
            raise ValueError(
                f"data.{given[0]} belongs to preference, kto and reward stages; data.max_seq_len limits other rows"
            )
        return self

    @model_validator(mode="after")
    def _check_quantization(self) -> "StageBase":
        if self.quantization is not None and self.adapter is None:
            raise ValueError(
                "weights in 4 bits cannot be trained: add the section adapter, which trains low-rank matrices beside them, or "
                "leave quantization out"
            )
        return self

    @model_validator(mode="after")
    def _check_metric(self) -> "StageBase":
        if self.metric_for_best_model != "loss" and self.evaluation.generated_answers is None:
            raise ValueError(
                f"metric_for_best_model: {self.metric_for_best_model} is a score of answers: add the section "
                "evaluation.generated_answers, such as evaluation: {generated_answers: {rows: 200}}"
            )
        if self.metric_for_best_model in OF_REWARDS and "rewards" not in type(self).model_fields:
            raise ValueError("metric_for_best_model: reward is the mean of the rewards of a grpo stage; here there are none")
        answers = self.evaluation.generated_answers
        name = self.metric_for_best_model
        if name not in ("loss", *OF_REWARDS) and answers is not None and name not in answers.scores:
            where = "bleu, such as bleu: auto" if name == "bleu" else f"metrics, such as metrics: [{name}]"
            raise ValueError(f"metric_for_best_model: {name} needs evaluation.generated_answers.{where}")
        return self

    @model_validator(mode="after")
    def _check_min_lr(self) -> "StageBase":
        low, high = (
            self.schedule.min_lr,
            self.optimizer.learning_rate,
        )  # a percentage is never above; `auto` is checked when it is resolved
        if not isinstance(low, str) and not isinstance(high, str) and low > high:
            raise ValueError(
                f"schedule.min_lr {self.schedule.min_lr} is above optimizer.learning_rate {self.optimizer.learning_rate}"
            )
        return self
