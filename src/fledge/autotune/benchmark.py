"""Measuring the machine on a piece of the real work: one layer, few rows, the stage's own objective."""

import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from fledge.autotune.compile import compile_with_cache_retry, force_eager, use_compile_cache
from fledge.data import Batch
from fledge.model.attention import BACKENDS
from fledge.model.cost import training_flops_per_token
from fledge.model.cuda_attention import ON_CUDA, attention_metadata, backend
from fledge.model.protocol import LanguageModel
from fledge.recipe.schema import ModelConfig
from fledge.run.environment import cores

PROBE_TOKENS = {"cpu": 2048, "cuda": 32_768}  # enough for every core or multiprocessor to have work
AGREE = {torch.float32: 1e-3, torch.bfloat16: 3e-2, torch.float16: 4e-3}  # relative distance between two backends

Objective = Callable[[LanguageModel, Batch], Any]
MakeObjective = Callable[[Any], Objective]  # from a head kernel, or None for the plain one
Say = Callable[[str], None]


def wait_for(device: str) -> None:
    """Until the device has done what it was given."""
    if device == "cuda":
        torch.cuda.synchronize()


def benchmark(runs: dict[str, Callable[[], Any]], device: str, repeats: int = 3, budget: float = 4.0) -> dict[str, float]:
    """Least seconds of each call, taken in turns after one to warm up: a busy moment meets all of them, and what
    disturbs a measurement only ever makes it longer. After `budget` seconds no further turn is begun, but one is
    always timed."""
    least = dict.fromkeys(runs, float("inf"))
    began = time.perf_counter()
    for repeat in range(repeats + 1):
        if repeat > 1 and time.perf_counter() - began > budget:
            break
        for name, run in runs.items():
            wait_for(device)
            started = time.perf_counter()
            run()
            wait_for(device)
            if repeat:
                least[name] = min(least[name], time.perf_counter() - started)
    return least


# -- processors ---------------------------------------------------------------------------------------------------------


def physical_cores(topology: Path = Path("/sys/devices/system/cpu")) -> int:
    """Physical cores among those this process may use; where the system does not say, as many as there are logical ones."""
    if not hasattr(os, "sched_getaffinity"):
        return cores()
    siblings = set()
    for number in os.sched_getaffinity(0):
        try:
            siblings.add((topology / f"cpu{number}/topology/thread_siblings_list").read_text().strip())
        except OSError:
            siblings.add(str(number))
    return len(siblings)


# -- the work -----------------------------------------------------------------------------------------------------------


def truncate_batch(batch: Batch, tokens: int) -> Batch:
    """The first rows of a batch, as many as hold `tokens`, at least one."""
    rows = max(1, tokens // batch.input_ids.shape[1])
    if rows >= batch.input_ids.shape[0]:
        return batch
    sequences = batch.sequence_ids[:rows]
    inside = sequences[sequences < batch.num_sequences]
    count = int(inside.max()) + 1 if len(inside) else 0
    per = batch.num_sequences // max(1, len(batch.examples))
    names = ("input_ids", "targets", "loss_weights", "position_ids", "documents")
    cut = {name: getattr(batch, name)[:rows] for name in names}
    sequences = torch.where(sequences < batch.num_sequences, sequences, count)
    examples = batch.examples[: count // max(1, per)]
    return replace(
        batch, **cut, sequence_ids=sequences, num_sequences=count, examples=examples, by_source=(), known_target_index=None
    )


@dataclass(frozen=True)
class ProbeWorkload:
    """A stage's work for probing: the model, one micro-batch on its device, and the objective for a head kernel."""

    model: LanguageModel
    batch: Batch
    objective: MakeObjective
    device: str

    def part(self) -> "ProbeWorkload":
        """The same with few rows."""
        return replace(self, batch=truncate_batch(self.batch, PROBE_TOKENS[self.device]))

    def step(self, dtype: torch.dtype, attention: str, kernel: Any = None) -> Callable[[], None]:
        """Forward and back of one layer, embedding and head, in `dtype` and with this attention backend. The model is
        left without gradients."""

        def run() -> None:
            self.model.compute_dtype = dtype
            self.model.set_attention_backend(attention)
            with self.model.only_first_block():
                outcome = self.objective(kernel)(self.model, self.batch)
                (outcome.loss if outcome.aux_loss is None else outcome.loss + outcome.aux_loss).backward()
                self.model.zero_grad(set_to_none=True)

        return run

    def whole(self, seconds: float) -> float:
        """Seconds of the whole micro-batch in all layers, from those of `step`: time taken to grow with operations."""
        config, context = self.model.config, self.batch.input_ids.shape[1]
        one = config.model_copy(update={"num_hidden_layers": 1})
        flops = [training_flops_per_token(each, self.model.vocab_size, context) for each in (config, one)]
        return seconds * flops[0] / flops[1]

    def describe(self) -> str:
        """What is timed, for a reader of compute.json."""
        rows, context = self.batch.input_ids.shape
        return f"1 of {self.model.config.num_hidden_layers} layers and the head, {rows} rows of {context} tokens"


# -- matrix products ----------------------------------------------------------------------------------------------------


def product_sizes(config: ModelConfig, device: str) -> list[tuple[int, int, int]]:
    """Products [m, k] · [k, n] of a model's feed-forward layers, and a square one that any device is good at."""
    rows, side = (16_384, 8192) if device == "cuda" else (2048, 1024)
    width, inner = config.hidden_size, config.intermediate_size
    return [(rows, width, inner), (rows, inner, width), (side, side, side)]


def matmul_peak(device: str, dtype: torch.dtype, sizes: Sequence[tuple[int, int, int]], seconds: float = 0.6) -> float:
    """FLOP/s of the fastest of a few matrix products x·Wᵀ of these sizes (m, k, n), measured for about `seconds`:
    what a utilisation (MFU) on this device is a share of."""
    best, began = 0.0, time.perf_counter()
    operands = [(torch.randn(m, k).to(device, dtype), torch.randn(n, k).to(device, dtype)) for m, k, n in sizes]
    for turn in range(1000):
        if turn > 1 and time.perf_counter() - began > seconds:
            break
        for (m, k, n), (a, b) in zip(sizes, operands, strict=True):
            wait_for(device)
            started = time.perf_counter()
            F.linear(a, b)
            wait_for(device)
            if turn:
                best = max(best, 2 * m * k * n / (time.perf_counter() - started))
    return best


# -- attention ----------------------------------------------------------------------------------------------------------


def _tensors(work: ProbeWorkload, dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values of the batch's shape, which ask for gradients."""
    sizes = work.model.config
    B, T = work.batch.input_ids.shape
    generator = torch.Generator().manual_seed(0)

    def fresh(heads: int) -> Tensor:
        made = torch.randn(B, heads, T, sizes.hidden_size // sizes.num_attention_heads, generator=generator)
        return made.to(work.device, dtype).requires_grad_()

    return fresh(sizes.num_attention_heads), fresh(sizes.num_key_value_heads), fresh(sizes.num_key_value_heads)


def _attend(
    name: str, tensors: tuple[Tensor, Tensor, Tensor], documents: Tensor, compiling: bool
) -> Callable[[], list[Tensor]]:
    """Attention of this backend forward and back; gives the output and the three gradients."""
    q, k, v = tensors
    B, _, T, _ = q.shape
    function = torch.compile(backend(name), dynamic=False) if compiling else backend(name)

    def run() -> list[Tensor]:
        out = function(q, k, v, attention_metadata(name, documents, B, T, q.device))
        return [out.detach(), *torch.autograd.grad(out, (q, k, v), grad_outputs=torch.ones_like(out))]

    return run


def _differs(left: list[Tensor], right: list[Tensor]) -> bool:
    bound = AGREE[left[0].dtype]
    near = [(a - b).float().norm() <= bound * b.float().norm() for a, b in zip(left, right, strict=True)]
    return not all(near)  # NaN is near nothing


def time_attention(
    work: ProbeWorkload, dtype: torch.dtype, names: Sequence[str], compiling: bool, say: Say = lambda text: None
) -> dict[str, float | str]:
    """Seconds of each backend forward and back, compiled or plain, on the batch's own shapes and documents; or why it
    was ruled out: it failed here, or gave other numbers than the first that worked."""
    if compiling:
        use_compile_cache()
    tensors, found = _tensors(work, dtype), dict[str, float | str]()
    runs: dict[str, Callable[[], Any]] = {}
    expected: list[Tensor] = []
    standard = ""
    for name in names:
        run = _attend(name, tensors, work.batch.documents, compiling)
        try:
            got = list[Tensor]()
            step = lambda run=run, got=got: got.extend(run())  # noqa: E731
            compile_with_cache_retry(step, say) if compiling else step()
        except Exception as error:  # a kernel that this device or build does not have; what is left is chosen from
            found[name] = f"failed: {first_line(error)}"
            continue
        if not expected:
            standard, expected = name, got
        elif _differs(got, expected):
            found[name] = f"gave other numbers than {standard}"
            continue
        runs[name] = run
    found.update({name: round(seconds, 6) for name, seconds in benchmark(runs, work.device, budget=2.0).items()})
    return found


def attention_candidates(device: str, dtype: torch.dtype, compiling: bool) -> list[str]:
    """Backends that can train on a device, the one that others are held to first."""
    if device == "cpu":
        return [name for name in BACKENDS if name != "written_out"]
    half = dtype in (torch.bfloat16, torch.float16)
    return ["sdpa", *(name for name in ON_CUDA if (half or name != "varlen") and (compiling or name != "flex"))]


def first_line(error: Exception) -> str:
    """The beginning of a message, for a line of evidence."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]


# -- compiling ----------------------------------------------------------------------------------------------------------


def time_compiled(plain: Callable[[], None], compiled: Callable[[], None], device: str) -> dict[str, float]:
    """Seconds of a step in plain and in compiled code, both already run once."""

    def eager() -> None:
        with force_eager():
            plain()

    return benchmark({"eager": eager, "compiled": compiled}, device, repeats=2)
