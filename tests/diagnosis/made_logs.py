"""Logs of training runs made of formulas and seeded noise: healthy ones of many sorts, and ones with a planted fault."""

import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.random import Generator

from fledge.diagnosis import Case
from fledge.training_log import TrainingLog, TrainingSettings
from fledge.training_log.records import Floats, Series


def case_of(log: TrainingLog, **figures: Any) -> Case:
    """A case of a log, with figures of data and probes: `data__unigram_entropy=5.0`."""
    case = Case(log=log)
    for name, value in figures.items():
        case.add("probe" if name.startswith("probe") else "data", {name.replace("__", "/"): value})
    return case


def falling(steps: Floats, first: float, floor: float, scale: float, power: float = 0.5) -> Floats:
    """A power law from `first` down to `floor`."""
    return floor + (first - floor) * (1 + steps / scale) ** -power


def noisy(rng: Generator, values: Floats, share: float, freedom: float = 6.0) -> Floats:
    """Values with noise of Student's t that is a share of them."""
    return values * (1 + share * rng.standard_t(freedom, len(values)) * math.sqrt((freedom - 2) / freedom))


def linear_rates(steps: Floats, peak: float, warmup: float, whole: float, low: float = 0.0) -> Floats:
    """A warm-up and a linear fall, as fledge computes them."""
    rising = peak * steps / max(warmup, 1)
    progress = np.clip((steps - max(warmup, 1)) / (whole - max(warmup - 1, 0)), 0, 1)
    return np.minimum(rising, low + (peak - low) * (1 - progress))


def log_of(
    loss: Floats, settings: TrainingSettings, *, every: int = 1, ended: bool | None = True, source: str = "fledge events",
    events: tuple[dict[str, Any], ...] = (), **more: Floats | Series,
) -> TrainingLog:  # fmt: skip
    """A log with a training loss at every `every`-th step and other columns: `train__lr=…`."""
    steps = every * np.arange(1, len(loss) + 1.0)
    series = {"train/loss": Series(steps, np.asarray(loss, float))}
    for name, values in more.items():
        series[name.replace("__", "/")] = values if isinstance(values, Series) else Series(steps, np.asarray(values, float))
    return TrainingLog(
        source=source, path="made", series=series, settings=settings, stage=settings.kind or "", ended=ended, events=events
    )


FRESH = TrainingSettings(
    kind="pretrain", initial="fresh", vocab_size=6400, hidden_size=320, parameters=10e6, optimizer="adamw",
    learning_rate=4e-3, min_learning_rate=0.0, schedule="linear", batch_tokens=8192, batch_rows=32, context=256,
    micro_batch_rows=32, accumulation_steps=1, weight_decay=0.1, max_grad_norm=1.0, precision="fp32",
)  # fmt: skip
TRAINED = replace(FRESH, kind="sft", initial="trained", learning_rate=1.5e-3, method="full", weight_decay=0.01)
PAIRS = replace(
    FRESH, kind="preference", initial="trained", learning_rate=1e-4, method="full", loss_type="sigmoid", beta=0.1,
    weight_decay=0.01,
)  # fmt: skip
POLICY = replace(FRESH, kind="grpo", initial="trained", learning_rate=1e-5, method="full", num_generations=8)


def whole(settings: TrainingSettings, steps: int, epochs: float = 1.0) -> TrainingSettings:
    """Settings of a stage of so many steps and epochs."""
    batch = settings.batch_rows or 32
    return replace(
        settings, steps=float(steps), epochs=epochs, rows=steps * batch / epochs, warmup_steps=float(round(0.02 * steps)),
        tokens=(settings.batch_tokens or 8192) * steps,
    )  # fmt: skip


def pretraining(rng: Generator, steps: int = 800, *, share: float = 0.03, epochs: float = 1.0, **changes: Any) -> TrainingLog:
    """A sound pretraining from fresh weights with evaluations."""
    at = np.arange(1, steps + 1.0)
    settings = replace(whole(FRESH, steps, epochs), **changes)
    clean = falling(at, math.log(settings.vocab_size or 6400) + 0.1, rng.uniform(1.6, 2.6), rng.uniform(5, 30))
    places = np.linspace(steps // 10, steps, 10).astype(int) - 1
    return log_of(
        noisy(rng, clean, share),
        settings,
        train__lr=linear_rates(at, settings.learning_rate or 4e-3, settings.warmup_steps or 0, steps),
        train__grad_norm=np.exp(rng.normal(0, 0.2, steps)) * (0.4 + 4 / (1 + at / 20)),
        train__epoch=at * epochs / steps,
        eval__loss=Series(at[places], noisy(rng, clean[places] * 1.03, 0.002)),
        system__step_seconds=rng.normal(0.1, 0.005, steps) + (at == 1) * 3,
    )


def _with_loss(log: TrainingLog, change: Callable[[Floats, Floats], Floats]) -> TrainingLog:
    series = log.series["train/loss"]
    return replace(log, series={**log.series, "train/loss": Series(series.steps, change(series.steps, series.values))})


def _large_vocabulary(rng: Generator) -> TrainingLog:
    at = np.arange(1, 601.0)
    settings = whole(replace(FRESH, vocab_size=151_936), 600)
    clean = falling(at, 12.0, 3.8, 20)
    return log_of(noisy(rng, clean, 0.02), settings, train__lr=linear_rates(at, 4e-3, 12, 600), train__epoch=at / 600)


def _wsd(rng: Generator) -> TrainingLog:
    log = pretraining(rng, 1000, schedule="wsd")
    fall = lambda at, values: values - 0.35 * np.clip((at - 800) / 200, 0, 1)  # noqa: E731
    rates = np.minimum(4e-3 * np.arange(1, 1001.0) / 20, 4e-3) * np.clip((1001 - np.arange(1, 1001.0)) / 200, 0, 1)
    log = _with_loss(log, fall)
    return replace(log, series={**log.series, "train/lr": Series(np.arange(1, 1001.0), rates)})


def _resumed(rng: Generator) -> TrainingLog:
    return replace(pretraining(rng), events=({"kind": "startup", "step": 401}, {"kind": "recipe_changed", "step": 401}))


def _epochs(rng: Generator) -> TrainingLog:
    log = pretraining(rng, 900, epochs=3.0)
    return _with_loss(log, lambda at, values: values * (1 - 0.02 * np.floor((at - 1) / 300)))


def _constant_rate(rng: Generator) -> TrainingLog:
    log = pretraining(rng, schedule="constant", learning_rate=2e-3, warmup_steps=0.0)
    return replace(log, series={**log.series, "train/lr": Series(np.arange(1, 801.0), np.full(800, 2e-3))})


def _beginning(rng: Generator) -> TrainingLog:
    log = pretraining(rng, 2000)
    size = int(rng.integers(5, 60))
    cut = {name: Series(one.steps[:size], one.values[:size]) for name, one in log.series.items() if name != "eval/loss"}
    return replace(log, series=cut, ended=None)


def _tiny_batch(rng: Generator) -> TrainingLog:
    return pretraining(rng, 1500, share=0.12, batch_tokens=1024, batch_rows=4, learning_rate=1.4e-3, tokens=1024 * 1500)


def _few_of_an_adapter(rng: Generator) -> TrainingLog:
    steps = int(rng.integers(12, 60))
    at = np.arange(1, steps + 1.0)
    settings = whole(
        replace(
            TRAINED, method="lora", adapter_rank=16, hidden_size=2048, parameters=1e9, learning_rate=2e-4, vocab_size=151_936
        ),
        steps,
    )
    clean = falling(at, 1.6, 1.2, 20)
    return log_of(
        noisy(rng, clean, 0.08), settings, train__lr=linear_rates(at, 2e-4, 1, steps),
        train__grad_norm=np.exp(rng.normal(-1, 0.3, steps)), train__epoch=at / steps,
    )  # fmt: skip


def tuning(rng: Generator, steps: int = 300, **changes: Any) -> TrainingLog:
    """A sound fine-tuning whose loss falls a little."""
    at = np.arange(1, steps + 1.0)
    settings = replace(whole(TRAINED, steps, 2.0), **changes)
    clean = falling(at, rng.uniform(1.5, 3.0), rng.uniform(1.0, 1.3), 10)
    places = np.linspace(steps // 6, steps, 6).astype(int) - 1
    return log_of(
        noisy(rng, clean, 0.1, 4.0), settings,
        train__lr=linear_rates(at, settings.learning_rate or 1e-3, settings.warmup_steps or 0, steps),
        train__grad_norm=np.exp(rng.normal(0, 0.4, steps)), train__epoch=at * 2 / steps,
        eval__loss=Series(at[places], noisy(rng, clean[places] + 0.08, 0.002)),
    )  # fmt: skip


def preferring(rng: Generator, steps: int = 120, **changes: Any) -> TrainingLog:
    """A sound preference stage: from ln 2 down, margins up."""
    at = np.arange(1, steps + 1.0)
    settings = replace(whole(PAIRS, steps), **changes)
    margin = 1.5 * (1 - np.exp(-at / 60))
    return log_of(
        np.log1p(np.exp(-margin)) + rng.normal(0, 0.02, steps) * margin, settings,
        train__lr=linear_rates(at, settings.learning_rate or 1e-4, settings.warmup_steps or 0, steps),
        train__rewards__margins=margin * (1 + rng.normal(0, 0.2, steps)),
        train__rewards__accuracies=np.clip(0.5 + 0.35 * margin / 1.5 + rng.normal(0, 0.08, steps), 0, 1),
        train__logps__chosen=-60 + 2 * margin + rng.normal(0, 3, steps),
        train__logps__rejected=-62 - 8 * margin + rng.normal(0, 3, steps),
        train__grad_norm=np.exp(rng.normal(1, 0.3, steps)), train__epoch=at / steps,
    )  # fmt: skip


def rewarding(rng: Generator, steps: int = 100) -> TrainingLog:
    """A sound grpo stage: a loss around 0, a reward that rises."""
    at = np.arange(1, steps + 1.0)
    return log_of(
        rng.normal(0, 0.01, steps), whole(POLICY, steps),
        train__lr=linear_rates(at, 1e-5, 2, steps), train__grad_norm=np.exp(rng.normal(-1, 0.3, steps)),
        train__reward=0.2 + 0.5 * at / steps + rng.normal(0, 0.05, steps),
        train__reward_std=np.abs(rng.normal(0.3, 0.05, steps)),
        train__frac_reward_zero_std=np.clip(rng.normal(0.3, 0.1, steps), 0, 1), train__entropy=0.8 - 0.2 * at / steps,
        train__kl=0.002 * at / steps, train__completions__mean_length=rng.normal(40, 3, steps),
        train__completions__clipped_ratio=np.clip(rng.normal(0.02, 0.02, steps), 0, 1),
    )  # fmt: skip


def _hugging_face(rng: Generator) -> TrainingLog:
    """As `trainer_state.json` has it: each tenth step, four digits, nothing known of the model."""
    log = tuning(rng, 500)
    keep = slice(9, None, 10)
    series = {
        name: Series(one.steps[keep], np.round(one.values[keep], 4 if "loss" in name or "norm" in name else 9))
        for name, one in log.series.items()
        if name != "eval/loss"
    }
    return replace(log, series=series, settings=TrainingSettings(steps=500.0, epochs=2.0), source="Hugging Face", stage="")


def _half_precision(rng: Generator) -> TrainingLog:
    log = tuning(rng, precision="fp16")
    at = log.series["train/loss"].steps
    scale = Series(at, np.where(at < 3, 65536.0 / 2**at, 16384.0))
    return replace(
        log, series={**log.series, "train/loss_scale": scale, "train/skipped_steps": Series(at, np.minimum(at, 2.0))}
    )


HEALTHY: dict[str, Callable[[Generator], TrainingLog]] = {
    "pretraining": pretraining,
    "large vocabulary": _large_vocabulary,
    "fall at the end of wsd": _wsd,
    "resumed": _resumed,
    "three epochs": _epochs,
    "constant rate": _constant_rate,
    "first steps": _beginning,
    "tiny batch": _tiny_batch,
    "few steps of an adapter": _few_of_an_adapter,
    "tuning": tuning,
    "preferences": preferring,
    "rewards": rewarding,
    "Hugging Face": _hugging_face,
    "half precision": _half_precision,
}
"""Healthy runs, odd ones among them: name → a log from a generator of random numbers."""
