"""The largest micro-batch that fits into memory according to `memory_moments`. Its size does not change the result of
training."""

from dataclasses import replace

import numpy as np
import torch

from fledge.data import PackedDataset
from fledge.errors import FledgeError
from fledge.model.cost import ModelCost
from fledge.model.quantization import bytes_per_weight
from fledge.plan.memory_components import Memory
from fledge.plan.memory_moments import (
    BASELINE_BYTES,
    MemoryInputs,
    estimate,
    memory_of_stage,
    memory_of_step,
    moments_of_step,
)
from fledge.plan.memory_probe import MemoryProbe
from fledge.recipe.schema import AdapterConfig, BatchConfig, ModelConfig, RuntimeConfig, Stage
from fledge.run.environment import local_world_size

__all__ = [
    "BASELINE_BYTES",
    "Memory",
    "MemoryInputs",
    "auto_micro_batch",
    "batch_for_memory",
    "budget",
    "divided_batch",
    "estimate",
    "is_micro_batch_open",
    "is_out_of_memory",
    "largest_micro_batch",
    "memory_inputs",
    "memory_of_stage",
    "memory_of_step",
    "merged_micro_batch",
    "moments_of_step",
    "multiprocessors",
    "needed_bytes",
    "useful_tokens",
]

OUT_OF_MEMORY = (  # in messages of allocators: of main memory, and of the driver and libraries of a GPU
    "can't allocate memory", "not enough memory", "out of memory", "status_alloc_failed",
)  # fmt: skip
MAX_MICRO_BATCH_TOKENS = {"cpu": 16_384, "cuda": 131_072}  # larger micro-batches are not faster
MIN_FULL_TOKENS = 16_384  # on CUDA: below, a small model's time is that of launching its kernels
TILE = 128  # rows and columns that one multiprocessor computes at a time of a matrix product
FULL_ROUNDS = 16  # of all multiprocessors: the last one, perhaps not full, then costs at most a sixteenth


def memory_inputs(
    stage: Stage,
    cost: ModelCost,
    train: PackedDataset,
    device: str,
    judges: float = 0.0,
    *,
    ranks: int = 1,
    sharded: bool = False,
    from_weights: bool = True,
) -> MemoryInputs:
    """The inputs of the estimate for a stage on its training data. `judges`: bytes of its reward models. `ranks`: processes
    that train together; `sharded`: by FSDP. `from_weights`: the stage starts from a trained model."""
    keeps_adapter = stage.keeps_reference_model and stage.adapter is not None  # the reference is the base with that adapter
    batch = stage.batch
    return MemoryInputs(
        cost=cost,
        row_length=train.packed_length,
        optimizer=stage.optimizer,
        device=device,
        documents_per_row=train.pieces_per_row,
        document_lengths=len(np.unique(train.epoch(0)[0].length)),
        partial=train.num_target_tokens < train.num_tokens,
        accumulates=batch.tokens_per_step is not None or batch.gradient_accumulation_steps > 1,
        answers_per_row=stage.answers_per_example,
        averaged=stage.ema.decay is not None,
        adapter_copies=int(keeps_adapter),
        second_gradient=stage.measures_disentanglement,
        reference=_reference_bytes(stage, cost, device),
        reward_models=judges,
        precomputes_reference=stage.precomputes_reference,
        adapter=None if stage.adapter is None else _adapter_parameters(stage.adapter, cost),
        rounded=stage.adapter is not None and not stage.adapter.use_dora,
        quantized=None if stage.quantization is None else bytes_per_weight(stage.quantization),
        ranks=ranks,
        sharded=sharded and ranks > 1,
        can_adapt=from_weights,
        can_precompute=hasattr(stage, "precompute_ref_log_probs"),
        sequences_per_row=max(1, round(train.packed_length / stage.data.max_seq_len)),
        stage=stage,
    )


def _reference_bytes(stage: Stage, cost: ModelCost, device: str) -> float:
    """Bytes of the reference: 0 where it is no second model, or on another device."""
    precision, place = stage.reference_placement
    if not stage.keeps_reference_model or stage.adapter is not None or (place or device) != device:
        return 0.0
    is_known = cost.counts is None  # of other models not all matrices are linear layers
    saved = cost.frozen_savings(2, 4) if precision in ("bf16", "fp16") and is_known else 0.0
    return 4 * cost.parameters().total - saved


def _adapter_parameters(config: AdapterConfig, cost: ModelCost) -> int:
    """The parameters of an adapter; where the sizes do not tell, the most that it can have: all layers at the largest rank, and
    whole modules as large as tables."""
    known = cost.trained_by(config)
    if known is not None:
        return known
    tables = len(config.modules_to_save) * cost.vocab_size * cost.config.hidden_size
    return cost.adapter_parameters(max([config.r, *config.rank_pattern.values()])) + tables


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a GPU or in main memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(words in text for words in OUT_OF_MEMORY)


def budget(runtime: RuntimeConfig, device: str) -> int:
    """Bytes that training may use: `memory_budget` of the recipe, else nine tenths of the free memory.

    Processes on one machine share its main memory; each has a GPU of its own.
    """
    if device == "cuda":
        return runtime.memory_budget or int(0.9 * torch.cuda.mem_get_info()[0])
    import psutil

    return (runtime.memory_budget or int(0.9 * psutil.virtual_memory().available)) // local_world_size()


def auto_micro_batch(batch: BatchConfig, inputs: MemoryInputs, runtime: RuntimeConfig) -> tuple[BatchConfig, list[str]]:
    """The batch settings with numbers, and a sentence if the micro-batch size was chosen; rows per step do not change.

    Raises FledgeError if `tokens_per_step` is not a whole number of rows, or if not even one row fits.
    """
    if batch.tokens_per_step is None:
        return batch, []
    if batch.micro_batch_size != "auto":
        return divided_batch(batch, inputs.row_length), []
    rows = batch.global_batch_rows(inputs.row_length)
    limit, micro = budget(runtime, inputs.device), largest_micro_batch(rows, inputs, runtime)
    if micro is None:
        raise FledgeError(
            f"not even one row of {inputs.row_length:,} tokens fits: a step takes about "
            f"{needed_bytes(inputs, runtime, 1, rows) / 2**30:.2f} GiB, {limit / 2**30:.2f} GiB are available",
            where="batch.micro_batch_size",
            hint="runtime.activation_checkpointing: full, optimizer adamw8bit, a smaller data.max_seq_len or a smaller model",
        )
    note = f"micro-batches of {micro} rows, {rows // micro} per step: {_why(micro, rows, inputs, runtime)}"
    return batch.model_copy(
        update={"micro_batch_size": micro, "gradient_accumulation_steps": rows // micro, "tokens_per_step": None}
    ), [note]


def merged_micro_batch(batch: BatchConfig, inputs: MemoryInputs, runtime: RuntimeConfig) -> tuple[BatchConfig, list[str]]:
    """The batch with fewer, larger micro-batches if it is computed on a GPU and leaves their size open, and a sentence that
    says so, or why it must stay; rows per step do not change."""
    micro, count = batch.micro_batch_rows, batch.gradient_accumulation_steps
    if inputs.device == "cpu" or not batch.merge_micro_batches or count == 1:
        return batch, []
    merged = largest_micro_batch(micro * count, inputs, runtime)
    if merged is None or merged <= micro:
        return batch, []
    if reason := _why_not_mergeable(batch, inputs.cost.config):
        return batch, [f"micro-batches stay at {micro} rows, {count} per step: {reason}"]
    left = micro * count // merged
    note = f"micro-batches of {merged} rows instead of {micro}, {left} per step: {_why(merged, micro * count, inputs, runtime)}"
    return batch.model_copy(update={"micro_batch_size": merged, "gradient_accumulation_steps": left}), [note]


def batch_for_memory(
    batch: BatchConfig, inputs: MemoryInputs, runtime: RuntimeConfig, *, must_fit: bool
) -> tuple[BatchConfig, list[str]]:
    """The batch with numbers in place of `auto`, and larger micro-batches where they may be merged, as the free memory allows;
    and notes that explain it. Where not even one row fits: FledgeError if it `must_fit`, else micro-batches of one row."""
    try:
        batch, chosen = auto_micro_batch(batch, inputs, runtime)
    except FledgeError:
        if must_fit:
            raise
        return divided_batch(batch, inputs.row_length), []
    batch, merged = merged_micro_batch(batch, inputs, runtime)
    return batch, [*chosen, *merged]


def is_micro_batch_open(batch: BatchConfig, model: ModelConfig, device: str) -> bool:
    """Whether the rows that are computed at a time are left to the device: by `auto` beside `tokens_per_step`, or where
    micro-batches are merged on a GPU."""
    if batch.tokens_per_step is not None:
        return batch.micro_batch_size == "auto"
    is_split = batch.gradient_accumulation_steps > 1
    return device != "cpu" and batch.merge_micro_batches and is_split and _why_not_mergeable(batch, model) is None


def divided_batch(batch: BatchConfig, row_length: int) -> BatchConfig:
    """The batch with accumulation steps in place of `tokens_per_step`; a micro-batch that is `auto` has one row. Raises
    FledgeError if `tokens_per_step` is not a whole number of rows, or of micro-batches."""
    if batch.tokens_per_step is None:
        return batch
    rows = batch.global_batch_rows(row_length)
    micro = 1 if batch.micro_batch_size == "auto" else batch.micro_batch_size
    if rows % micro:
        raise FledgeError(
            f"{rows:,} rows per step are not a multiple of {micro:,}",
            where="batch.micro_batch_size",
            hint="write a divisor of the rows, or auto",
        )
    update = {"micro_batch_size": micro, "gradient_accumulation_steps": rows // micro, "tokens_per_step": None}
    return batch.model_copy(update=update)


def _why_not_mergeable(batch: BatchConfig, model: ModelConfig) -> str | None:
    """What a merged micro-batch would change beyond rounding; None if it changes nothing."""
    moe = model.moe
    if batch.warmup is not None:
        return "batch.warmup counts them"
    if model.dropout:
        return "dropout is drawn for each of them"
    if moe is not None and (moe.router_z_loss_coef or (moe.load_balancing == "aux_loss" and moe.router_aux_loss_coef)):
        return "the router's losses of a mixture of experts are computed for each of them"
    return None


def largest_micro_batch(
    rows: int, inputs: MemoryInputs, runtime: RuntimeConfig, limit: float | None = None, probe: MemoryProbe | None = None
) -> int | None:
    """The largest divisor of the rows of an update that fits into `limit` bytes (None: `budget`) and is still useful; None if
    not even one row fits. `probe`: a measured peak of the stage, which corrects the estimate."""
    limit = budget(runtime, inputs.device) if limit is None else limit
    divisors = [size for size in range(1, rows + 1) if rows % size == 0]
    fitting = [size for size in divisors if needed_bytes(inputs, runtime, size, rows, probe) <= limit]
    useful = useful_tokens(inputs.device, inputs.cost.config.hidden_size)
    return max((size for size in fitting if size * inputs.row_length <= useful), default=fitting[0] if fitting else None)


def needed_bytes(
    inputs: MemoryInputs, runtime: RuntimeConfig, micro: int, rows: int, probe: MemoryProbe | None = None
) -> float:
    """Bytes of a stage with micro-batches of `micro` of the `rows` rows of an update; `probe`: a measured peak of it."""
    inputs = replace(inputs, accumulates=micro < rows)
    return estimate(inputs, runtime, micro) + (0.0 if probe is None else probe.correction(inputs, runtime, micro))


def multiprocessors() -> int | None:
    """Number of multiprocessors of this process's GPU; None if no GPU is at hand."""
    if not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_properties(torch.cuda.current_device()).multi_processor_count


def useful_tokens(device: str, width: int) -> int:
    """Tokens of a micro-batch beyond which it is not faster. On CUDA as many as fill the card: a product with `width` columns
    then keeps every multiprocessor busy for FULL_ROUNDS rounds. Computed, not measured."""
    count = None if device == "cpu" else multiprocessors()
    if count is None:  # of a card that is not at hand, nothing more is known
        return MAX_MICRO_BATCH_TOKENS[device]
    full = FULL_ROUNDS * count * TILE**2 // width
    return min(max(full, MIN_FULL_TOKENS), MAX_MICRO_BATCH_TOKENS["cuda"])


def _why(micro: int, rows: int, inputs: MemoryInputs, runtime: RuntimeConfig) -> str:
    """What decided about a micro-batch, for the plan."""
    needed, limit = needed_bytes(inputs, runtime, micro, rows) / 2**30, budget(runtime, inputs.device) / 2**30
    memory = f"a step takes about {needed:.2f} of {limit:.2f} GiB"
    if inputs.device == "cpu":
        return memory
    useful = useful_tokens(inputs.device, inputs.cost.config.hidden_size)
    return f"{memory}, and {useful:,} tokens fill this GPU ({multiprocessors()} multiprocessors)"
