"""The compute configuration of a stage, chosen by measuring this machine: device, threads, precision, attention, compilation.

Specifications do not predict the machine at hand (bf16 can be five times faster or slower than fp32), so a part of the real
workload is timed. Measurements are cached for later runs on this machine. The configuration is stored with the run and used
again on resume, because it determines the last bits of the results.
"""

import time
from pathlib import Path
from typing import Any

import torch
import xxhash

from fledge.autotune import benchmark
from fledge.autotune.benchmark import Log, MakeObjective, ProbeWorkload
from fledge.autotune.compile import (
    compile_blocks,
    compile_with_cache_retry,
    compiled_kernel,
    model_code,
    uncompile,
)
from fledge.autotune.compute_config import ComputeConfig, check_device, chosen_device, head_kernel
from fledge.autotune.determinism import use_deterministic
from fledge.autotune.precision import DTYPES
from fledge.autotune.search import AutotuneSearch, is_too_busy, machine_load
from fledge.data import Batch
from fledge.model.attention import avoid_cudnn_attention
from fledge.model.protocol import LanguageModel
from fledge.recipe.schema import RuntimeConfig
from fledge.run.cache import BenchmarkCache
from fledge.run.environment import cores, environment
from fledge.version import __version__

__all__ = [
    "DTYPES",
    "ComputeConfig",
    "autotune",
    "check_device",
    "compile_blocks",
    "compiled_kernel",
    "head_kernel",
    "uncompile",
    "warm_up",
]


def measurements_key(workload: ProbeWorkload, config: RuntimeConfig) -> dict[str, Any]:
    """The cache key: everything that measurements depend on, except the objective and the choices that their names state.

    Stages that differ only in their objective share what does not depend on it: attention, peaks, and compiled code."""
    system = environment()
    return {
        "runtime": {name: system[name] for name in ("cpu", "cpu_capability", "cores", "platform")},
        "gpu": torch.cuda.get_device_name() if workload.device == "cuda" else None,
        "torch": torch.__version__,
        "fledge": [__version__, model_code(), xxhash.xxh3_64_hexdigest(Path(benchmark.__file__).read_bytes())],
        "model": {
            **workload.model.config.model_dump(mode="json", exclude={"path", "implementation"}),
            "vocab_size": workload.model.vocab_size,
            "implementation": workload.model.implementation,
        },
        "batch": list(workload.batch.input_ids.shape),
        "recomputed": config.activation_checkpoint_every,
        **({"deterministic": True} if config.deterministic and workload.device == "cuda" else {}),
    }


def autotune(
    config: RuntimeConfig,
    model: LanguageModel,
    batch: Batch,
    objective: MakeObjective,
    micro_steps: int,
    log: Log = lambda text: None,
) -> ComputeConfig:
    """Time a part of one micro-batch of the real workload and choose the compute configuration; weights are not changed.

    `objective(kernel)` builds the loss with a head kernel; `micro_steps` is the number of micro-batches of the stage; `log`
    receives notes for the user. Raises FledgeError if the recipe asks for something that this machine cannot do.
    """
    check_device(config)
    device = chosen_device(config)
    use_deterministic(config.deterministic, device)
    model.to(device).train()
    avoid_cudnn_attention(model.device)
    workload = ProbeWorkload(model, batch.to(torch.device(device)), objective, device)
    key, is_busy = measurements_key(workload, config), device == "cpu" and is_too_busy(machine_load(), cores())
    cache = BenchmarkCache(key, log, remeasure=config.autotune == "refresh", is_busy=is_busy)
    decision = AutotuneSearch(config, workload, cache, micro_steps, log).decision()
    model.compute_dtype = DTYPES[decision.precision]
    decision.set_attention(model)
    model.zero_grad(set_to_none=True)
    if device == "cuda":  # the memory of the benchmarks is not the memory of training
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return decision


def warm_up(
    decision: ComputeConfig, model: LanguageModel, batch: Batch, objective: MakeObjective, log: Log = lambda text: None
) -> float:
    """Compile the code of a stored configuration before the first step (on resume); returns the seconds, 0 without compilation.

    The configuration must already be applied to the model; weights are not changed.
    """
    if not decision.compile:
        return 0.0
    start_time = time.perf_counter()
    model.train()
    workload = ProbeWorkload(model, batch.to(torch.device(decision.device)), objective, decision.device)
    compile_with_cache_retry(workload.step(DTYPES[decision.precision], decision.attention, head_kernel(decision)), log)
    return time.perf_counter() - start_time
