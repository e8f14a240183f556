"""Benchmarks on a part of the real workload: one layer, few rows, the objective of the stage."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fledge.autotune.compile import compile_with_cache_retry, use_compile_cache
from fledge.autotune.precision import DTYPES
from fledge.data import Batch
from fledge.errors import FledgeError, first_line
from fledge.model.cost import training_flops_per_token
from fledge.model.cuda_attention import attention_metadata, backend
from fledge.model.eager import force_eager
from fledge.model.linear_cross_entropy import LossKernel
from fledge.model.protocol import LanguageModel
from fledge.model.segments import segment_starts
from fledge.objective import Objective
from fledge.recipe.schema import ModelConfig
from fledge.run.environment import cores

PROBE_TOKENS = {"cpu": 2048, "cuda": 32_768}  # enough to occupy every core or multiprocessor
MAX_RELATIVE_ERROR = {
    torch.float32: 1e-3,
    torch.bfloat16: 3e-2,
    torch.float16: 4e-3,
}  # between the results of two attention backends

MakeObjective = Callable[[LossKernel | None], Objective]  # argument: a head kernel, None for the uncompiled one
Log = Callable[[str], None]


def wait_for(device: str) -> None:
    """Wait until the device has finished all queued work."""
    if device == "cuda":
        torch.cuda.synchronize()


def benchmark(runs: dict[str, Callable[[], Any]], device: str, repeats: int = 3, budget: float = 4.0) -> dict[str, float]:
    """The minimum seconds of each call in `runs`, over `repeats` rounds after one warm-up round.

    The calls take turns, so a busy moment of the machine affects all calls; the minimum is taken because interference only
    makes a call slower. After `budget` seconds no further round starts, but at least one is timed.
    """
    best = dict.fromkeys(runs, float("inf"))
    start_time = time.perf_counter()
    for repeat in range(repeats + 1):
        if repeat > 1 and time.perf_counter() - start_time > budget:
            break
        for name, run in runs.items():
            wait_for(device)
            call_start = time.perf_counter()
            run()
            wait_for(device)
            if repeat:
                best[name] = min(best[name], time.perf_counter() - call_start)
    return best


# -- processors ---------------------------------------------------------------------------------------------------------


def physical_cores(topology: Path = Path("/sys/devices/system/cpu")) -> int:
    """Number of physical cores available to this process; the logical number if the system does not report siblings."""
    if not hasattr(os, "sched_getaffinity"):
        return cores()
    siblings = set()
    for number in os.sched_getaffinity(0):
        try:
            siblings.add((topology / f"cpu{number}/topology/thread_siblings_list").read_text().strip())
        except OSError:
            siblings.add(str(number))
    return len(siblings)


# -- workload -------------------------------------------------------------------------------------------------------------


def truncate_batch(batch: Batch, tokens: int) -> Batch:
    """The first rows of a batch, as many as hold `tokens` tokens, at least one."""
    rows = max(1, tokens // batch.input_ids.shape[1])
    if rows >= batch.input_ids.shape[0]:
        return batch
    sequences = batch.sequence_ids[:rows]
    used = sequences[sequences < batch.num_sequences]
    count = int(used.max()) + 1 if len(used) else 0
    names = ("input_ids", "targets", "loss_weights", "position_ids", "documents")
    truncated = {name: getattr(batch, name)[:rows] for name in names}
    sequences = torch.where(sequences < batch.num_sequences, sequences, count)
    examples = batch.examples[: count // batch.sequences_per_example]
    return replace(
        batch,
        **truncated,
        sequence_ids=sequences,
        num_sequences=count,
        examples=examples,
        tokens_by_source=(),
        known_target_index=None,
        segment_starts=None,
    )


@dataclass(frozen=True)
class ProbeWorkload:
    """The workload of a benchmark: the model, one micro-batch on its device, and the objective for a head kernel."""

    model: LanguageModel
    batch: Batch
    objective: MakeObjective
    device: str

    @property
    def objective_name(self) -> str:
        """The class of the objective, for the names of figures that depend on it."""
        return type(self.objective(None)).__name__

    def truncated(self) -> "ProbeWorkload":
        """This workload with few rows."""
        return replace(self, batch=truncate_batch(self.batch, PROBE_TOKENS[self.device]))

    def step(self, dtype: torch.dtype, attention: str, kernel: LossKernel | None = None) -> Callable[[], None]:
        """Forward and backward pass of the embedding, one layer and the head, in `dtype`, as a function.

        The function leaves the model without gradients.
        """

        def run() -> None:
            self.model.compute_dtype = dtype
            self.model.set_attention_backend(attention)
            with self.model.only_first_block():
                outcome = self.objective(kernel)(self.model, self.batch)
                (outcome.loss if outcome.aux_loss is None else outcome.loss + outcome.aux_loss).backward()
                self.model.zero_grad(set_to_none=True)

        return run

    def full_step_seconds(self, seconds: float) -> float:
        """Seconds of the micro-batch in all layers, extrapolated from the seconds of `step` by the number of operations."""
        config, context = self.model.config, self.batch.input_ids.shape[1]
        one_layer = config.model_copy(update={"num_hidden_layers": 1})
        flops = [training_flops_per_token(sizes, self.model.vocab_size, context) for sizes in (config, one_layer)]
        return seconds * flops[0] / flops[1]

    def describe(self) -> str:
        """A description of the timed workload, for compute.json."""
        rows, context = self.batch.input_ids.shape
        return f"1 of {self.model.config.num_hidden_layers} layers and the head, {rows} rows of {context} tokens"


# -- matrix products ----------------------------------------------------------------------------------------------------


def product_sizes(config: ModelConfig, device: str) -> list[tuple[int, int, int]]:
    """Sizes (m, k, n) of products [m, k] · [k, n]: the model's feed-forward layers, and a square product."""
    rows, side = (16_384, 8192) if device == "cuda" else (2048, 1024)
    width, inner = config.hidden_size, config.intermediate_size
    return [(rows, width, inner), (rows, inner, width), (side, side, side)]


def matmul_peak(device: str, dtype: torch.dtype, sizes: Sequence[tuple[int, int, int]], seconds: float = 0.6) -> float:
    """FLOP/s of the fastest of a few products x·Wᵀ of the given sizes (m, k, n), measured for about `seconds`.

    Model FLOPs utilisation (MFU) on this device is relative to this number.
    """
    best, start_time = 0.0, time.perf_counter()
    operands = [(torch.randn(m, k).to(device, dtype), torch.randn(n, k).to(device, dtype)) for m, k, n in sizes]
    for round_number in range(1000):
        if round_number > 1 and time.perf_counter() - start_time > seconds:
            break
        for (m, k, n), (a, b) in zip(sizes, operands, strict=True):
            wait_for(device)
            call_start = time.perf_counter()
            F.linear(a, b)
            wait_for(device)
            if round_number:
                best = max(best, 2 * m * k * n / (time.perf_counter() - call_start))
    return best


def fastest_product(device: str, precision: str | None = None) -> float:
    """FLOP/s of the fastest of a few matrix products on a device in a precision (None: float32 or bfloat16, whichever is
    faster), measured in about a second. Raises FledgeError where they cannot be computed: a GPU may be full, or none that this
    torch can use."""
    sizes = [(2048, 256, 704), (1024, 1024, 1024)] if device == "cpu" else [(8192, 1024, 4096), (8192, 8192, 8192)]
    dtypes = (torch.float32, torch.bfloat16) if precision is None else (DTYPES[precision],)
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
        return max(matmul_peak(device, dtype, sizes, seconds=0.4) for dtype in dtypes)
    except (RuntimeError, AssertionError) as error:
        what = f"matrix products cannot be measured on this {device}: {first_line(error)}"
        raise FledgeError(what, hint="free the device, or hide it: CUDA_VISIBLE_DEVICES=") from None
    finally:
        torch.set_float32_matmul_precision(before)


# -- attention ----------------------------------------------------------------------------------------------------------


def _tensors(work: ProbeWorkload, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Random queries, keys and values [B, heads, T, head size] that require gradients."""
    sizes = work.model.config
    B, T = work.batch.input_ids.shape
    generator = torch.Generator().manual_seed(0)

    def random(heads: int) -> Tensor:
        values = torch.randn(B, heads, T, sizes.head_size, generator=generator)
        return values.to(work.device, dtype).requires_grad_()

    return random(sizes.num_attention_heads), random(sizes.num_key_value_heads), random(sizes.num_key_value_heads)


def _attention_step(
    name: str, tensors: tuple[Tensor, Tensor, Tensor], metadata: Any, compiling: bool
) -> Callable[[], list[Tensor]]:
    """Forward and backward pass of an attention backend in one layer, as a function that returns the output and three
    gradients. `metadata` is made before, because a micro-batch needs it once and not in every layer."""
    q, k, v = tensors
    attend = torch.compile(backend(name), dynamic=False) if compiling else backend(name)

    def run() -> list[Tensor]:
        out = attend(q, k, v, metadata)
        return [out.detach(), *torch.autograd.grad(out, (q, k, v), grad_outputs=torch.ones_like(out))]

    return run


def _differ(left: list[Tensor], right: list[Tensor]) -> bool:
    bound = MAX_RELATIVE_ERROR[left[0].dtype]
    close = [(a - b).float().norm() <= bound * b.float().norm() for a, b in zip(left, right, strict=True)]
    return not all(close)  # NaN is close to nothing


def time_attention(
    workload: ProbeWorkload, dtype: torch.dtype, names: Sequence[str], compiling: bool, log: Log = lambda text: None
) -> dict[str, float | str]:
    """Seconds of each backend in one layer, forward and backward, with the shapes and documents of the batch, compiled or not,
    and with the layer's share of the metadata that is made once for all layers.

    The entry of a backend that fails, whose results are not finite, or differ from those of the first working backend, is a
    sentence with the reason.
    """
    if compiling:
        use_compile_cache()
    tensors, results, documents = _tensors(workload, dtype), dict[str, float | str](), workload.batch.documents
    (B, T), starts = documents.shape, segment_starts(documents)  # made with the batch in training
    runs: dict[str, Callable[[], Any]] = {}
    prepare: dict[str, Callable[[], Any]] = {}
    expected: list[Tensor] = []
    reference = ""
    for name in names:
        make = partial(attention_metadata, name, documents, B, T, documents.device, dtype=dtype, starts=starts)
        try:
            run = _attention_step(name, tensors, make(), compiling)
            outputs = list[Tensor]()
            step = lambda run=run, outputs=outputs: outputs.extend(run())  # noqa: E731
            compile_with_cache_retry(step, log) if compiling else step()
        except Exception as error:  # a kernel missing on this device or build; the other backends remain
            results[name] = f"failed: {first_line(error)}"
            continue
        if not all(bool(values.isfinite().all()) for values in outputs):
            results[name] = "results are not finite"
            continue
        if not expected:
            reference, expected = name, outputs
        elif _differ(outputs, expected):
            results[name] = f"results differ from {reference}"
            continue
        runs[name], prepare[name] = run, make
    seconds, once = (benchmark(calls, workload.device, budget=2.0) for calls in (runs, prepare))
    layers = workload.model.config.num_hidden_layers
    return results | {name: round(seconds[name] + once[name] / layers, 6) for name in runs}


# -- compiling ----------------------------------------------------------------------------------------------------------


def time_compiled(uncompiled: Callable[[], None], compiled: Callable[[], None], device: str) -> dict[str, float]:
    """Seconds of a step in uncompiled and in compiled code; both must have run once."""

    def eager() -> None:
        with force_eager():
            uncompiled()

    return benchmark({"eager": eager, "compiled": compiled}, device, repeats=2)
