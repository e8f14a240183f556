"""Faults of learning rate, schedule, batch, duration and regularisation: settings, and a rate that is not the planned one."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from fledge.doctor_bench.condition import Fault, wrapping
from fledge.doctor_bench.setup import RunSetup
from fledge.training import trainer

TOKENS = ("pretrain", "sft", "lora", "seq2seq")
MOST = ("pretrain", "sft", "dpo", "kto", "reward", "seq2seq")


def scale_rate(setup: RunSetup, factor: float) -> None:
    """Write a multiple of the healthy learning rate into the recipe."""
    setup.set("optimizer", learning_rate=factor * setup.rate)


def _rate(change: Callable[[float, int, int], float]) -> AbstractContextManager[None]:
    """A context in which the rate of a step is `change(planned rate, step, steps)`."""

    def make(planned: Callable[..., float]) -> Callable[..., float]:
        def changed(step: int, steps: int, *settings: Any) -> float:
            return change(planned(step, steps, *settings), step, steps)

        return changed

    return wrapping(trainer, "learning_rate", make)


def _zero(setup: RunSetup, amount: Any) -> AbstractContextManager[None]:
    return _rate(lambda planned, step, steps: 0.0)


def _off_plan(setup: RunSetup, factor: float) -> AbstractContextManager[None]:
    return _rate(lambda planned, step, steps: factor * planned)


def _horizon(setup: RunSetup, factor: float) -> AbstractContextManager[None]:
    """The schedule counts on `factor` times the steps of the run."""

    def make(planned: Callable[..., float]) -> Callable[..., float]:
        def changed(step: int, steps: int, *settings: Any) -> float:
            horizon = max(4, round(factor * steps))
            return planned(min(step, horizon - 1), horizon, *settings)

        return changed

    return wrapping(trainer, "learning_rate", make)


def _no_warmup(setup: RunSetup, factor: float) -> None:
    scale_rate(setup, factor)
    setup.set("schedule", warmup=0)


def _tiny_batch(setup: RunSetup, more_updates: int) -> None:
    """One row for each update, at the healthy rate."""
    scale_rate(setup, 1.0)
    setup.set("batch", micro_batch_size=1, gradient_accumulation_steps=1)
    _steps(setup, more_updates * setup.steps)


def _huge_batch(setup: RunSetup, updates: int) -> None:
    """As many rows as in a healthy run, in few updates."""
    scale_rate(setup, 1.0)
    rows = setup.stage["batch"]["micro_batch_size"] * setup.stage["batch"]["gradient_accumulation_steps"] * setup.steps
    setup.set("batch", micro_batch_size=8, gradient_accumulation_steps=max(1, rows // (8 * updates)))
    _steps(setup, updates)


def _steps(setup: RunSetup, steps: int) -> None:
    setup.stage["duration"] = f"{steps} steps"
    setup.set("evaluation", every_steps=max(2, steps // 4))
    setup.set("checkpoint", every_steps=max(2, steps // 2))


def _under_trained(setup: RunSetup, steps: int) -> None:
    _steps(setup, steps)


def _overfit(setup: RunSetup, rows: int) -> None:
    """Few rows, read until they are known by heart, at a rate that is high in its band."""
    scale_rate(setup, 1.6)
    setup.change_rows(lambda all_rows: all_rows[:rows])


def _decay(setup: RunSetup, decay: float) -> None:
    setup.set("optimizer", weight_decay=decay)


def _clipping(setup: RunSetup, norm: float) -> None:
    setup.set("optimizer", max_grad_norm=norm)


def _adapter_rate(setup: RunSetup, divisor: float) -> None:
    scale_rate(setup, 1 / divisor)


def _smoothing(setup: RunSetup, share: float) -> None:
    setup.stage["label_smoothing"] = share


def _long_warmup(setup: RunSetup, share: float) -> None:
    setup.set("schedule", warmup=share)


def _dropout(setup: RunSetup, share: float) -> None:
    setup.recipe["model"]["dropout"] = share


FAULTS = (
    Fault(name="learning rate zero", category="learning rate", shapes=MOST, levels={"": 0}, patch=_zero),
    Fault(
        name="learning rate far too high", category="learning rate", shapes=MOST,
        levels={"20x": 20, "60x": 60}, prepare=scale_rate,
    ),
    Fault(name="learning rate too high", category="learning rate", shapes=TOKENS, levels={"8x": 8}, prepare=scale_rate),
    Fault(
        name="learning rate far too low", category="learning rate", shapes=MOST,
        levels={"0.03x": 0.03, "0.003x": 0.003}, prepare=scale_rate,
    ),
    Fault(name="learning rate too low", category="learning rate", shapes=("pretrain", "sft"), levels={"0.1x": 0.1},
          prepare=scale_rate),
    Fault(
        name="adapter at the rate of full tuning", category="learning rate", shapes=("lora",), levels={"10th": 10, "30th": 30},
        prepare=_adapter_rate,
    ),
    Fault(
        name="rate is not the planned one", category="learning rate", shapes=("pretrain", "sft"),
        levels={"0.05x": 0.05, "10x": 10}, patch=_off_plan, is_silent=True,
    ),
    Fault(name="schedule ends early", category="learning rate", shapes=("pretrain", "sft"),
          levels={"half": 0.4, "fifth": 0.15}, patch=_horizon),
    Fault(name="schedule never decays", category="learning rate", shapes=("pretrain",), levels={"8x": 8}, patch=_horizon),
    Fault(name="no warm-up", category="learning rate", shapes=("pretrain",), levels={"3x": 3, "8x": 8}, prepare=_no_warmup),
    Fault(name="batch tiny", category="batch", shapes=("pretrain", "sft"), levels={"": 3}, prepare=_tiny_batch),
    Fault(name="batch huge", category="batch", shapes=("pretrain", "sft"), levels={"10": 10, "5": 5}, prepare=_huge_batch),
    Fault(name="under-trained", category="duration", shapes=("pretrain", "sft", "seq2seq"), levels={"12": 12, "5": 5},
          prepare=_under_trained),
    Fault(name="overfit", category="duration", shapes=(*TOKENS, "reward"), levels={"60": 60, "16": 16},
          prepare=_overfit),
    Fault(name="weight decay far too strong", category="learning rate", shapes=("pretrain", "sft"),
          levels={"10": 10.0, "50": 50.0}, prepare=_decay),
    Fault(name="clipping strangles", category="learning rate", shapes=("pretrain", "sft"),
          levels={"1e-7": 1e-7, "1e-9": 1e-9}, prepare=_clipping),
    Fault(name="dropout far too strong", category="model", shapes=("pretrain",), levels={"0.5": 0.5, "0.8": 0.8},
          prepare=_dropout),
    Fault(name="label smoothing far too strong", category="targets", shapes=("sft",), levels={"0.3": 0.3, "0.7": 0.7},
          prepare=_smoothing),
    Fault(name="warm-up too long", category="learning rate", shapes=("pretrain",), levels={"0.7": 0.7, "0.97": 0.97},
          prepare=_long_warmup),
)  # fmt: skip
