"""What helps against the finding of a guard: advice, and a change of the recipe where there is one."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from fledge.findings import Finding
from fledge.recipe.schema import StageBase

Patch = dict[str, Any]


@dataclass(frozen=True)
class Remedy:
    """Advice, and the keys of the stage that follow it, with their new values."""

    hint: str
    stage_patch: Callable[[StageBase], Patch] | None = None


def lower_learning_rate(stage: StageBase) -> Patch:
    """The learning rate times `guards.rollback.lr_factor`."""
    return {"optimizer.learning_rate": stage.optimizer.numbers()[0] * stage.guards.rollback.lr_factor}


def skip_spikes(stage: StageBase) -> Patch:
    """Leave updates with a gradient spike out; where that is done already, a lower learning rate."""
    return lower_learning_rate(stage) if stage.guards.grad_spike.action == "skip" else {"guards.grad_spike.action": "skip"}


def keep_best(stage: StageBase) -> Patch:
    """Go on with the best checkpoint; where that is done already, end the stage early."""
    if stage.select_checkpoint != "best":
        return {"select_checkpoint": "best"}
    return {"early_stopping.patience": stage.guards.validation_increase.patience}


UNSTABLE = Remedy(
    "lower optimizer.learning_rate, lengthen schedule.warmup, or mend the rows that are named", lower_learning_rate
)
REMEDIES: dict[str, Remedy] = {
    "non_finite": UNSTABLE,
    "divergence": UNSTABLE,
    "loss_spike": UNSTABLE,
    "grad_spike": Remedy(
        "guards.grad_spike: skip leaves such updates out; else lower optimizer.learning_rate, or mend the rows that are named",
        skip_spikes,
    ),
    "overflow": Remedy("set runtime.precision to bf16 or fp32, or lower optimizer.learning_rate", lower_learning_rate),
    "validation_increase": Remedy(
        "the model overfits: select_checkpoint: best goes on with the best checkpoint, early_stopping.patience ends the stage "
        "earlier",
        keep_best,
    ),
    "disk": Remedy("make room, then go on with the same command"),
}


def with_remedy(finding: Finding, stage_name: str, stage: StageBase) -> Finding:
    """The finding of a guard with its hint and its patch, where there are some."""
    remedy = REMEDIES.get(finding.check)
    if remedy is None:
        return finding
    patch = None
    if remedy.stage_patch is not None:
        patch = {f"stages.{stage_name}.{key}": value for key, value in remedy.stage_patch(stage).items()}
    return replace(finding, hint=remedy.hint, patch=patch)
