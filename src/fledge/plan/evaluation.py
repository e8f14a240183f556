"""How often a stage evaluates, and whether its evaluations can decide which checkpoint is the best."""

import math
from typing import Literal

from fledge.data import PackedDataset
from fledge.recipe.schema import StageBase

DEFAULT_EVALUATIONS = 10  # number of evaluations in a stage without evaluation.every_steps
MIN_EVALUATIONS = 3  # fewer leave nothing to choose from
MIN_VALIDATION_ROWS = 20  # examples, or packed rows where documents are long: the loss of fewer depends on which these are

Selection = Literal["last", "best"]


def evaluation_interval(stage: StageBase, total_steps: int) -> int:
    """Steps between two evaluations: `evaluation.every_steps`, else a tenth of the stage."""
    return stage.evaluation.every_steps or max(1, math.ceil(total_steps / DEFAULT_EVALUATIONS))


def evaluations(stage: StageBase, total_steps: int) -> int:
    """Number of evaluations in a stage, the one after the last step included."""
    return math.ceil(total_steps / evaluation_interval(stage, total_steps))


def validation_rows(validation: PackedDataset, max_packed_rows: int) -> int:
    """Number of examples, or of packed rows if these are more, that an evaluation reads."""
    packed = len(validation.layout)
    used = min(packed, max_packed_rows)
    return max(used, round(int(validation.summary()["examples"]) * used / packed))


def resolve_selection(stage: StageBase, validation: PackedDataset | None, total_steps: int) -> tuple[Selection, list[str]]:
    """The value of `select_checkpoint`, and for `auto` a sentence with the reason: `best` from MIN_EVALUATIONS evaluations
    of MIN_VALIDATION_ROWS rows on, else `last`."""
    if stage.select_checkpoint != "auto":
        return stage.select_checkpoint, []
    if validation is None:
        return "last", ["select_checkpoint last: there is no validation data"]
    rows = validation_rows(validation, stage.evaluation.max_packed_rows)
    count = evaluations(stage, total_steps)
    if rows < MIN_VALIDATION_ROWS:
        row = "row" if rows == 1 else "rows"
        return "last", [f"select_checkpoint last: {rows} validation {row}, too few to tell which checkpoint is better"]
    if count < MIN_EVALUATIONS:
        return "last", [f"select_checkpoint last: {count} evaluation{'s' * (count > 1)}, nothing to choose from"]
    return "best", [f"select_checkpoint best: of {count} evaluations of {rows:,} validation rows, and of the start"]
