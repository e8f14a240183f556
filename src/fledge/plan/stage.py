"""Steps, tokens, warm-up and batch of a stage, exactly."""

from dataclasses import asdict, dataclass
from typing import Any

from fledge.data import PackedData
from fledge.model.cost import parameters
from fledge.recipe.schema import ModelConfig, PreferenceStage, PretrainStage, SftStage
from fledge.train.length import Extent, extent
from fledge.train.schedule import warmup_steps


@dataclass(frozen=True)
class StagePlan:
    """plan.json. Tokens are positions of packed rows that hold data; padding is not counted."""

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
    effective_batch_tokens: int

    def as_dict(self) -> dict[str, Any]:
        """For plan.json."""
        return asdict(self)


def plan_stage(
    stage: PretrainStage | SftStage | PreferenceStage, train: PackedData, config: ModelConfig, vocab_size: int
) -> tuple[StagePlan, Extent]:
    """What the loop will do. FledgeError where the warm-up is longer than the stage."""
    reach = extent(stage.length, stage.batch, train.rows_in, train.row_length)
    warm = warmup_steps(stage.schedule, reach.steps)
    count = parameters(config, vocab_size)
    share = train.epochs_at(reach.rows)
    tokens = round(train.positions * share)
    return StagePlan(
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
        effective_batch_tokens=round(reach.window * train.positions / len(train)),
    ), reach
