"""The learning rate of every step, as a pure function.

Steps count from 0 to N − 1. Warm-up of W steps: base·(s + 1)/W, so step 0 already learns and step W − 1 has exactly
the base rate; the last step has exactly the minimum.
"""

import math
from collections.abc import Callable

from fledge.errors import FledgeError
from fledge.recipe.schema import OptimizerConfig, ScheduleConfig


def cosine(progress: float) -> float:
    """½(1 + cos πp) (Loshchilov & Hutter 2017, eq. 5)."""
    return 0.5 * (1 + math.cos(math.pi * progress))


def linear(progress: float) -> float:
    """1 − p."""
    return 1 - progress


def constant(progress: float) -> float:
    """1."""
    return 1.0


SHAPES: dict[str, Callable[[float], float]] = {"cosine": cosine, "linear": linear, "constant": constant, "wsd": linear}


def warmup_steps(config: ScheduleConfig, steps: int) -> int:
    """Warm-up as a number of steps; FledgeError where it would take the whole run."""
    count = int(config.warmup) if config.warmup >= 1 else round(config.warmup * steps)
    if count >= steps and count > 0:
        raise FledgeError(
            f"warm-up takes {count:,} steps but the stage has only {steps:,}", where="schedule.warmup",
            hint="write a share instead, such as 5%, or train longer",
        )  # fmt: skip
    return count


def learning_rate(step: int, steps: int, optimizer: OptimizerConfig, schedule: ScheduleConfig) -> float:
    """The rate of one step. `wsd` (Hu et al. 2024) holds the base rate and falls linearly in its last `decay` share."""
    base, low = optimizer.lr, schedule.min_lr
    warm = warmup_steps(schedule, steps)
    if step < warm:
        return base * (step + 1) / warm
    start, last = max(warm - 1, 0), steps - 1
    if schedule.name == "wsd":
        start = max(start, last - max(1, round(schedule.decay * steps)))
    if step <= start or schedule.name == "constant":
        return base
    if step == last:
        return low
    return low + (base - low) * SHAPES[schedule.name]((step - start) / (last - start))
