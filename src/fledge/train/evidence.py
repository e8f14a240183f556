"""What a step leaves in events.jsonl: figures of the model under `step`, of the machine under `resource`.

`step` and `eval` events are the same, byte for byte, in a run that was interrupted and resumed; `resource` events differ from
run to run.
"""

import math
import shutil
from pathlib import Path
from typing import Any

from fledge.model.cost import Cost
from fledge.run import finite, memory_bytes, peak_memory_bytes
from fledge.train.checkpoint import TrainState
from fledge.train.update import Half, Update, noise_scale


def step_values(update: Update, state: TrainState, names: tuple[str, ...], perplexity: bool) -> dict[str, Any]:
    """The `step` event after an update that `state` already contains. Reads tensors: on a GPU it waits for the step."""
    loss, norm = float(update.loss), float(update.norm)
    window = update.window
    values: dict[str, Any] = {
        "epoch": round(window.epoch, 6),
        "train/loss": finite(loss),
        "learning_rate": update.rate,
        "grad_norm": finite(norm),
        "clip_share": round(state.clipped / state.step, 6),
        "tokens": state.tokens,
        "supervised_tokens": state.supervised_tokens,
        "supervised_share": round(window.supervised / max(1, window.tokens), 6),
        **{name: finite(float(value)) for name, value in update.metrics.items()},
    }
    if perplexity:
        values["train/perplexity"] = math.exp(min(loss, 700.0)) if math.isfinite(loss) else None
    if len(names) > 1:
        values["tokens_by_source"] = dict(zip(names, state.by_source, strict=True))
    if update.scale is not None and update.skipped is not None:
        values |= {"loss_scale": float(update.scale), "skipped_steps": int(update.skipped)}
    if update.half is not None:
        values |= _halves(update.half, norm)
    values |= {f"update_rms/{name}": _digits(float(value)) for name, value in update.groups.items()}
    if update.routing is not None:
        values |= _routing(update)
    return values


def _digits(value: float) -> float | None:
    """Six of them: enough to plot."""
    return finite(float(f"{value:.6g}"))


def _halves(half: Half, norm: float) -> dict[str, Any]:
    noise = noise_scale(half, norm)
    return {
        "noise/half_losses": [_digits(float(loss)) for loss in half.losses],
        "noise/half_grad_norm": _digits(float(half.norm)),
        "noise/scale": None if noise is None else _digits(noise),
    }


def _routing(update: Update) -> dict[str, Any]:
    """Load per expert relative to an even one (1.0), router entropy and the auxiliary losses."""
    assert update.routing is not None
    routing = update.routing
    relative = routing.load * routing.load.shape[1]
    return {
        "moe/load": [[round(share, 4) for share in layer] for layer in relative.tolist()],
        "moe/load_max": _digits(float(relative.max())),
        "moe/load_min": _digits(float(relative.min())),
        "moe/entropy": _digits(float(routing.entropy.mean())),
        "train/balance_loss": _digits(float(routing.balance)),
        "train/z_loss": _digits(float(routing.z)),
    }


def resource_values(
    update: Update,
    state: TrainState,
    steps: int,
    before: float,
    spent: dict[str, float],
    cost: Cost,
    context: int,
    peak: float,
    folder: Path,
) -> dict[str, Any]:
    """The `resource` event: time by phase, throughput, memory, and the share of the device's measured matmul peak (MFU).

    `before` is the stage's clock at the record before, `spent` what evaluating and saving took since; `peak` in FLOP/s, 0
    where it was not measured; `folder` is where the run is kept. MFU counts what the update had to compute: the head only
    where something is supervised.
    """
    device = update.norm.device.type
    phases = update.clock.seconds()
    busy = sum(phases.values())
    window = update.window
    values: dict[str, Any] = {
        "seconds": round(state.seconds, 3),
        "step_seconds": round(state.seconds - before, 4),
        "phases": {name: round(seconds, 4) for name, seconds in {**phases, **spent}.items()},
        "tokens_per_second": state.tokens / state.seconds,
        "step_tokens_per_second": round(window.tokens / busy, 1) if busy else None,
        "memory_bytes": (held := memory_bytes(device)),
        "peak_memory_bytes": max(held, peak_memory_bytes(device)),
        "disk_free_bytes": shutil.disk_usage(folder).free,
        "eta_seconds": state.seconds / state.step * (steps - state.step),
    }
    if peak and busy:
        flops = window.tokens * cost.training_body_flops(context) + window.supervised * cost.training_head_flops()
        values["mfu"] = round(flops / busy / peak, 4)
    return values
