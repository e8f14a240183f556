"""Steps, tokens, warm-up, batch and optimizer of a stage, exactly."""

from dataclasses import asdict, dataclass
from typing import Any

from fledge.data import FORMATS, PackedDataset
from fledge.errors import FledgeError
from fledge.model.cost import ModelCost
from fledge.plan.horizon import TrainingHorizon, compute_steps
from fledge.plan.hyperparameters import RunSize, resolve_stage
from fledge.plan.lr_schedule import min_lr, warmup_steps
from fledge.recipe.schema import ModelConfig, RuntimeConfig, Stage


@dataclass(frozen=True, kw_only=True)
class StagePlan:
    """plan.json. Tokens are positions of packed rows that hold data; padding is not counted. `notes` say how the numbers
    that the recipe left to `auto` came about.

    `label`: what one example is called; `loss_unit`: the unit of the stage's loss. Reports read both."""

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
    micro_rows: int
    effective_batch_tokens: int
    first_batch_rows: int
    batch_warmup_steps: int
    optimizer: str
    learning_rate: float
    min_learning_rate: float
    betas: tuple[float, float]
    weight_decay: float
    notes: list[str]

    def as_dict(self) -> dict[str, Any]:
        """For plan.json."""
        return asdict(self)


def plan_stage(
    stage: Stage,
    train: PackedDataset,
    cost: ModelCost,
    chosen: list[str] | None = None,
) -> tuple[StagePlan, TrainingHorizon, Stage]:
    """What the loop will do, and the stage with plain numbers where its recipe says `auto`. FledgeError where a warm-up is
    longer than the stage, or the lowest rate above the rate that was derived. `chosen` says what was decided before."""
    reach = compute_steps(stage.duration, stage.batch, train.packed_rows_in, train.packed_length)
    warm = warmup_steps(stage.schedule, reach.steps)
    count = cost.parameters()
    share = train.epochs_after(reach.rows)
    tokens = round(train.num_tokens * share)
    batch_tokens = round(reach.global_batch_rows * train.num_tokens / len(train))
    plain, notes = resolve_stage(stage, RunSize(cost.config.hidden_size, batch_tokens, reach.steps, tokens))
    rate, betas, decay = plain.optimizer.numbers()
    plan = StagePlan(
        kind=stage.kind,
        label=FORMATS[stage.kind].label,
        loss_unit=stage.loss_unit,
        parameters=count.total,
        active_parameters=count.active,
        context=stage.data.max_seq_len,
        rows=len(train),
        epochs=share,
        steps=reach.steps,
        tokens=tokens,
        target_tokens=round(train.num_target_tokens * share),
        warmup_steps=warm,
        warmup_share=warm / reach.steps,
        effective_batch_rows=reach.global_batch_rows,
        micro_rows=reach.micro,
        effective_batch_tokens=batch_tokens,
        first_batch_rows=reach.micro * reach.window_at(0),
        batch_warmup_steps=reach.batch_warmup_steps,
        optimizer=plain.optimizer.name,
        learning_rate=rate,
        min_learning_rate=min_lr(plain.schedule, rate),
        betas=betas,
        weight_decay=decay,
        notes=(chosen or []) + notes,
    )
    return plan, reach, plain


def with_recorded_settings(stage: Stage, before: dict[str, Any]) -> Stage:
    """A stage with the numbers that were chosen for it when it began, from its plan.json."""
    rows, optimizer = before["effective_batch_rows"], stage.optimizer
    micro = before["micro_rows"] if stage.batch.micro_batch_size == "auto" else stage.batch.micro_batch_size
    chosen = {"learning_rate": before["learning_rate"], "betas": tuple(before["betas"]), "weight_decay": before["weight_decay"]}
    batch = stage.batch.model_copy(
        update={"micro_batch_size": micro, "gradient_accumulation_steps": rows // micro, "tokens_per_step": None}
    )
    optimizer = optimizer.model_copy(update={key: chosen[key] for key in optimizer.automatic})
    return stage.model_copy(update={"batch": batch, "optimizer": optimizer})


def check_settings_have_effect(stage: Stage, steps: int, config: ModelConfig, machine: RuntimeConfig) -> None:
    """FledgeError for what the recipe asks for and this model or length leaves no room for."""
    layers = config.num_hidden_layers
    if machine.activation_checkpoint_every > layers:
        raise FledgeError(
            f"every {machine.activation_checkpoint_every}th block is to be computed again, but the model has only {layers}",
            where="runtime.activation_checkpointing",
            hint=f"write a number up to {layers}, or full",
        )
    if stage.ema.decay is not None and round(stage.ema.start_fraction * steps) >= steps:
        raise FledgeError(
            f"averaging begins after all {steps:,} steps", where="ema.start_fraction", hint="write a smaller share"
        )
