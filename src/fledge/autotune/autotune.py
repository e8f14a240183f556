"""How to compute on this machine, decided by measuring it: device, threads, precision, attention, compilation.

Brochures and tables lie about the machine at hand (bf16 can be five times faster or slower than fp32), so a piece of
the real work is timed. What was measured is kept for later runs on this machine. The decision is stored with the run
and used again on resume, because it decides the last bits.
"""

import time
from pathlib import Path
from typing import Any

import torch
import xxhash

import fledge
from fledge.autotune import benchmark
from fledge.autotune.benchmark import MakeObjective, ProbeWorkload, Say
from fledge.autotune.compile import (
    compile_blocks,
    compile_with_cache_retry,
    compiled_kernel,
    force_eager,
    model_code,
    uncompile,
)
from fledge.autotune.compute_config import ComputeConfig, check_device, chosen_device, head_kernel
from fledge.autotune.precision import DTYPES
from fledge.autotune.search import AutotuneSearch
from fledge.data import Batch
from fledge.model.protocol import LanguageModel
from fledge.recipe.schema import RuntimeConfig
from fledge.run.cache import BenchmarkCache
from fledge.run.environment import environment

__all__ = [
    "DTYPES",
    "ComputeConfig",
    "autotune",
    "check_device",
    "compile_blocks",
    "compiled_kernel",
    "force_eager",
    "head_kernel",
    "uncompile",
    "warm_up",
]


def measurements_key(work: ProbeWorkload, config: RuntimeConfig) -> dict[str, Any]:
    """Everything that measurements depend on, but for the choices that their names say."""
    machine = environment()
    return {
        "runtime": {name: machine[name] for name in ("cpu", "cpu_capability", "cores", "platform")},
        "gpu": torch.cuda.get_device_name() if work.device == "cuda" else None,
        "torch": torch.__version__,
        "fledge": [fledge.__version__, model_code(), xxhash.xxh3_64_hexdigest(Path(benchmark.__file__).read_bytes())],
        "model": {
            **work.model.config.model_dump(mode="json", exclude={"path", "implementation"}),
            "vocab_size": work.model.vocab_size,
            "implementation": work.model.implementation,
        },
        "objective": type(work.objective(None)).__name__,
        "batch": list(work.batch.input_ids.shape),
        "recomputed": config.activation_checkpoint_every,
    }


def autotune(
    config: RuntimeConfig,
    model: LanguageModel,
    batch: Batch,
    objective: MakeObjective,
    micro_steps: int,
    say: Say = lambda text: None,
) -> ComputeConfig:
    """Measure a piece of one micro-batch of the real work and choose. The model's weights are not changed.

    `objective(kernel)` makes the loss with a head kernel; `micro_steps` is how many micro-batches the stage has.
    Raises FledgeError where the recipe asks for what this machine cannot do.
    """
    check_device(config)
    device = chosen_device(config)
    model.to(device).train()
    work = ProbeWorkload(model, batch.to(torch.device(device)), objective, device)
    measured = BenchmarkCache(measurements_key(work, config), say, remeasure=config.autotune == "refresh")
    decision = AutotuneSearch(config, work, measured, micro_steps, say).decision()
    model.compute_dtype = DTYPES[decision.precision]
    model.set_attention_backend(decision.attention)
    model.zero_grad(set_to_none=True)
    if device == "cuda":  # what probing took is not what training takes
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return decision


def warm_up(
    decision: ComputeConfig, model: LanguageModel, batch: Batch, objective: MakeObjective, say: Say = lambda text: None
) -> float:
    """Compile what a decision says that was made before (on resume), where the first step would; returns the seconds.

    The decision must be applied to the model already; its weights are not changed. 0 where nothing is compiled.
    """
    if not decision.compile:
        return 0.0
    started = time.perf_counter()
    model.train()
    work = ProbeWorkload(model, batch.to(torch.device(decision.device)), objective, decision.device)
    compile_with_cache_retry(work.step(DTYPES[decision.precision], decision.attention, head_kernel(decision)), say)
    return time.perf_counter() - started
