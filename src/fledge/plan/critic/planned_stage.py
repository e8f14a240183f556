"""A stage as it will be trained, which the checks of the critic read, and the findings that they make of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fledge.data import FORMATS, PackedDataset, StageDataset
from fledge.findings import Confidence, Finding, Severity
from fledge.model.cost import ModelCost
from fledge.plan.lr_schedule import learning_rate
from fledge.plan.stage import StagePlan
from fledge.recipe.schema import Recipe, RuntimeConfig, Stage

SAMPLED_STEPS = 1000  # of which the rates are added up
Patch = Mapping[str, Any]
"""A change of the recipe: dotted keys and their new values."""


@dataclass(frozen=True, kw_only=True)
class PlannedStage:
    """A stage as it will be trained: `stage` has all numbers, `recipe` is as it was written.

    `cost`: of its model. `starts_fresh`: whether that starts from fresh weights. `capability`: of the GPU that trains, as in
    `gpu_capability`.
    """

    name: str
    recipe: Recipe
    stage: Stage
    plan: StagePlan
    data: StageDataset
    cost: ModelCost
    starts_fresh: bool
    capability: tuple[int, int] | None

    @property
    def train(self) -> PackedDataset:
        """The training data."""
        return self.data.train

    @property
    def validation(self) -> PackedDataset | None:
        """The validation data."""
        return self.data.validation

    @property
    def width(self) -> int:
        """The hidden size of the model."""
        return self.cost.config.hidden_size

    @property
    def written(self) -> Stage:
        """The stage as the recipe has it, where settings may be `auto`."""
        return self.recipe.stages[self.name]

    @property
    def compares_answers(self) -> bool:
        """Whether an example is several answers to compare."""
        return len(FORMATS[self.stage.kind].sequence_names) > 1

    @property
    def has_native_sizes(self) -> bool:
        """Whether the recipe gives the sizes of the model, and may so change them."""
        model, stages = self.recipe.model, self.recipe.stages.values()
        return model.path is None and model.config is None and all(one.init_from is None for one in stages)

    @property
    def keeps_best(self) -> bool:
        """Whether the validation data protects the result from training too long."""
        return self.plan.select_checkpoint == "best" or self.stage.early_stopping.patience is not None

    @property
    def readings(self) -> float:
        """How often a row is read on average: the epochs, unless sources are read more or less often in one."""
        if self.train.mixture is None:
            return self.plan.epochs
        return self.plan.epochs * self.train.num_tokens / int(self.train.examples.tokens_per_example().sum())

    @cached_property
    def summed_rates(self) -> float:
        """The sum of the learning rates of all steps."""
        steps = self.plan.steps
        sampled = range(0, steps, max(1, steps // SAMPLED_STEPS))
        rates = (learning_rate(step, steps, self.stage.optimizer, self.stage.schedule) for step in sampled)
        return steps * sum(rates) / len(sampled)

    def key(self, key: str) -> str:
        """The dotted key of the recipe for a key of the stage."""
        return f"stages.{self.name}.{key}"

    def patch(self, **values: Any) -> dict[str, Any]:
        """A patch of keys of the stage; `__` stands for the dot of a key."""
        return {self.key(key.replace("__", ".")): value for key, value in values.items()}

    def finding(
        self, key: str, message: str, hint: str, *, sure: Confidence, evidence: Patch, patch: Patch | None,
        severity: Severity = "warning",
    ) -> Finding:  # fmt: skip
        """A finding about a key of the stage, or of the recipe where `key` begins with a section of the recipe."""
        of_run = key.partition(".")[0] in type(self.recipe).model_fields
        where = key if of_run else self.key(key)
        return Finding(check="", severity=severity, message=message, where=where, hint=hint, confidence=sure,
                       evidence=evidence, patch=patch)  # fmt: skip

    def longer_context(self, length: int) -> dict[str, Any] | None:
        """A patch with which rows have `length` tokens; None if the model has fewer positions."""
        patch = self.patch(data__max_seq_len=length)
        if length <= self.cost.config.max_position_embeddings:
            return patch
        return {**patch, "model.max_position_embeddings": length} if self.has_native_sizes else None


def gpu_capability(runtime: RuntimeConfig) -> tuple[int, int] | None:
    """CUDA compute capability of the GPU that a run of these settings uses, such as (8, 0); None where it uses the CPU, or a
    GPU that is not at hand."""
    import torch

    if runtime.device == "cpu" or not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_capability()


def counted(count: int, noun: str) -> str:
    """`1 row`, `2 rows`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
