"""How to compute on this machine, decided by measuring it: device, precision, attention, compilation.

Brochures and tables lie about the machine at hand (bf16 can be five times faster or slower than fp32), so the step
itself is timed. The decision is stored with the run and used again on resume, because it decides the last bits.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

from fledge.data import Batch
from fledge.errors import FledgeError
from fledge.model.decoder import Decoder
from fledge.model.head import _loss_chunk
from fledge.recipe.schema import MachineConfig
from fledge.run.environment import cores

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}
WORTHWHILE = 0.9  # bf16 must take at most this share of fp32's time
PAYS_FROM = 60.0  # seconds of training below which compiling (some 20 s on two cores) is not even tried

Objective = Callable[[Decoder, Batch], Any]


@dataclass(frozen=True)
class Decision:
    """How a stage computes, and the measurements that decided it."""

    device: str
    precision: str
    attention: str
    compile: bool
    threads: int
    evidence: dict[str, float | str] = field(default_factory=dict)

    def as_dict(self) -> dict[str, Any]:
        """For machine.json."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> "Decision":
        """From machine.json."""
        return cls(**values)

    def apply(self, model: Decoder) -> Decoder:
        """Make the model compute so."""
        torch.set_num_threads(self.threads)
        model.compute_dtype = DTYPES[self.precision]
        model.use_attention(self.attention)
        model.to(self.device)
        if self.compile:
            compile_blocks(model)
        return model


def compile_blocks(model: Decoder) -> None:
    """Compile the block once; all layers share its code. (The stack as a whole would take layers times as long.)"""
    for block in model.blocks():
        if block._compiled_call_impl is None:
            block.compile(dynamic=False)


def uncompile(model: Decoder) -> None:
    """Back to plain calls."""
    for block in model.blocks():
        block._compiled_call_impl = None


_compiled_kernel: list[Any] = []


def compiled_kernel() -> Any:
    """The head's chunk, compiled; one for the whole process."""
    if not _compiled_kernel:
        _compiled_kernel.append(torch.compile(_loss_chunk, dynamic=False))
    return _compiled_kernel[0]


def head_kernel(decision: Decision) -> Any:
    """The head's chunk, compiled where compiling was decided; None for the plain one."""
    return compiled_kernel() if decision.compile else None


@contextmanager
def eagerly() -> Iterator[None]:
    """Without compiled code: evaluation is too short to pay for compiling its own shapes."""
    with torch.compiler.set_stance("force_eager"):
        yield


def refuse_device(config: MachineConfig) -> None:
    """FledgeError for a device that this machine does not have."""
    if config.device == "cuda" and not torch.cuda.is_available():
        raise FledgeError("no CUDA device is at hand", where="machine.device", hint="set machine.device to auto or cpu")


def _device(config: MachineConfig) -> str:
    refuse_device(config)
    if config.device == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return config.device


def _least_seconds(runs: dict[str, Callable[[], Any]], device: str, repeats: int = 3) -> dict[str, float]:
    """Least seconds of each call, taken in turns after one to warm up: a busy moment meets all of them, and what
    disturbs a measurement only ever makes it longer."""
    least = dict.fromkeys(runs, float("inf"))
    for repeat in range(repeats + 1):
        for name, run in runs.items():
            started = time.perf_counter()
            run()
            if device == "cuda":
                torch.cuda.synchronize()
            if repeat:
                least[name] = min(least[name], time.perf_counter() - started)
    return least


def _step(model: Decoder, batch: Batch, objective: Callable[[Any], Objective], kernel: Any) -> Callable[[], None]:
    def run() -> None:
        objective(kernel)(model, batch).loss.backward()
        model.zero_grad(set_to_none=True)

    return run


def decide(
    config: MachineConfig,
    model: Decoder,
    batch: Batch,
    objective: Callable[[Any], Objective],
    micro_steps: int,
    say: Callable[[str], None] = lambda text: None,
) -> Decision:
    """Measure one micro-batch of the real work and choose. The model's weights are not changed.

    `objective(kernel)` makes the loss with a head kernel; `micro_steps` is how many micro-batches the stage has.
    """
    device = _device(config)
    threads = config.threads or cores()
    torch.set_num_threads(threads)
    evidence: dict[str, float | str] = {}
    attention = config.attention
    if attention == "auto":
        attention = "blocked" if device == "cpu" else "sdpa"
    model.to(device).train()
    model.use_attention(attention)
    batch = batch.to(torch.device(device))
    precision = _precision(config, device, model, batch, objective, evidence)
    model.compute_dtype = DTYPES[precision]
    compiled = _compilation(config, device, model, batch, objective, micro_steps, evidence, say)
    model.zero_grad(set_to_none=True)
    return Decision(device, precision, attention, compiled, threads, evidence)


def _precision(
    config: MachineConfig,
    device: str,
    model: Decoder,
    batch: Batch,
    objective: Callable[[Any], Objective],
    evidence: dict[str, float | str],
) -> str:
    if config.precision != "auto":
        evidence["precision_reason"] = "as the recipe says"
        return config.precision
    if device == "cuda":
        native = torch.cuda.get_device_capability() >= (8, 0)
        evidence["precision_reason"] = "the GPU has bf16 units" if native else "the GPU has no bf16 units"
        return "bf16" if native else "fp32"

    def run_in(dtype: torch.dtype) -> Callable[[], None]:
        step = _step(model, batch, objective, None)

        def run() -> None:
            model.compute_dtype = dtype
            step()

        return run

    least = _least_seconds({name: run_in(dtype) for name, dtype in DTYPES.items()}, device)
    evidence.update({f"{name}_seconds": round(seconds, 4) for name, seconds in least.items()})
    pays = float(evidence["bf16_seconds"]) <= WORTHWHILE * float(evidence["fp32_seconds"])
    evidence["precision_reason"] = "measured on one micro-batch"
    return "bf16" if pays else "fp32"


def _compiled_step(model: Decoder, batch: Batch, objective: Callable[[Any], Objective]) -> Callable[[], None]:
    """A step in compiled code, run once so that it is compiled."""
    compile_blocks(model)
    run = _step(model, batch, objective, compiled_kernel())
    run()
    return run


def _failure(error: Exception) -> str:
    return f"compiling failed: {str(error).strip().splitlines()[0][:200]}"


def _must_compile(model: Decoder, batch: Batch, objective: Callable[[Any], Objective]) -> None:
    try:
        _compiled_step(model, batch, objective)
    except Exception as error:
        raise FledgeError(_failure(error), where="machine.compile", hint="set it to auto or false") from error


def _compilation(
    config: MachineConfig,
    device: str,
    model: Decoder,
    batch: Batch,
    objective: Callable[[Any], Objective],
    micro_steps: int,
    evidence: dict[str, float | str],
    say: Callable[[str], None],
) -> bool:
    if config.compile != "auto":
        evidence["compile_reason"] = "as the recipe says"
        if config.compile:
            _must_compile(model, batch, objective)
        return config.compile
    plain = _step(model, batch, objective, None)
    eager = _least_seconds({"eager": plain}, device)["eager"]
    if eager * micro_steps < PAYS_FROM:
        evidence["compile_reason"] = f"about {eager * micro_steps:.0f} s of training is too short for compiling to pay"
        return False
    say("compiling the model's block to see whether it pays …")
    started = time.perf_counter()
    try:
        run = _compiled_step(model, batch, objective)
        evidence["compile_seconds"] = round(time.perf_counter() - started, 1)
        least = _least_seconds({"eager": eagerly()(plain), "compiled": run}, device)
    except Exception as error:  # no compiler, or one that fails: the plain code is always there
        uncompile(model)
        evidence["compile_reason"] = _failure(error)
        say(f"warning: {evidence['compile_reason']}; going on without")
        return False
    evidence.update({f"{name}_seconds": round(seconds, 4) for name, seconds in least.items()})
    evidence["compile_reason"] = "measured on one micro-batch"
    if least["compiled"] < 0.97 * least["eager"]:
        return True
    uncompile(model)
    return False
