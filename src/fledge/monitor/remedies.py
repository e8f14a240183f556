"""Remedies for the findings of guards: advice, and the change of the recipe that follows it, if there is one."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from fledge.findings import Finding
from fledge.recipe.schema import StageBase
from fledge.recipe.sections.guards import ValidationIncreaseGuard
from fledge.recipe.sections.preference import PAIR_LOSSES, PreferenceSettings

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
    return {"early_stopping.patience": getattr(stage.guards, "validation_increase", ValidationIncreaseGuard()).patience}


def keep_chosen_likely(stage: StageBase) -> Patch:
    """The SFT loss of the chosen answers, where the stage can have it and has none; else a lower learning rate."""
    if isinstance(stage, PreferenceSettings) and not stage.loss_keys.has_sft_loss and not stage.sft_loss_weight:
        return {"sft_loss_weight": 0.2}
    return lower_learning_rate(stage)


def raise_learning_rate(stage: StageBase) -> Patch:
    """Four times the learning rate."""
    return {"optimizer.learning_rate": 4 * stage.optimizer.numbers()[0]}


def average_over_tokens(stage: StageBase) -> Patch:
    """The DPO loss on log-probabilities averaged over tokens, for a loss of pairs on sums; else a lower learning rate."""
    if isinstance(stage, PreferenceSettings) and stage.loss_type in ("sigmoid", "hinge"):
        changed: Patch = {"loss_type": "sigmoid_norm", "beta": PAIR_LOSSES["sigmoid_norm"].beta}
        return {**changed, "label_smoothing": 0.0} if stage.label_smoothing else changed
    return lower_learning_rate(stage)


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
    "displacement": Remedy(
        "set sft_loss_weight (0.2 to 1) to keep the chosen answers likely, or a lower optimizer.learning_rate, or a larger "
        "beta; `fledge data check` shows pairs that are nearly equal; disentanglement: true measures whether updates can move "
        "the two apart, and which weight the chosen answers would need",
        keep_chosen_likely,
    ),
    "length_bias": Remedy(
        "the data rewards length: `fledge data check` shows how often the longer answer is the chosen one; add "
        "pairs of the opposite kind, or in a preference stage average over tokens with loss_type sigmoid_norm or simpo",
        average_over_tokens,
    ),
    "no_preference": Remedy(
        "raise optimizer.learning_rate or train longer; where the margin is negative, look at chosen and rejected with `fledge "
        "data show`",
        raise_learning_rate,
    ),
    "chance_accuracy": Remedy(
        "raise optimizer.learning_rate or train longer; look at chosen and rejected with `fledge data show`, and at the "
        "baselines of `fledge data check`: the answers may not differ in what the model can see",
        raise_learning_rate,
    ),
    "reward_hacking": Remedy(
        "the rewards count something else than what is wanted: read the answers, mend the rewards, or set beta; "
        "metric_for_best_model: exact_match with select_checkpoint: best keeps the best answers",
    ),
    "entropy_collapse": Remedy(
        "if the reward is as high as it can be, the stage is done; else lower optimizer.learning_rate, set epsilon_high to "
        "0.28, or set beta",
        lower_learning_rate,
    ),
    "length_hacking": Remedy(
        "add a reward of rule length with the bounds that are wanted, set loss_type to dr_grpo, or lower what rewards length"
    ),
    "truncated": Remedy(
        "set rollout.max_new_tokens to more, or mask_truncated to true, or train the model on shorter answers first"
    ),
    "equal_groups": Remedy(
        "if the reward is high, the stage is done; else the prompts are too hard: use easier ones, a reward that also counts "
        "what is half right, more rollout.num_generations, or rollout.redraw_equal_groups"
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
