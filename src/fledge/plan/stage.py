"""The plan of a stage: exact steps, tokens, warm-up, batch size and optimizer settings."""

import math
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from fledge.data import FORMATS, PackedDataset
from fledge.errors import FledgeError
from fledge.model.cost import ModelCost
from fledge.plan.evaluation import Selection, resolve_selection
from fledge.plan.horizon import TrainingHorizon, compute_steps
from fledge.plan.hyperparameters import RunSize, resolve_stage
from fledge.plan.lr_schedule import min_lr, warmup_steps
from fledge.recipe.schema import ModelConfig, RuntimeConfig, Stage

BOTH_LABELS = 3  # of `PackedDataset.label_kinds`


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """The plan of a stage, stored as plan.json.

    Tokens are positions of packed rows that hold data; padding is not counted. Where a stage draws answers, these are taken to
    be as long as the rows' own. `label` names one example and `loss_unit` is the unit of the stage's loss; reports read both.
    `notes` explain the numbers that the recipe left to `auto`.
    """

    kind: str
    label: str
    loss_unit: str
    parameters: int
    active_parameters: int
    context: int
    rows: int
    epochs: float
    steps: int
    tokens: int
    target_tokens: int
    warmup_steps: int
    warmup_share: float
    effective_batch_rows: int
    micro_batch_size: int
    effective_batch_tokens: int
    first_batch_rows: int
    batch_warmup_steps: int
    optimizer: str
    learning_rate: float
    min_learning_rate: float
    betas: tuple[float, float]
    weight_decay: float
    select_checkpoint: Selection
    notes: list[str]

    def as_dict(self) -> dict[str, Any]:
        """The values for plan.json."""
        return asdict(self)


def plan_stage(
    stage: Stage,
    train: PackedDataset,
    cost: ModelCost,
    chosen: list[str] | None = None,
    validation: PackedDataset | None = None,
) -> tuple[StagePlan, TrainingHorizon, Stage]:
    """The plan of a stage, its horizon, and the stage with numbers in place of `auto`.

    `chosen`: sentences about earlier choices, which the plan's notes start with. Raises FledgeError if a warm-up is longer than
    the stage or the minimum learning rate is above the derived learning rate.
    """
    horizon = compute_steps(stage.duration, stage.batch, train.packed_rows_in, train.packed_length)
    warmup = warmup_steps(stage.schedule, horizon.steps)
    count = cost.parameters()
    epochs = train.epochs_after(horizon.rows)
    tokens = round(stage.answers_per_example * train.num_tokens * epochs)
    batch_tokens = round(stage.answers_per_example * horizon.global_batch_rows * train.num_tokens / len(train))
    resolved, notes = resolve_stage(stage, RunSize(cost.config.hidden_size, batch_tokens, horizon.steps, tokens))
    rate, betas, decay = resolved.optimizer.numbers()
    selection, reasons = resolve_selection(resolved, validation, horizon.steps)
    resolved = resolved.model_copy(update={"select_checkpoint": selection})
    plan = StagePlan(
        kind=stage.kind,
        label=FORMATS[stage.kind].label,
        loss_unit=stage.loss_unit,
        parameters=count.total,
        active_parameters=count.active,
        context=stage.data.max_seq_len,
        rows=len(train),
        epochs=epochs,
        steps=horizon.steps,
        tokens=tokens,
        target_tokens=round(stage.answers_per_example * train.num_target_tokens * epochs),
        warmup_steps=warmup,
        warmup_share=warmup / horizon.steps,
        effective_batch_rows=horizon.global_batch_rows,
        micro_batch_size=horizon.micro_batch_size,
        effective_batch_tokens=batch_tokens,
        first_batch_rows=horizon.micro_batch_size * horizon.accumulation_steps_at(0),
        batch_warmup_steps=horizon.batch_warmup_steps,
        optimizer=resolved.optimizer.name,
        learning_rate=rate,
        min_learning_rate=min_lr(resolved.schedule, rate),
        betas=betas,
        weight_decay=decay,
        select_checkpoint=selection,
        notes=(chosen or []) + notes + reasons,
    )
    return plan, horizon, resolved


def describe_plan(plan: StagePlan) -> str:
    """The plan on one line, for the console."""
    return (
        f"plan: {plan.parameters / 1e6:.1f}M parameters, {plan.steps:,} steps, {plan.tokens:,} tokens "
        f"({plan.epochs:.3g} epochs of {plan.rows:,} rows), warm-up {plan.warmup_steps:,} steps ({plan.warmup_share:.1%}), "
        f"effective batch {plan.effective_batch_rows:,} rows ≈ {plan.effective_batch_tokens:,} tokens"
        + (f", from {plan.first_batch_rows:,} rows over {plan.batch_warmup_steps:,} steps" if plan.batch_warmup_steps else "")
    )


def with_recorded_settings(stage: Stage, recorded: dict[str, Any]) -> Stage:
    """The stage with the numbers that were chosen when it began; `recorded`: the values of its plan.json."""
    rows, optimizer = recorded["effective_batch_rows"], stage.optimizer
    is_open = stage.batch.micro_batch_size == "auto" or stage.batch.merge_micro_batches
    micro = recorded["micro_batch_size"] if is_open else stage.batch.micro_batch_rows
    chosen = {
        "learning_rate": recorded["learning_rate"],
        "betas": tuple(recorded["betas"]),
        "weight_decay": recorded["weight_decay"],
    }
    batch = stage.batch.model_copy(
        update={"micro_batch_size": micro, "gradient_accumulation_steps": rows // micro, "tokens_per_step": None}
    )
    optimizer = optimizer.model_copy(update={key: chosen[key] for key in optimizer.automatic})
    selection = recorded["select_checkpoint"] if stage.select_checkpoint == "auto" else stage.select_checkpoint
    return stage.model_copy(update={"batch": batch, "optimizer": optimizer, "select_checkpoint": selection})


def check_settings_have_effect(
    stage: Stage, steps: int, config: ModelConfig, runtime: RuntimeConfig, validation: PackedDataset | None
) -> None:
    """Raise FledgeError for settings that cannot have an effect with this model, number of steps or validation data."""
    layers = config.num_hidden_layers
    if runtime.activation_checkpoint_every > layers:
        raise FledgeError(
            f"activation checkpointing of every {runtime.activation_checkpoint_every}th block has no effect: "
            f"the model has only {layers} blocks",
            where="runtime.activation_checkpointing",
            hint=f"write a number up to {layers}, or full",
        )
    if stage.ema.decay is not None and round(stage.ema.start_fraction * steps) >= steps:
        raise FledgeError(
            f"averaging would start after the last of {steps:,} steps",
            where="ema.start_fraction",
            hint="write a smaller fraction",
        )
    stopping = stage.early_stopping
    if validation is None and (stopping.patience or stopping.target_loss or stage.select_checkpoint == "best"):
        raise FledgeError("early_stopping and select_checkpoint: best need validation data", where="data.validation")
    if validation is None and stage.evaluation.generated_answers is not None:
        raise FledgeError("evaluation.generated_answers needs validation data", where="data.validation")


def check_labels(train: PackedDataset, horizon: TrainingHorizon) -> None:
    """Raise FledgeError if an update would read answers of one label only, where examples have labels; the last update may be
    too small for both."""
    labels = train.examples.labels
    if labels is None:
        return
    if labels.all() or not labels.any():
        label = "desirable" if labels.all() else "undesirable"
        raise FledgeError(f"all {len(labels):,} answers are labelled {label}: KTO needs both labels", where="data.train",
                          hint="add rows with the other label, or train on these in a stage of kind sft")  # fmt: skip
    kinds: list[np.ndarray] = []
    for epoch in range(math.ceil(train.epochs_after(horizon.rows))):
        layout, order = train.epoch(epoch)
        of_rows = train.label_kinds(layout)
        assert of_rows is not None
        kinds.append(of_rows[order])
    stream = np.concatenate(kinds)[: horizon.rows]
    starts = np.asarray([horizon.first_row(step) for step in range(horizon.steps)])
    labels_of_steps = np.bitwise_or.reduceat(stream, starts)[:-1]
    if (one_sided := int((labels_of_steps != BOTH_LABELS).sum())) == 0:
        return
    gaps = [np.diff(np.flatnonzero(stream & label)).max(initial=1) for label in (1, 2)]
    raise FledgeError(
        f"{one_sided:,} of {horizon.steps:,} updates would read answers of one label only: KTO compares both",
        where="batch",
        hint=f"let an update read at least {max(gaps)} packed rows (micro_batch_size × gradient_accumulation_steps), or "
        "balance the labels",
    )


def without_warmup(stage: Stage) -> Stage:
    """The stage without warm-ups and with a minimum learning rate of 0, which can be planned for any number of steps."""
    schedule = stage.schedule.model_copy(update={"warmup": 0.0, "min_lr": 0.0, "final_div_factor": None})
    return stage.model_copy(update={"schedule": schedule, "batch": stage.batch.model_copy(update={"warmup": None})})
