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
from fledge.data import Batch
from fledge.model.decoder import Decoder
from fledge.recipe.schema import MachineConfig
from fledge.run.cache import Measurements
from fledge.run.environment import environment
from fledge.train import probe
from fledge.train.choosing import Probe
from fledge.train.compiling import compile_blocks, compiled_afresh_if_damaged, compiled_kernel, eagerly, model_code, uncompile
from fledge.train.decision import Decision, chosen_device, head_kernel, refuse_device
from fledge.train.precision import DTYPES
from fledge.train.probe import MakeObjective, Say, Work

__all__ = [
    "DTYPES",
    "Decision",
    "compile_blocks",
    "compiled_kernel",
    "decide",
    "eagerly",
    "head_kernel",
    "refuse_device",
    "uncompile",
    "warm_up",
]


def measurements_key(work: Work, config: MachineConfig) -> dict[str, Any]:
    """Everything that measurements depend on, but for the choices that their names say."""
    machine = environment()
    return {
        "machine": {name: machine[name] for name in ("cpu", "cpu_capability", "cores", "platform")},
        "gpu": torch.cuda.get_device_name() if work.device == "cuda" else None,
        "torch": torch.__version__,
        "fledge": [fledge.__version__, model_code(), xxhash.xxh3_64_hexdigest(Path(probe.__file__).read_bytes())],
        "model": {**work.model.config.model_dump(mode="json", exclude={"path"}), "vocab_size": work.model.vocab_size},
        "objective": type(work.objective(None)).__name__,
        "batch": list(work.batch.tokens.shape),
        "recomputed": config.recomputed,
    }


def decide(
    config: MachineConfig,
    model: Decoder,
    batch: Batch,
    objective: MakeObjective,
    micro_steps: int,
    say: Say = lambda text: None,
) -> Decision:
    """Measure a piece of one micro-batch of the real work and choose. The model's weights are not changed.

    `objective(kernel)` makes the loss with a head kernel; `micro_steps` is how many micro-batches the stage has.
    Raises FledgeError where the recipe asks for what this machine cannot do.
    """
    refuse_device(config)
    device = chosen_device(config)
    model.to(device).train()
    work = Work(model, batch.to(torch.device(device)), objective, device)
    measured = Measurements(measurements_key(work, config), say, again=config.probe == "again")
    decision = Probe(config, work, measured, micro_steps, say).decision()
    model.compute_dtype = DTYPES[decision.precision]
    model.use_attention(decision.attention)
    model.zero_grad(set_to_none=True)
    if device == "cuda":  # what probing took is not what training takes
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    return decision


def warm_up(decision: Decision, model: Decoder, batch: Batch, objective: MakeObjective, say: Say = lambda text: None) -> float:
    """Compile what a decision says that was made before (on resume), where the first step would; returns the seconds.

    The decision must be applied to the model already; its weights are not changed. 0 where nothing is compiled.
    """
    if not decision.compile:
        return 0.0
    started = time.perf_counter()
    model.train()
    work = Work(model, batch.to(torch.device(decision.device)), objective, decision.device)
    compiled_afresh_if_damaged(work.step(DTYPES[decision.precision], decision.attention, head_kernel(decision)), say)
    return time.perf_counter() - started
