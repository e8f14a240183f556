"""What a run may go on with that it was not begun with: judged key by key."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from fledge.recipe.schema import Recipe
from fledge.recipe.snapshot import changed_leaves

FREE = re.compile(  # nothing that is learned depends on these
    r"output|preset|(logging|samples|alerts)\..*|machine\.(probe|memory)|stages\.[^.]+\.(guards|checkpoint)\..*"
)
ON_REQUEST = re.compile(  # what is learned from here on does
    r"machine\..*|stages\.[^.]+\.(length|keep|label_smoothing|beta|sft_weight|(schedule|evaluation|early_stop)\..*"
    r"|optimizer\.(lr|betas|eps|weight_decay|decay|clip)(\..*)?|batch\.(micro|accumulation))"
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

    taken: list[Change]
    on_request: list[Change]
    impossible: list[Change]


def judge(old: Recipe, new: Recipe, begun: Iterable[str], allowed: Iterable[str] = ()) -> Changes:
    """Judge every difference. Stages that are not `begun` may change as they like; `allowed` are keys, or beginnings of
    keys, of what was asked for."""
    before, after = old.model_dump(mode="json"), new.model_dump(mode="json")
    started, wanted = set(begun), tuple(allowed)
    judged = Changes([], [], [])
    for key, was, now in changed_leaves(before, after):
        change = Change(key, was, now)
        if FREE.fullmatch(key) or _of_stage(key) not in started | {None}:
            judged.taken.append(change)
        elif not ON_REQUEST.fullmatch(key) or (".batch." in key and not _same_window(old, new, key.split(".")[1])):
            judged.impossible.append(change)
        elif any(key == one or key.startswith(f"{one}.") for one in wanted):
            judged.taken.append(change)
        else:
            judged.on_request.append(change)
    order = [name for name in old.stages if name in started], [name for name in new.stages if name in started]
    if order[0] != order[1] or list(new.stages)[: len(order[0])] != order[0]:
        judged.impossible.append(Change("stages", list(old.stages), list(new.stages)))
    return judged


def _of_stage(key: str) -> str | None:
    parts = key.split(".")
    return parts[1] if parts[0] == "stages" and len(parts) > 1 else None


def _same_window(old: Recipe, new: Recipe, stage: str) -> bool:
    """Whether an update reads as many rows as before: then how they are split changes nothing but rounding."""
    both = [recipe.stages[stage].batch for recipe in (old, new) if stage in recipe.stages]
    rows = [batch.rows * batch.accumulation if batch.tokens is None and batch.micro != "auto" else None for batch in both]
    return len(rows) == 2 and rows[0] == rows[1] and both[0].tokens == both[1].tokens
