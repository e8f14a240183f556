"""The work of a stage: floating-point operations by part, and bytes that pass through a device's memory."""

from dataclasses import asdict, dataclass

from fledge.model.cost import ModelCost, checkpointed_layers
from fledge.recipe.schema import Stage

FROZEN_SHARE = 2 / 3  # of three products per weight of the blocks, that of the gradient of a frozen weight is left out
PASSES_OVER_ACTIVATIONS = 4  # each number that a block saves is written once, read twice, and its gradient is written and read


@dataclass(frozen=True, kw_only=True)
class Work:
    """The operations of a whole stage, in FLOPs.

    `blocks`: the matrices of the blocks, forward and backward; `attention`: scores and their products with the values; `head`:
    logits of the supervised tokens; `recomputed`: blocks that activation checkpointing computes again; `reference`: passes of a
    reference model; `precomputed`: the part of these that one process computes before the first step, while all others wait;
    `traffic`: bytes that are read and written besides, which take the time of small models on fast cards.
    """

    blocks: float
    attention: float
    head: float
    recomputed: float
    reference: float
    traffic: float
    precomputed: float = 0.0

    @property
    def flops(self) -> float:
        """All operations."""
        return self.blocks + self.attention + self.head + self.recomputed + self.reference

    def divided(self, count: int) -> "Work":
        """The part of one of `count` devices that share the work evenly, but for what one of them precomputes."""
        parts, alone = {name: value / count for name, value in asdict(self).items()}, self.precomputed
        return Work(**{**parts, "reference": alone + (self.reference - alone) / count, "precomputed": alone})

    def as_dict(self) -> dict[str, float]:
        """The parts and their sum, as JSON values."""
        return {**asdict(self), "flops": self.flops}


@dataclass(frozen=True, kw_only=True)
class Amounts:
    """The tokens of a stage: positions that hold data, supervised ones and all with padding; its updates and epochs; the length
    of documents that attention has to do with (Σ n² / Σ n)."""

    tokens: int
    target_tokens: int
    positions: int
    updates: int
    epochs: float
    mean_context: float


def stage_work(stage: Stage, cost: ModelCost, amounts: Amounts, *, checkpoint_every: int, size: int) -> Work:
    """The work of a stage, of `training_body_flops` and `training_head_flops`.

    `checkpoint_every`: as in the runtime section. `size`: bytes of a number of an activation. Answers that a stage draws itself
    are not counted. Padding takes time like data, so `positions` are computed. Log-probabilities of a reference are precomputed
    for all examples, however few of them the stage reads.
    """
    layers = cost.config.num_hidden_layers
    matrices = cost.body_flops(0.0) * amounts.positions
    attention = (cost.body_flops(amounts.mean_context) - cost.body_flops(0.0)) * amounts.tokens
    again = len(checkpointed_layers(layers, checkpoint_every)) / layers
    frozen = FROZEN_SHARE if stage.adapter is not None else 1.0
    head = cost.training_head_flops() * amounts.target_tokens * frozen
    forward = matrices + attention + cost.head_flops() * amounts.target_tokens
    once = forward / amounts.epochs if stage.precomputes_reference else 0.0
    saved = layers * cost.block_bytes(size, compiled=True) * (1 + again)
    weights = cost.parameters().total * (4 + size)  # read by the update, and copied for the products
    return Work(
        blocks=3 * matrices * frozen,
        attention=3 * attention,
        head=head,
        recomputed=again * (matrices + attention),
        reference=once + forward * stage.keeps_reference_model,
        precomputed=once,
        traffic=PASSES_OVER_ACTIVATIONS * saved * amounts.positions + 6 * weights * amounts.updates,
    )
