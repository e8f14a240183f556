"""Steps, tokens, warm-up, batch and optimizer of a stage, exactly."""

from dataclasses import asdict, dataclass
from typing import Any

from fledge.data import PackedData
from fledge.model.cost import parameters
from fledge.recipe.schema import ModelConfig, PreferenceStage, PretrainStage, SftStage
from fledge.train.length import Extent, extent
from fledge.train.schedule import lowest_rate, warmup_steps
from fledge.train.tuning import Run, resolve_stage


@dataclass(frozen=True)
class StagePlan:
    """plan.json. Tokens are positions of packed rows that hold data; padding is not counted. `notes` say how the numbers
    that the recipe left to `auto` came about."""

    kind: str
    parameters: int
    active_parameters: int
    context: int
    rows: int
    epochs: float
    steps: int
    tokens: int
    supervised_tokens: int
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
    stage: PretrainStage | SftStage | PreferenceStage,
    train: PackedData,
    config: ModelConfig,
    vocab_size: int,
    chosen: list[str] | None = None,
) -> tuple[StagePlan, Extent, PretrainStage | SftStage | PreferenceStage]:
    """What the loop will do, and the stage with plain numbers where its recipe says `auto`. FledgeError where a warm-up is
    longer than the stage, or the lowest rate above the rate that was derived. `chosen` says what was decided before."""
    reach = extent(stage.length, stage.batch, train.rows_in, train.row_length)
    warm = warmup_steps(stage.schedule, reach.steps)
    count = parameters(config, vocab_size)
    share = train.epochs_at(reach.rows)
    tokens = round(train.positions * share)
    batch_tokens = round(reach.window * train.positions / len(train))
    plain, notes = resolve_stage(stage, Run(config.hidden_size, batch_tokens, reach.steps, tokens))
    rate, betas, decay = plain.optimizer.numbers()
    plan = StagePlan(
        kind=stage.kind,
        parameters=count.total,
        active_parameters=count.active,
        context=stage.data.context,
        rows=len(train),
        epochs=share,
        steps=reach.steps,
        tokens=tokens,
        supervised_tokens=round(train.supervised * share),
        warmup_steps=warm,
        warmup_share=warm / reach.steps,
        effective_batch_rows=reach.window,
        micro_rows=reach.micro,
        effective_batch_tokens=batch_tokens,
        first_batch_rows=reach.micro * reach.window_at(0),
        batch_warmup_steps=reach.over,
        optimizer=plain.optimizer.name,
        learning_rate=rate,
        min_learning_rate=lowest_rate(plain.schedule, rate),
        betas=betas,
        weight_decay=decay,
        notes=(chosen or []) + notes,
    )
    return plan, reach, plain
