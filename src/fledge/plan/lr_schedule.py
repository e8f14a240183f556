"""The learning rate of every step, as a pure function.

Steps are numbered 0 … N − 1. A warm-up of W steps uses base·(s + 1)/W, so step 0 already learns and step W − 1 has exactly the
base rate; the rate would be the minimum at step N, one after the last, so the last step learns too when the minimum is 0.
`onecycle` warms up along a cosine instead.
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


def resolve_steps(amount: float, steps: int, what: str, recipe_key: str) -> int:
    """A number of steps, given as such or as a fraction below 1. Raises FledgeError if it takes the whole stage."""
    count = int(amount) if amount >= 1 else round(amount * steps)
    if count >= steps and count > 0:
        raise FledgeError(
            f"{what} takes {count:,} steps but the stage has only {steps:,}", where=recipe_key,
            hint="write a fraction instead, such as 5%, or train longer",
        )  # fmt: skip
    return count


def warmup_steps(config: ScheduleConfig, steps: int) -> int:
    """Steps of the learning rate warm-up. Raises FledgeError if it takes the whole stage."""
    return resolve_steps(config.warmup, steps, "warm-up", "schedule.warmup")


def min_lr(schedule: ScheduleConfig, base: float) -> float:
    """The learning rate that a schedule falls to, one step after the last: `min_lr`, a number or a percentage of the base rate;
    for one-cycle with `final_div_factor` it is base / div_factor / final_div_factor."""
    if schedule.name == "onecycle" and schedule.final_div_factor is not None:
        return base / schedule.div_factor / schedule.final_div_factor
    low = schedule.min_lr
    return base * float(low.strip().removesuffix("%")) / 100 if isinstance(low, str) else low


def learning_rate(step: int, steps: int, optimizer: OptimizerConfig, schedule: ScheduleConfig) -> float:
    """The learning rate of one step. Raises ValueError if settings of the optimizer are still `auto`.

    `wsd` (Hu et al. 2024) keeps the base rate and decays in the last `decay_fraction` of the steps. `onecycle` (Smith & Topin
    2018) rises along a cosine from base / div_factor and falls along another cosine. Every fall ends at step N = `steps`.
    """
    base, _, _ = optimizer.numbers()
    low, warmup = min_lr(schedule, base), warmup_steps(schedule, steps)
    start = max(warmup - 1, 0)
    if step < start:
        if schedule.name == "onecycle":
            return base + (base / schedule.div_factor - base) * cosine(step / start)
        return base * (step + 1) / warmup
    shape = SHAPES.get(schedule.name)
    if schedule.name == "wsd":
        start, shape = max(start, steps - 1 - max(1, round(schedule.decay_fraction * steps))), DECAYS[schedule.decay_shape]
    if shape is None or step <= start:
        return base
    return low + (base - low) * shape((step - start) / (steps - start))
