"""What would make a stage fit into memory: measures from the cheapest to the most far-reaching, each as a patch of the recipe.

A measure is cheap if training computes the same and takes little longer. What changes the method (an adapter) or the data
(shorter rows) comes last.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, Literal

from fledge.model.quantization import bytes_per_weight
from fledge.plan.device_batch import even_micro_batch
from fledge.plan.memory import largest_micro_batch, needed_bytes
from fledge.plan.memory_moments import MemoryInputs
from fledge.plan.memory_probe import MemoryProbe
from fledge.plan.row_length import keys_of_length
from fledge.recipe.schema import AdapterConfig, OptimizerConfig, QuantizationConfig, RuntimeConfig
from fledge.recipe.sections.engine import ADAPTER_RATES

SHORTEST = 128  # tokens of a row, below which it is not shortened


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What decides about memory: the inputs of the estimate, how it is computed, and the rows of a micro-batch and of an
    update, which `count` devices share. `probe`: a measured peak of the stage. `has_tokens_per_step`: whether the recipe sets
    the size of an update by `tokens_per_step`."""

    inputs: MemoryInputs
    runtime: RuntimeConfig
    micro: int
    rows: int
    count: int = 1
    probe: MemoryProbe | None = None
    has_tokens_per_step: bool = False

    @property
    def own_rows(self) -> int:
        """The rows of an update that a device has at most."""
        return -(-self.rows // self.count)

    @property
    def needs(self) -> float:
        """Bytes of the stage."""
        return needed_bytes(self.inputs, self.runtime, self.micro, self.own_rows, self.probe)

    def largest(self, available: float) -> int | None:
        """The rows of the largest micro-batch of a device that fits and is of use; None: not even one row fits."""
        return largest_micro_batch(self.own_rows, self.inputs, self.runtime, available, self.probe)

    @property
    def tokens_per_step(self) -> int | None:
        """The tokens of an update, where the recipe sets its size by them."""
        return self.rows * self.inputs.row_length if self.has_tokens_per_step else None

    @property
    def is_sharded(self) -> bool:
        """Whether the recipe asks for FSDP, which divides neither adapters nor the moments of 8-bit AdamW."""
        return self.runtime.parallelism == "fsdp"


Limit = Literal["memory", "rows", "speed"]
"""Why a micro-batch is no larger: more rows do not fit, the update has no more, or more would not be faster."""

Patch = dict[str, Any]
Change = Callable[[Plan], tuple[Plan, Patch] | None]
"""The plan after a measure, and the keys of the recipe that it changes; None where it changes nothing."""


@dataclass(frozen=True, kw_only=True)
class Measure:
    """A measure. `patch`: dotted keys of the recipe with their new values; keys of the stage begin with `stage.`, which
    stands for `stages.<name>.`. `needs`: bytes with it, and with those before it if `together`. `costs`: what it costs."""

    patch: Patch
    needs: float
    fits: bool
    costs: str
    together: bool = False

    def of_stage(self, name: str) -> Patch:
        """The patch for the stage of this name."""
        return {key.replace("stage.", f"stages.{name}.", 1): value for key, value in self.patch.items()}


@dataclass(frozen=True, kw_only=True)
class Fit:
    """What fits into `available` bytes. `needs`: bytes of what is wanted. `largest`: the rows of the largest micro-batch that
    fits, divides the rows that a device has of an update, and is no larger than is useful; None: not even one row fits.
    `limit`: why it is no larger. `measures`: empty if what is wanted fits."""

    available: float
    needs: float
    largest: int | None
    limit: Limit
    measures: list[Measure]

    @property
    def fits(self) -> bool:
        """Whether what is wanted fits."""
        return self.needs <= self.available


def _smaller_micro_batch(available: float) -> Change:
    def change(plan: Plan) -> tuple[Plan, Patch] | None:
        largest = plan.largest(available) or 1
        micro = max(size for size in range(1, largest + 1) if plan.rows % size == 0)  # a recipe counts those of all devices
        if micro >= plan.micro:
            return None
        patch: Patch = {
            "stage.batch.micro_batch_size": micro,
            "stage.batch.gradient_accumulation_steps": plan.rows // micro,
        }
        if plan.has_tokens_per_step:  # a recipe has one of the two
            patch["stage.batch.tokens_per_step"] = None
        own = even_micro_batch(plan.own_rows, micro) if plan.count > 1 else micro
        return replace(plan, micro=own, has_tokens_per_step=False), patch

    return change


def _no_second_model(plan: Plan) -> Patch:
    """What must go with a change after which no second model is in memory: its precision and its place, where they are set."""
    placed = ("reference_precision", "reference_device")
    return {f"stage.{key}": None for key in placed if getattr(plan.inputs.stage, key, None) is not None}


def _precomputed_reference(plan: Plan) -> tuple[Plan, Patch] | None:
    if not plan.inputs.reference or not plan.inputs.can_precompute:
        return None
    inputs = replace(plan.inputs, reference=0.0, adapter_copies=0, precomputes_reference=True)
    return replace(plan, inputs=inputs), {"stage.precompute_ref_log_probs": True, **_no_second_model(plan)}


def _checkpointing(every: int) -> Change:
    def change(plan: Plan) -> tuple[Plan, Patch] | None:
        now = plan.runtime.activation_checkpoint_every
        if (now and now <= every) or plan.inputs.cost.config.num_hidden_layers < every:
            return None
        value = "full" if every == 1 else every
        runtime = plan.runtime.model_copy(update={"activation_checkpointing": value})
        return replace(plan, runtime=runtime), {"runtime.activation_checkpointing": value}

    return change


def _eight_bit(plan: Plan) -> tuple[Plan, Patch] | None:
    cost, now = plan.inputs.cost, plan.inputs.optimizer
    if plan.is_sharded or plan.inputs.adapter is not None:
        return None
    if cost.optimizer_bytes(now.name) <= cost.optimizer_bytes("adamw8bit"):
        return None
    inputs = replace(plan.inputs, optimizer=now.model_copy(update={"name": "adamw8bit"}))
    return replace(plan, inputs=inputs), {"stage.optimizer.name": "adamw8bit"}


def _lora(plan: Plan) -> tuple[Plan, Patch] | None:
    if plan.inputs.adapter is not None or not plan.inputs.can_adapt or plan.is_sharded:
        return None
    config = AdapterConfig()
    keeps = int(plan.inputs.reference > 0)
    optimizer, changed = _optimizer_of_adapter(plan)
    inputs = replace(
        plan.inputs,
        adapter=plan.inputs.cost.adapter_parameters(config.r),
        adapter_copies=keeps,
        reference=0.0,
        rounded=True,
        optimizer=optimizer,
    )
    return replace(plan, inputs=inputs), {"stage.adapter.r": config.r, **_no_second_model(plan), **changed}


def _optimizer_of_adapter(plan: Plan) -> tuple[OptimizerConfig, Patch]:
    """The optimizer of a stage that gets an adapter, and what changes. Adafactor would hardly move one, and its rates are of
    another kind."""
    now, stage = plan.inputs.optimizer, plan.inputs.stage
    if now.name != "adafactor":
        return now, {}
    patch: Patch = {"stage.optimizer.name": "adamw"}
    rate, before = ADAPTER_RATES.get(stage.kind) if stage else None, now.learning_rate
    if stage is not None and rate is not None and before != "auto":
        patch["stage.optimizer.learning_rate"] = rate
        if isinstance(stage.schedule.min_lr, float) and stage.schedule.min_lr:
            patch["stage.schedule.min_lr"] = float(f"{stage.schedule.min_lr / before * rate:.3g}")
    return now.model_copy(update={"name": "adamw"}), patch


def _qlora(plan: Plan) -> tuple[Plan, Patch] | None:
    if plan.inputs.quantized is not None or plan.inputs.cost.config.moe is not None:
        return None
    if not plan.inputs.can_adapt or plan.is_sharded:
        return None
    before = (plan, {}) if plan.inputs.adapter is not None else _lora(plan)
    if before is None:
        return None
    adapted, patch = before
    config = QuantizationConfig()
    inputs = replace(adapted.inputs, quantized=bytes_per_weight(config))
    return replace(adapted, inputs=inputs), {**patch, "stage.quantization.quant_type": config.quant_type}


def _shorter(available: float) -> Change:
    def change(plan: Plan) -> tuple[Plan, Patch] | None:
        sequences = plan.inputs.sequences_per_row
        length, shorter = plan.inputs.row_length // sequences, plan
        while length // 2 >= SHORTEST and shorter.needs > available:
            length //= 2
            shorter = replace(plan, inputs=replace(plan.inputs, row_length=length * sequences))
        if shorter is plan:
            return None
        keys = _keys_of_length(plan, length)
        rows = keys.get("batch.tokens_per_step", plan.tokens_per_step or 0) // (length * sequences) or plan.rows
        micro = min(plan.micro, keys.get("batch.micro_batch_size", plan.micro))
        patch = {f"stage.{key}": value for key, value in keys.items()}
        return replace(shorter, rows=rows, micro=micro), {**patch, "built_dataset": None}  # built for the longer rows

    return change


def _keys_of_length(plan: Plan, length: int) -> dict[str, Any]:
    """The keys of the stage with which its rows have `length` tokens."""
    stage = plan.inputs.stage
    if stage is None:
        return {"data.max_seq_len": length}
    written = stage.batch.micro_batch_size
    return keys_of_length(stage, length, plan.tokens_per_step, None if written == "auto" else written)


def _measures(available: float) -> Iterable[tuple[Change, str]]:
    """All measures from the cheapest on, with what each costs."""
    return (
        (_smaller_micro_batch(available), "nothing but a little time: the rows of an update stay"),
        (_precomputed_reference, "one pass over the data before the first step, and none later"),
        (_checkpointing(2), "half of the blocks are computed once more in the backward pass"),
        (_eight_bit, "the optimizer's moments of the blocks are kept in 8 bits"),
        (_checkpointing(1), "every block is computed once more in the backward pass"),
        (_lora, "only an adapter is trained"),
        (_qlora, "only an adapter is trained, beside weights in 4 bits"),
        (_shorter(available), "rows are cut at fewer tokens"),
    )


def what_would_fit(plan: Plan, available: float) -> Fit:
    """What fits into `available` bytes, and what is wanted.

    If they do not fit: each measure that makes a difference, with the bytes that it then needs. If none of them is enough by
    itself, the measures together, one after another until they are (`together`)."""
    largest = plan.largest(available)
    fit = Fit(available=available, needs=plan.needs, largest=largest, limit=_limit(plan, largest, available), measures=[])
    if fit.fits:
        return fit
    measures = [measure for one in _measures(available) if (measure := _alone(plan, *one, available)) is not None]
    if not any(measure.fits for measure in measures):
        measures += _together(plan, available)
    return replace(fit, measures=measures)


def _limit(plan: Plan, largest: int | None, available: float) -> Limit:
    """Why the largest micro-batch is no larger."""
    if largest is None:
        return "memory"
    rows = plan.own_rows
    larger = next((size for size in range(largest + 1, rows + 1) if rows % size == 0), None)
    if larger is None:
        return "rows"
    needs = needed_bytes(plan.inputs, plan.runtime, larger, rows, plan.probe)
    return "memory" if needs > available else "speed"


def _alone(plan: Plan, change: Change, costs: str, available: float) -> Measure | None:
    changed = change(plan)
    if changed is None or changed[0].needs >= plan.needs:
        return None
    needs = changed[0].needs
    return Measure(patch=changed[1], needs=needs, fits=needs <= available, costs=costs)


def _together(plan: Plan, available: float) -> list[Measure]:
    """The measures together, up to the one with which the stage fits; empty if it never does."""
    patch: Patch = {}
    costs: list[str] = []
    for change, cost in _measures(available):
        changed = change(plan)
        if changed is None or changed[0].needs >= plan.needs:
            continue
        plan, costs = changed[0], [*costs, cost]
        patch |= changed[1]
        if plan.needs <= available:
            return [Measure(patch=patch, needs=plan.needs, fits=True, costs="; ".join(costs), together=True)]
    return []
