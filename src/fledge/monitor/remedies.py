"""Remedies for the findings of guards: advice, and the change of the recipe that follows it, if there is one."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from fledge.findings import Finding
from fledge.recipe.schema import StageBase

Patch = dict[str, Any]


@dataclass(frozen=True)
class Remedy:
    """A hint, and a function to the keys and new values of the stage that follow the hint."""

    hint: str
    stage_patch: Callable[[StageBase], Patch] | None = None


def lower_learning_rate(stage: StageBase) -> Patch:
    """The learning rate times `guards.rollback.lr_factor`."""
    return {"optimizer.learning_rate": stage.optimizer.numbers()[0] * stage.guards.rollback.lr_factor}


def skip_spikes(stage: StageBase) -> Patch:
    """Skip updates with a gradient spike; if they are skipped already, a lower learning rate."""
    return lower_learning_rate(stage) if stage.guards.grad_spike.action == "skip" else {"guards.grad_spike.action": "skip"}


def keep_best(stage: StageBase) -> Patch:
    """Select the best checkpoint; if it is selected already, end the stage early."""
    if stage.select_checkpoint != "best":
        return {"select_checkpoint": "best"}
    return {"early_stopping.patience": stage.guards.validation_increase.patience}


MEND_ROWS = "or mend the rows that are named"  # follows the hint where rows are named
UNSTABLE = Remedy("lower optimizer.learning_rate, or lengthen schedule.warmup", lower_learning_rate)
REMEDIES: dict[str, Remedy] = {
    "non_finite": UNSTABLE,
    "divergence": UNSTABLE,
    "loss_spike": UNSTABLE,
    "grad_spike": Remedy(
        "guards.grad_spike: skip leaves such updates out; else lower optimizer.learning_rate",
        skip_spikes,
    ),
    "overflow": Remedy("set runtime.precision to bf16 or fp32, or lower optimizer.learning_rate", lower_learning_rate),
    "validation_increase": Remedy(
        "the model overfits: select_checkpoint: best continues with the best checkpoint, early_stopping.patience ends the "
        "stage earlier",
        keep_best,
    ),
    "disk": Remedy("free some space, then run the same command again"),
}


def with_remedy(finding: Finding, stage_name: str, stage: StageBase) -> Finding:
    """The finding with the hint and the patch of its remedy, if there is one."""
    remedy = REMEDIES.get(finding.check)
    if remedy is None:
        return finding
    patch = None
    if remedy.stage_patch is not None:
        patch = {f"stages.{stage_name}.{key}": value for key, value in remedy.stage_patch(stage).items()}
    return replace(finding, hint=remedy.hint, patch=patch)
