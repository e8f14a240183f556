"""Runs of other lengths: their updates have the rows of the whole stage."""

from pathlib import Path
from typing import Any

import pytest

from fledge.forecast.forecast import know_recipe
from fledge.recipe import load_recipe
from fledge.run import Console
from fledge.sweep.recipes import SweepFiles, TrialRecipes
from fledge.tune.duration import patch_of_length
from fledge.tune.lengths import of_length
from fledge.tune.runs import ShortRuns
from tests.support.tiny_run import write

TOKENS = {"sft": 200 * 64}


@pytest.mark.parametrize(
    ("batch", "rows", "pinned"),
    [
        ({"micro_batch_size": "auto"}, 2, {"micro_batch_size": 2}),
        ({"micro_batch_size": "auto", "gradient_accumulation_steps": 2}, 2,
         {"micro_batch_size": 1, "merge_micro_batches": True}),
        ({"micro_batch_size": 4}, 4, {}),
        ({"tokens_per_step": 512}, 8, {}),
    ],
)  # fmt: skip
def test_another_length_has_the_rows_of_the_plan(
    tmp_path: Path, batch: dict[str, Any], rows: int, pinned: dict[str, Any]
) -> None:
    stage = {"data": {"train": "none.jsonl", "max_seq_len": 64}, "duration": "3 epochs", "batch": batch}
    file = str(write(tmp_path / "r.yaml", {"runtime": {"device": "cpu"}, "stages": {"sft": stage}}))
    recipes = TrialRecipes(files=(file,), overrides=(), space=(), stage="sft", first=0, shares_data=True,
                           paths=SweepFiles(folder=tmp_path))  # fmt: skip
    runs, console = ShortRuns(recipes=recipes, console=Console(quiet=True)), Console(quiet=True)
    plan = know_recipe(load_recipe([file]), console, tokens=TOKENS).stages["sft"].inputs.plan
    assert plan.effective_batch_rows == rows
    patch = patch_of_length(runs, plan, plan.steps)
    assert patch == {"stages.sft.duration": f"{plan.steps} steps",
                     **{f"stages.sft.batch.{key}": value for key, value in pinned.items()}}  # fmt: skip
    for values in (patch, of_length(runs, plan, 40)):
        changed = know_recipe(recipes.given(values), console, tokens=TOKENS).stages["sft"].inputs.plan
        assert changed.effective_batch_rows == rows
