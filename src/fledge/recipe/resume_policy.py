"""What a run may go on with that it was not begun with: judged key by key."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from fledge.recipe.diff import changed_leaves
from fledge.recipe.schema import Recipe

SAFE_KEYS = re.compile(  # nothing that is learned depends on these
    r"output|preset|(logging|generation_samples|alerts)\..*|runtime\.(autotune|memory_budget)|stages\.[^.]+\.(guards|checkpoint)\..*"
)
KEYS_NEEDING_ALLOW = re.compile(  # what is learned from here on does
    r"runtime\..*|stages\.[^.]+\.(duration|select_checkpoint|label_smoothing|beta|sft_loss_weight|(schedule|evaluation|early_stopping)\..*"
    r"|optimizer\.(learning_rate|betas|eps|weight_decay|weight_decay_on|max_grad_norm)(\..*)?"
    r"|batch\.(micro_batch_size|gradient_accumulation_steps))"
)


@dataclass(frozen=True)
class Change:
    """One key with what the run has and what it is to have."""

    key: str
    before: Any
    after: Any

    def concerns(self, stage: str) -> bool:
        """Whether it is one of this stage, or of all."""
        return _of_stage(self.key) in (stage, None)

    def __str__(self) -> str:
        return f"{self.key}: {self.before!r} -> {self.after!r}"


@dataclass(frozen=True)
class Changes:
    """The differences of a recipe to that of its run: those that are `taken`, those that must be asked for, and those that
    would make it another run."""

    applied: list[Change]
    needs_allow: list[Change]
    rejected: list[Change]


def compare_recipes(old: Recipe, new: Recipe, begun: Iterable[str], allowed: Iterable[str] = ()) -> Changes:
    """Judge every difference. Stages that are not `begun` may change as they like; `allowed` are keys, or beginnings of
    keys, of what was asked for."""
    before, after = old.model_dump(mode="json"), new.model_dump(mode="json")
    started, wanted = set(begun), tuple(allowed)
    judged = Changes([], [], [])
    for key, was, now in changed_leaves(before, after):
        change = Change(key, was, now)
        if SAFE_KEYS.fullmatch(key) or _of_stage(key) not in started | {None}:
            judged.applied.append(change)
        elif not KEYS_NEEDING_ALLOW.fullmatch(key) or (".batch." in key and not _same_window(old, new, key.split(".")[1])):
            judged.rejected.append(change)
        elif any(key == one or key.startswith(f"{one}.") for one in wanted):
            judged.applied.append(change)
        else:
            judged.needs_allow.append(change)
    order = [name for name in old.stages if name in started], [name for name in new.stages if name in started]
    if order[0] != order[1] or list(new.stages)[: len(order[0])] != order[0]:
        judged.rejected.append(Change("stages", list(old.stages), list(new.stages)))
    return judged


def _of_stage(key: str) -> str | None:
    parts = key.split(".")
    return parts[1] if parts[0] == "stages" and len(parts) > 1 else None


def _same_window(old: Recipe, new: Recipe, stage: str) -> bool:
    """Whether an update reads as many rows as before: then how they are split changes nothing but rounding."""
    both = [recipe.stages[stage].batch for recipe in (old, new) if stage in recipe.stages]
    rows = [
        batch.micro_batch_rows * batch.gradient_accumulation_steps
        if batch.tokens_per_step is None and batch.micro_batch_size != "auto"
        else None
        for batch in both
    ]
    return len(rows) == 2 and rows[0] == rows[1] and both[0].tokens_per_step == both[1].tokens_per_step
