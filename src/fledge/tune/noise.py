"""The gradient noise scale from recorded norms of gradients at two batch sizes (McCandlish et al. 2018, appendix A.1)."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

BLOCK = 8  # neighbouring steps that are resampled together: their gradients are alike
RESAMPLES = 1000
MIN_STEPS = 40  # fewer say little


@dataclass(frozen=True, kw_only=True)
class NormsOfStep:
    """The squared norms of the gradients of a step: of its whole batch of `tokens` targets, and of the first `share` of it."""

    step: int
    tokens: float
    whole: float
    half: float
    share: float = 0.5


@dataclass(frozen=True, kw_only=True)
class NoiseScale:
    """B_simple = tr(Σ) / |G|² in target tokens, with its 95 % interval (None where it has no upper end: then |G|² cannot
    be told from 0). `steps`: how many it is of; `first`, `last`: between which."""

    tokens: float
    interval: tuple[float, float | None]
    steps: int
    first: int
    last: int

    def more_tokens(self, batch: float) -> float:
        """Tokens that training with this batch needs, relative to the least: 1 + B / B_crit (McCandlish et al. 2018, section
        2.3)."""
        return 1 + batch / self.tokens

    def more_steps(self, batch: float) -> float:
        """Steps that training with this batch needs, relative to the least: 1 + B_crit / B."""
        return 1 + self.tokens / batch


def recorded_norms(events: Iterable[dict[str, Any]]) -> list[NormsOfStep]:
    """The norms in the `step` events of a stage whose updates have two micro-batches or more. The first half of an odd number
    of micro-batches is the smaller one; in events that do not say its share it is taken to be a half."""
    found, before = list[NormsOfStep](), 0
    for event in events:
        if event["kind"] != "step":
            continue
        targets, step = event.get("train/target_tokens"), event["step"]
        whole, half = event.get("train/grad_norm"), event.get("grad_noise/half_norm")
        if targets is not None and whole is not None and half is not None and targets > before:
            share = event.get("grad_noise/half_share") or 0.5
            found.append(NormsOfStep(step=step, tokens=targets - before, whole=whole**2, half=half**2, share=share))
        before = targets if targets is not None else before
    return found


def _parts(norms: Sequence[NormsOfStep]) -> tuple[np.ndarray, np.ndarray]:
    """Unbiased estimates of |G|² and tr(Σ) of each step (McCandlish et al. 2018, eq. A.2): of a batch B and its first part b,

    |G|² ≈ (B |G_B|² − b |G_b|²) / (B − b),   tr(Σ) ≈ (|G_b|² − |G_B|²) / (1/b − 1/B).
    """
    large = np.array([one.tokens for one in norms])
    small = large * np.array([one.share for one in norms])
    whole, half = np.array([one.whole for one in norms]), np.array([one.half for one in norms])
    return (large * whole - small * half) / (large - small), (half - whole) / (1 / small - 1 / large)


def noise_scale(norms: Sequence[NormsOfStep]) -> NoiseScale | None:
    """The noise scale of these steps: mean tr(Σ) over mean |G|². The ratio of single steps is biased. The interval
    is that of 1,000 resamplings of blocks of steps. None where the means are not positive."""
    if not norms:
        return None
    signal, noise = _parts(norms)
    if signal.mean() <= 0 or noise.mean() <= 0:
        return None
    blocks = np.array_split(np.arange(len(norms)), max(1, len(norms) // BLOCK))
    sums = np.array([(signal[block].sum(), noise[block].sum()) for block in blocks])
    draws = np.random.default_rng(0).multinomial(len(sums), np.full(len(sums), 1 / len(sums)), size=RESAMPLES) @ sums
    ratios = np.where(draws[:, 0] > 0, np.maximum(draws[:, 1], 0) / np.where(draws[:, 0] > 0, draws[:, 0], 1.0), np.inf)
    low, high = np.quantile(ratios, (0.025, 0.975), method="nearest")
    return NoiseScale(
        tokens=float(noise.mean() / signal.mean()),
        interval=(float(low), float(high) if np.isfinite(high) else None),
        steps=len(norms),
        first=norms[0].step,
        last=norms[-1].step,
    )
