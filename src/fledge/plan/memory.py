"""How many rows at a time fit into memory, by the cost model; what is learned does not depend on it."""

from dataclasses import dataclass

import torch

from fledge.errors import FledgeError
from fledge.model.cost import ModelCost
from fledge.recipe.schema import BatchConfig, OptimizerConfig, RuntimeConfig
from fledge.run.environment import local_world_size

BASELINE_BYTES = 500 * 2**20  # interpreter, libraries, compiled code and temporary results
MOST_TOKENS = {"cpu": 16_384, "cuda": 131_072}  # at a time: more is no faster


@dataclass(frozen=True)
class MemoryInputs:
    """What decides how much memory a training step takes, beside its rows."""

    cost: ModelCost
    row_length: int
    optimizer: OptimizerConfig
    device: str
    copies: int = 0  # of the weights, beside those that are trained: an average, a reference, what an update is compared with


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocation failed, on a GPU or in main memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and ("can't allocate memory" in text or "not enough memory" in text)


def budget(machine: RuntimeConfig, device: str) -> int:
    """Bytes that training may take: as the recipe says, or nine tenths of what is free now. Processes that train together
    share main memory; a GPU is each one's own."""
    if device == "cuda":
        return machine.memory_budget or int(0.9 * torch.cuda.mem_get_info()[0])
    import psutil

    return (machine.memory_budget or int(0.9 * psutil.virtual_memory().available)) // local_world_size()


def estimate(need: MemoryInputs, machine: RuntimeConfig, rows: int) -> float:
    """Bytes of a step with so many rows at a time. Where precision and compilation are still to be measured, the larger."""
    half = machine.precision in ("bf16", "fp16") or (machine.precision == "auto" and need.device == "cuda")
    compiled = machine.compile is True
    tokens = rows * need.row_length
    copies = 4 * need.copies * need.cost.parameters().total
    return (
        BASELINE_BYTES
        + copies
        + need.cost.peak_bytes(tokens, 2 if half else 4, compiled, need.optimizer.name, machine.activation_checkpoint_every)
    )


def auto_micro_batch(batch: BatchConfig, need: MemoryInputs, machine: RuntimeConfig) -> tuple[BatchConfig, list[str]]:
    """The batch with plain numbers, and a sentence where something was chosen. The rows of an update stay those of `tokens`.

    FledgeError where `tokens` are not whole rows, or where not even one row fits."""
    if batch.tokens_per_step is None:
        return batch, []
    rows = batch.global_batch_rows(need.row_length)
    if batch.micro_batch_size != "auto":
        if rows % batch.micro_batch_size:
            raise FledgeError(
                f"{rows:,} rows of an update are no multiple of {batch.micro_batch_size:,}",
                where="batch.micro_batch_size",
                hint="or write auto",
            )
        return batch.model_copy(
            update={"gradient_accumulation_steps": rows // batch.micro_batch_size, "tokens_per_step": None}
        ), []
    limit = budget(machine, need.device)
    parts = [part for part in range(1, rows + 1) if rows % part == 0]
    fitting = [part for part in parts if estimate(need, machine, part) <= limit]
    if not fitting:
        raise FledgeError(
            f"not even one row of {need.row_length:,} tokens fits: a step takes about "
            f"{estimate(need, machine, 1) / 2**30:.2f} GiB, {limit / 2**30:.2f} GiB are to be had",
            where="batch.micro_batch_size",
            hint="runtime.activation_checkpointing: full, optimizer adamw8bit, a shorter context or a smaller model",
        )
    useful = [part for part in fitting if part * need.row_length <= MOST_TOKENS[need.device]]
    micro = max(useful or [fitting[0]])
    note = (
        f"micro-batches of {micro} rows, {rows // micro} for each update: a step takes about "
        f"{estimate(need, machine, micro) / 2**30:.2f} of {limit / 2**30:.2f} GiB"
    )
    return batch.model_copy(
        update={"micro_batch_size": micro, "gradient_accumulation_steps": rows // micro, "tokens_per_step": None}
    ), [note]
