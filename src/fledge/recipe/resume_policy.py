"""Which changes of the recipe are possible when a run is resumed, key by key."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from fledge.recipe.diff import changed_leaves
from fledge.recipe.schema import Recipe

SAFE_KEYS = re.compile(  # changes that do not affect training
    r"output|preset|(logging|generation_samples|alerts)\..*|runtime\.(autotune|memory_budget)|stages\.[^.]+\.(guards|checkpoint|doctor)\..*"
    r"|stages\.[^.]+\.(reward_timeout|disentanglement|evaluation\.sets(\..*)?)"
)
KEYS_NEEDING_ALLOW = re.compile(  # changes that affect training from now on; they must be allowed explicitly
    r"runtime\..*|stages\.[^.]+\.(duration|select_checkpoint|label_smoothing|beta|sft_loss_weight|(schedule|evaluation|early_stopping)\..*"
    r"|reference_(device|precision)"
    r"|optimizer\.(learning_rate|betas|eps|weight_decay|weight_decay_on|max_grad_norm)(\..*)?"
    r"|batch\.(micro_batch_size|gradient_accumulation_steps|merge_micro_batches))"
)


@dataclass(frozen=True)
class Change:
    """A key with its value in the run and its value in the new recipe. `reason`: why it cannot be changed; may be empty."""

    key: str
    before: Any
    after: Any
    reason: str = ""

    def concerns(self, stage: str) -> bool:
        """Whether the key belongs to this stage or to the whole run."""
        return _stage_of(self.key) in (stage, None)

    def __str__(self) -> str:
        return f"{self.key}: {self.before!r} -> {self.after!r}" + (f" ({self.reason})" if self.reason else "")


@dataclass(frozen=True)
class Changes:
    """The differences between a new recipe and the recipe of a run.

    `applied`: changes that take effect. `needs_allow`: changes that the user must allow. `rejected`: changes that need a new
    run. `without_effect`: changes of finished stages that would change nothing about how they were trained.
    """

    applied: list[Change] = field(default_factory=list)
    needs_allow: list[Change] = field(default_factory=list)
    rejected: list[Change] = field(default_factory=list)
    without_effect: list[Change] = field(default_factory=list)


def compare_recipes(
    old: Recipe,
    new: Recipe,
    started_stages: Iterable[str],
    allowed: Iterable[str] = (),
    finished: Mapping[str, str] | None = None,
) -> Changes:
    """Classify every difference of two recipes.

    Stages that have not started (not in `started_stages`) may change freely. `allowed`: keys, or prefixes of keys, that the
    user allows. `finished`: stages that are trained to their end, which no change can reach, with the reason to tell.
    """
    before, after = old.model_dump(mode="json"), new.model_dump(mode="json")
    started, prefixes, ended = set(started_stages), tuple(allowed), finished or {}
    changes = Changes()
    for key, old_value, new_value in changed_leaves(before, after):
        change = Change(key, old_value, new_value)
        if (stage := _stage_of(key)) in ended and stage in new.stages:
            if SAFE_KEYS.fullmatch(key):
                changes.without_effect.append(change)
            else:
                changes.rejected.append(replace(change, reason=ended[stage]))
        elif SAFE_KEYS.fullmatch(key) or _stage_of(key) not in started | {None}:
            changes.applied.append(change)
        elif not KEYS_NEEDING_ALLOW.fullmatch(key) or (
            ".batch." in key and not _same_rows_per_step(old, new, key.split(".")[1])
        ):
            changes.rejected.append(change)
        elif any(key == prefix or key.startswith(f"{prefix}.") for prefix in prefixes):
            changes.applied.append(change)
        else:
            changes.needs_allow.append(change)
    started_order = [name for name in old.stages if name in started], [name for name in new.stages if name in started]
    if started_order[0] != started_order[1] or list(new.stages)[: len(started_order[0])] != started_order[0]:
        changes.rejected.append(Change("stages", list(old.stages), list(new.stages)))
    return changes


def _stage_of(key: str) -> str | None:
    names = key.split(".")
    return names[1] if names[0] == "stages" and len(names) > 1 else None


def _same_rows_per_step(old: Recipe, new: Recipe, stage: str) -> bool:
    """Whether a step reads as many rows as before: then the micro-batch size changes nothing but rounding."""
    batches = [recipe.stages[stage].batch for recipe in (old, new) if stage in recipe.stages]
    rows = [
        batch.micro_batch_rows * batch.gradient_accumulation_steps
        if batch.tokens_per_step is None and batch.micro_batch_size != "auto"
        else None
        for batch in batches
    ]
    return len(rows) == 2 and rows[0] == rows[1] and batches[0].tokens_per_step == batches[1].tokens_per_step
