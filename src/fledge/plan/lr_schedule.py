"""The learning rate of every step, as a pure function.

Steps count from 0 to N − 1. Warm-up of W steps: base·(s + 1)/W, so step 0 already learns and step W − 1 has exactly
the base rate; the last step has exactly the minimum. `onecycle` warms up along a cosine instead.
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


def one_minus_sqrt(progress: float) -> float:
    """1 − √p (Hägele et al. 2024)."""
    return 1 - math.sqrt(progress)


SHAPES: dict[str, Callable[[float], float]] = {"cosine": cosine, "linear": linear, "onecycle": cosine}
DECAYS: dict[str, Callable[[float], float]] = {"linear": linear, "sqrt": one_minus_sqrt}


def resolve_steps(amount: float, steps: int, what: str, where: str) -> int:
    """A number of steps, given as such or as a share below 1; FledgeError where it would take the whole run."""
    count = int(amount) if amount >= 1 else round(amount * steps)
    if count >= steps and count > 0:
        raise FledgeError(
            f"{what} takes {count:,} steps but the stage has only {steps:,}", where=where,
            hint="write a share instead, such as 5%, or train longer",
        )  # fmt: skip
    return count


def warmup_steps(config: ScheduleConfig, steps: int) -> int:
    """Warm-up as a number of steps; FledgeError where it would take the whole run."""
    return resolve_steps(config.warmup, steps, "warm-up", "schedule.warmup")


def min_lr(schedule: ScheduleConfig, base: float) -> float:
    """The rate of the last step: `min_lr`, a number or a share of the base rate; with one-cycle also
    base / div_factor / final_div_factor."""
    if schedule.name == "onecycle" and schedule.final_div_factor is not None:
        return base / schedule.div_factor / schedule.final_div_factor
    low = schedule.min_lr
    return base * float(low.strip().removesuffix("%")) / 100 if isinstance(low, str) else low


def learning_rate(step: int, steps: int, optimizer: OptimizerConfig, schedule: ScheduleConfig) -> float:
    """The rate of one step. ValueError where the optimizer's numbers are not derived yet.

    `wsd` (Hu et al. 2024) holds the base rate and falls in its last `decay` share. `onecycle` (Smith & Topin 2018)
    rises along a cosine from base / div_factor and falls along another."""
    base, _, _ = optimizer.numbers()
    low, warm = min_lr(schedule, base), warmup_steps(schedule, steps)
    start, last = max(warm - 1, 0), steps - 1
    if step < start:
        if schedule.name == "onecycle":
            return base + (base / schedule.div_factor - base) * cosine(step / start)
        return base * (step + 1) / warm
    shape = SHAPES.get(schedule.name)
    if schedule.name == "wsd":
        start, shape = max(start, last - max(1, round(schedule.decay_fraction * steps))), DECAYS[schedule.decay_shape]
    if shape is None or step <= start:
        return base
    return low if step == last else low + (base - low) * shape((step - start) / (last - start))
