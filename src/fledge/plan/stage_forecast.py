"""What one stage will take on a piece of hardware: its amounts, its work and its time."""

import math
from dataclasses import dataclass

from fledge.data import PackedDataset
from fledge.model.cost import ModelCost
from fledge.plan.device_batch import DeviceBatch
from fledge.plan.evaluation import evaluation_interval, evaluations
from fledge.plan.horizon import TrainingHorizon
from fledge.plan.stage import StagePlan
from fledge.plan.time import Hardware, Range, StageTime, seconds_of_exchange, seconds_of_work
from fledge.plan.work import Amounts, Work, stage_work
from fledge.recipe.schema import BatchConfig, RuntimeConfig, Stage

BYTES = {"fp32": 4, "tf32": 4, "bf16": 2, "fp16": 2}  # of an activation in a precision
GRADIENT_BYTES = 4  # of a gradient: it is exchanged in float32


@dataclass(frozen=True, kw_only=True)
class StageInputs:
    """A planned stage: `stage` with all numbers, its plan, horizon and data, and the cost of its model. `trained`: parameters
    that get a gradient. `starts_fresh`: from new weights. `reward_models`: bytes of those that judge answers. `batch`: as the
    recipe has it; `is_for_this_machine`: the micro-batch of the horizon was chosen by this machine's memory."""

    stage: Stage
    plan: StagePlan
    horizon: TrainingHorizon
    train: PackedDataset
    validation: PackedDataset | None
    cost: ModelCost
    runtime: RuntimeConfig
    trained: int
    starts_fresh: bool = False
    reward_models: float = 0.0
    batch: BatchConfig | None = None
    is_for_this_machine: bool = True

    @property
    def micro_batches(self) -> int:
        """Micro-batches of all updates."""
        return self.horizon.micro_batches(self.horizon.steps)

    @property
    def evaluations(self) -> int:
        """Evaluations while the stage trains."""
        return evaluations(self.stage, self.horizon.steps)

    @property
    def saves(self) -> int:
        """Checkpoints of the stage, that of the start included."""
        every = self.stage.checkpoint.every_steps or evaluation_interval(self.stage, self.horizon.steps)
        return 1 + math.ceil(self.horizon.steps / every)

    def amounts(self) -> Amounts:
        """The tokens of the stage."""
        plan = self.plan
        return Amounts(
            tokens=plan.tokens,
            target_tokens=plan.target_tokens,
            positions=self.horizon.rows * self.train.packed_length * self.stage.answers_per_example,
            updates=plan.steps,
            epochs=plan.epochs,
            mean_context=self.train.mean_context,
        )


def work_of(inputs: StageInputs, precision: str) -> Work:
    """The work of training, whose activations are computed in `precision`."""
    every = inputs.runtime.activation_checkpoint_every
    return stage_work(inputs.stage, inputs.cost, inputs.amounts(), checkpoint_every=every, size=BYTES[precision])


def evaluation_work(inputs: StageInputs, precision: str) -> Work:
    """The work of all evaluations of the loss: before, while and after the stage trains. Generated answers are not counted."""
    data, cost = inputs.validation, inputs.cost
    rows = 0 if data is None else min(len(data.layout), inputs.stage.evaluation.max_packed_rows)
    positions = (2 + inputs.evaluations) * rows * inputs.train.packed_length
    block = cost.config.num_hidden_layers * cost.block_bytes(BYTES[precision], compiled=True)
    return Work(
        blocks=cost.body_flops(0.0) * positions,
        attention=(cost.body_flops(inputs.train.mean_context) - cost.body_flops(0.0)) * positions,
        head=cost.head_flops() * positions,
        recomputed=0.0,
        reference=0.0,
        traffic=2 * block * positions,
    )


def estimated_time(
    inputs: StageInputs, hardware: Hardware, precision: str, basis: str, share: DeviceBatch | None = None
) -> StageTime:
    """The time of a stage from peaks of products and bandwidth; `hardware.count` devices share the rows of each update.
    `share`: what each of them has; None: as the stage is planned."""
    layers, count, horizon = inputs.cost.config.num_hidden_layers, hardware.count, inputs.horizon
    share = share or DeviceBatch.of(horizon.global_batch_rows, horizon.micro_batch_size, count)
    full = horizon.steps * horizon.gradient_accumulation_steps
    micro_batches = max(float(horizon.steps), horizon.steps * share.micro_batches * inputs.micro_batches / full)
    on_one = seconds_of_work(work_of(inputs, precision).divided(count), hardware, launches=layers * micro_batches)
    exchange = seconds_of_exchange(hardware, GRADIENT_BYTES * inputs.trained, horizon.steps, share.micro_batches)
    evaluating = seconds_of_work(evaluation_work(inputs, precision).divided(count), hardware)
    return StageTime(training=on_one + exchange, evaluation=evaluating, exchange=exchange, basis=basis)


def measured_time(training: float, evaluation: float, spread: float, basis: str) -> StageTime:
    """The time of a stage from measured seconds, which differ by a share `spread` from what will be."""
    around = Range(1 / (1 + spread), 1 + spread)
    none = Range(0.0, 0.0)
    return StageTime(training=around.scaled(training), evaluation=around.scaled(evaluation), exchange=none, basis=basis,
                     is_measured=True)  # fmt: skip
