"""A stage as it will be trained, which the checks of the critic read, and the findings that they make of it."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from fledge.data import FORMATS, DataReport, PackedDataset
from fledge.errors import FledgeError
from fledge.findings import Confidence, Finding, Severity
from fledge.model.cost import ModelCost
from fledge.model.cpu_products import multiplies_bf16
from fledge.plan.horizon import compute_steps, pinned_batch
from fledge.plan.lr_schedule import learning_rate
from fledge.plan.row_length import keys_of_length
from fledge.plan.stage import StagePlan, check_labels
from fledge.recipe.schema import Recipe, RuntimeConfig, Stage

SAMPLED_STEPS = 1000  # of which the rates are added up
LONG_WARMUP = 0.5  # of the steps: one-cycle schedules rise in 30 to 45 % of them (Smith & Topin 2018), others in less
USUAL_WARMUP, USUAL_RAMP = 0.05, 0.1  # shares of the steps
Patch = Mapping[str, Any]
"""A change of the recipe: dotted keys and their new values."""


@dataclass(frozen=True, kw_only=True)
class PlannedStage:
    """A stage as it will be trained: `stage` has all numbers, `recipe` is as it was written.

    `train`, `validation`: its data. `report`: what became of the rows of the data; None: they are not at hand, and `train` only
    has as many tokens. `cost`: of its model. `starts_fresh`: whether that starts from fresh weights. `capability`: of the GPU
    that trains, as in `gpu_capability`. `cpu_has_bf16`: whether the CPU that trains multiplies bf16; None: not known, or no CPU
    trains.
    """

    name: str
    recipe: Recipe
    stage: Stage
    plan: StagePlan
    train: PackedDataset
    validation: PackedDataset | None
    report: DataReport | None
    cost: ModelCost
    starts_fresh: bool
    capability: tuple[int, int] | None
    cpu_has_bf16: bool | None = None

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

    def of_other_data(self, **values: Any) -> dict[str, Any]:
        """A patch of keys of the stage, as in `patch`, that change the data, which is then built anew, or only that."""
        return self.patch(**values) | ({} if self.recipe.built_dataset is None else {"built_dataset": None})

    def rows_of_update(self, rows: int) -> dict[str, Any]:
        """A patch with which an update has so many rows in one micro-batch, without what else sets or changes its size."""
        written = self.written.batch
        patch = self.patch(batch__micro_batch_size=rows, batch__gradient_accumulation_steps=1)
        if written.tokens_per_step is not None:
            patch |= self.patch(batch__tokens_per_step=None)
        return patch if written.warmup is None else patch | self.patch(batch__warmup=None)

    def of_steps(self, steps: int) -> dict[str, Any]:
        """A patch of the duration with which the stage has so many steps, whose updates have as many rows as now."""
        pinned = pinned_batch(self.written.batch, self.plan.effective_batch_rows)
        sizes = {f"batch__{key}": value for key, value in pinned.items()}
        return self.patch(duration=f"{steps} steps", **sizes)

    def mixes_labels(self, duration: str, rows: int) -> bool:
        """Whether all updates of so many rows read answers of both labels, as the plan asks; true where examples have none."""
        if self.train.examples.labels is None:
            return True
        sizes = {"micro_batch_size": rows, "gradient_accumulation_steps": 1, "tokens_per_step": None, "warmup": None}
        batch = self.stage.batch.model_copy(update=sizes)
        try:
            check_labels(self.train, compute_steps(duration, batch, self.train.packed_rows_in, self.train.packed_length))
        except FledgeError:
            return False
        return True

    def with_warmups(self, patch: Patch, steps: float) -> dict[str, Any]:
        """A patch that leaves about so many steps: warm-ups that are counted in steps and would take most of them become shares
        of the stage."""
        whole, written = dict(patch), self.written
        if written.schedule.warmup >= 1 and self.plan.warmup_steps > LONG_WARMUP * steps:
            whole |= self.patch(schedule__warmup=USUAL_WARMUP)
        ramp = written.batch.warmup
        if ramp is not None and ramp.ramp_steps >= 1 and self.plan.batch_warmup_steps > LONG_WARMUP * steps:
            whole |= self.patch(batch__warmup__ramp_steps=USUAL_RAMP)
        return whole

    def other_context(self, length: int) -> dict[str, Any] | None:
        """A patch with which rows have `length` tokens, and all that is counted in rows or tokens still fits them, as in
        `keys_of_length`, and warm-ups. None if the model has fewer positions."""
        batch = self.written.batch
        micro = None if batch.micro_batch_size == "auto" else batch.micro_batch_size
        keys = keys_of_length(self.written, length, batch.tokens_per_step, micro)
        patch = self.of_other_data(**{key.replace(".", "__"): value for key, value in keys.items()})
        if length > self.cost.config.max_position_embeddings:
            if not self.has_native_sizes:
                return None
            patch |= {"model.max_position_embeddings": length}
        by_rows = "step" not in self.stage.duration and batch.tokens_per_step is None
        return self.with_warmups(patch, self.plan.steps * (min(1.0, self.plan.context / length) if by_rows else 1.0))


def gpu_capability(runtime: RuntimeConfig) -> tuple[int, int] | None:
    """CUDA compute capability of the GPU that a run of these settings uses, such as (8, 0); None where it uses the CPU, or a
    GPU that is not at hand."""
    import torch

    if runtime.device == "cpu" or not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_capability()


def cpu_has_bf16(runtime: RuntimeConfig) -> bool | None:
    """Whether the CPU that a run of these settings uses multiplies bf16; None where that is not known, or it uses a GPU."""
    return multiplies_bf16() if runtime.device != "cuda" and gpu_capability(runtime) is None else None


def counted(count: int, noun: str) -> str:
    """`1 row`, `2 rows`."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"
