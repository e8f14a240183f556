"""The figures of a step in events.jsonl: of the model in `step` events, of the machine in `system` events.

A resumed run writes `step` and `eval` events byte-identical to an uninterrupted run; `system` events differ from run to run.
"""

import math
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fledge.checkpoint.state import TrainState
from fledge.model.cost import ModelCost
from fledge.model.moe import RouterStats
from fledge.run import memory_bytes, nan_to_none, peak_memory_bytes
from fledge.training.train_step import HalfBatchStats, StepOutput, noise_scale


def step_metrics(output: StepOutput, state: TrainState, sources: tuple[str, ...], perplexity: bool) -> dict[str, Any]:
    """The `step` event of an update that `state` already counts. `sources`: names of the data sources. `perplexity`: whether
    exp(loss) is a perplexity. Reads tensors, which should be in main memory."""
    loss, grad_norm = float(output.loss), float(output.grad_norm)
    batch = output.batch
    values: dict[str, Any] = {
        "train/epoch": round(batch.epoch, 6),
        "train/loss": nan_to_none(loss),
        "train/lr": output.lr,
        "train/grad_norm": nan_to_none(grad_norm),
        "train/clip_fraction": round(state.clipped_steps / state.step, 6),
        "train/tokens": state.tokens,
        "train/target_tokens": state.target_tokens,
        "train/target_token_fraction": round(batch.num_target_tokens / max(1, batch.num_tokens), 6),
        **{f"train/{name}": nan_to_none(float(value)) for name, value in (*output.metrics.items(), *batch.metrics.items())},
    }
    if perplexity:
        values["train/perplexity"] = math.exp(min(loss, 700.0)) if math.isfinite(loss) else None
    if len(sources) > 1:
        values["train/tokens_by_source"] = dict(zip(sources, state.by_source, strict=True))
    if output.loss_scale is not None and output.num_skipped_steps is not None:
        values |= {"train/loss_scale": float(output.loss_scale), "train/skipped_steps": int(output.num_skipped_steps)}
    if output.halves is not None:
        values |= _grad_noise(output.halves, grad_norm)
    values |= {f"update_ratio/{name}": _six_digits(float(value)) for name, value in output.update_ratios.items()}
    if output.router_stats is not None:
        values |= _router_metrics(output.router_stats)
    return values


def _six_digits(value: float) -> float | None:
    """The value with six significant digits, enough to plot; None if it is not finite."""
    return nan_to_none(float(f"{value:.6g}"))


def _grad_noise(halves: HalfBatchStats, grad_norm: float) -> dict[str, Any]:
    noise = noise_scale(halves, grad_norm)
    return {
        "grad_noise/half_losses": [_six_digits(float(loss)) for loss in halves.losses],
        "grad_noise/half_norm": _six_digits(float(halves.norm)),
        "grad_noise/half_share": _six_digits(float(halves.weights[0]) / float(sum(halves.weights))),
        "grad_noise/scale": None if noise is None else _six_digits(noise),
    }


def _router_metrics(routing: RouterStats) -> dict[str, Any]:
    """Load per expert relative to an even one (1.0), router entropy and the auxiliary losses."""
    relative = routing.load * routing.load.shape[1]
    return {
        "router/load": [[round(share, 4) for share in layer] for layer in relative.tolist()],
        "router/max_load": _six_digits(float(relative.max())),
        "router/min_load": _six_digits(float(relative.min())),
        "router/entropy": _six_digits(float(routing.entropy.mean())),
        "train/router_aux_loss": _six_digits(float(routing.aux_loss)),
        "train/router_z_loss": _six_digits(float(routing.z_loss)),
    }


def system_metrics(
    output: StepOutput,
    state: TrainState,
    *,
    total_steps: int,
    device: str,
    seconds_before: float,
    other_seconds: Mapping[str, float],
    cost: ModelCost,
    mean_context: float,
    peak_flops: float,
    folder: Path,
) -> dict[str, Any]:
    """The `system` event: time by phase, throughput, memory, and the share of the device's measured matmul peak (MFU).

    `seconds_before`: the stage's clock at the previous event. `other_seconds`: time of evaluation and saving since then, by
    phase. `peak_flops`: FLOP/s, 0 if it was not measured. `folder`: a folder on the disk whose free space is reported. MFU
    counts the operations that the update needs: the head only at targets, attention only inside a document (`mean_context`: of
    the packed data). Speed and MFU are by the time since the previous event without `other_seconds`, not by the phases: what a
    GPU waits for between two updates counts."""
    phases = output.timer.seconds()
    step_seconds = state.seconds - seconds_before
    training_seconds = step_seconds - sum(other_seconds.values())
    batch = output.batch
    values: dict[str, Any] = {
        "system/seconds": round(state.seconds, 3),
        "system/step_seconds": round(step_seconds, 4),
        "system/phases": {name: round(seconds, 4) for name, seconds in {**phases, **other_seconds}.items()},
        "system/tokens_per_second": state.tokens / state.seconds,
        "system/step_tokens_per_second": round(batch.num_tokens / training_seconds, 1) if training_seconds > 0 else None,
        "system/memory_bytes": (held := memory_bytes(device)),
        "system/peak_memory_bytes": max(held, peak_memory_bytes(device)),
        "system/disk_free_bytes": shutil.disk_usage(folder).free,
        "system/eta_seconds": state.seconds / state.step * (total_steps - state.step),
    }
    if peak_flops and training_seconds > 0:
        flops = batch.num_tokens * cost.training_body_flops(mean_context) + batch.num_target_tokens * cost.training_head_flops()
        values["system/mfu"] = round(flops / training_seconds / peak_flops, 4)
    return values
