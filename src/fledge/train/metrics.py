"""What a step leaves in events.jsonl: figures of the model under `step`, of the machine under `resource`.

`step` and `eval` events are the same, byte for byte, in a run that was interrupted and resumed; `resource` events differ from
run to run.
"""

import math
import shutil
from pathlib import Path
from typing import Any

from fledge.checkpoint.state import TrainState
from fledge.model.cost import ModelCost
from fledge.run import memory_bytes, nan_to_none, peak_memory_bytes
from fledge.train.train_step import HalfBatchStats, StepOutput, noise_scale


def step_metrics(update: StepOutput, state: TrainState, names: tuple[str, ...], perplexity: bool) -> dict[str, Any]:
    """The `step` event after an update that `state` already contains. Reads tensors: on a GPU it waits for the step."""
    loss, norm = float(update.loss), float(update.norm)
    window = update.window
    values: dict[str, Any] = {
        "train/epoch": round(window.epoch, 6),
        "train/loss": nan_to_none(loss),
        "train/lr": update.rate,
        "train/grad_norm": nan_to_none(norm),
        "train/clip_fraction": round(state.clipped_steps / state.step, 6),
        "train/tokens": state.tokens,
        "train/target_tokens": state.target_tokens,
        "train/target_token_fraction": round(window.supervised / max(1, window.tokens), 6),
        **{f"train/{name}": nan_to_none(float(value)) for name, value in update.metrics.items()},
    }
    if perplexity:
        values["train/perplexity"] = math.exp(min(loss, 700.0)) if math.isfinite(loss) else None
    if len(names) > 1:
        values["train/tokens_by_source"] = dict(zip(names, state.by_source, strict=True))
    if update.scale is not None and update.skipped is not None:
        values |= {"train/loss_scale": float(update.scale), "train/skipped_steps": int(update.skipped)}
    if update.half is not None:
        values |= _halves(update.half, norm)
    values |= {f"update_ratio/{name}": _digits(float(value)) for name, value in update.groups.items()}
    if update.routing is not None:
        values |= _routing(update)
    return values


def _digits(value: float) -> float | None:
    """Six of them: enough to plot."""
    return nan_to_none(float(f"{value:.6g}"))


def _halves(half: HalfBatchStats, norm: float) -> dict[str, Any]:
    noise = noise_scale(half, norm)
    return {
        "grad_noise/half_losses": [_digits(float(loss)) for loss in half.losses],
        "grad_noise/half_norm": _digits(float(half.norm)),
        "grad_noise/scale": None if noise is None else _digits(noise),
    }


def _routing(update: StepOutput) -> dict[str, Any]:
    """Load per expert relative to an even one (1.0), router entropy and the auxiliary losses."""
    assert update.routing is not None
    routing = update.routing
    relative = routing.load * routing.load.shape[1]
    return {
        "router/load": [[round(share, 4) for share in layer] for layer in relative.tolist()],
        "router/max_load": _digits(float(relative.max())),
        "router/min_load": _digits(float(relative.min())),
        "router/entropy": _digits(float(routing.entropy.mean())),
        "train/router_aux_loss": _digits(float(routing.balance)),
        "train/router_z_loss": _digits(float(routing.z)),
    }


def system_metrics(
    update: StepOutput,
    state: TrainState,
    steps: int,
    before: float,
    spent: dict[str, float],
    cost: ModelCost,
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
        "system/seconds": round(state.seconds, 3),
        "system/step_seconds": round(state.seconds - before, 4),
        "system/phases": {name: round(seconds, 4) for name, seconds in {**phases, **spent}.items()},
        "system/tokens_per_second": state.tokens / state.seconds,
        "system/step_tokens_per_second": round(window.tokens / busy, 1) if busy else None,
        "system/memory_bytes": (held := memory_bytes(device)),
        "system/peak_memory_bytes": max(held, peak_memory_bytes(device)),
        "system/disk_free_bytes": shutil.disk_usage(folder).free,
        "system/eta_seconds": state.seconds / state.step * (steps - state.step),
    }
    if peak and busy:
        flops = window.tokens * cost.training_body_flops(context) + window.supervised * cost.training_head_flops()
        values["system/mfu"] = round(flops / busy / peak, 4)
    return values
