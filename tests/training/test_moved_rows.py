from pathlib import Path

import pytest

from fledge.pipeline import Pipeline
from fledge.plan.horizon import compute_steps
from fledge.recipe import recipe_from_dict
from fledge.recipe.schema import BatchConfig
from fledge.run import Console
from fledge.training.moved_rows import moved_rows
from tests.support.packed import pack, random_sequences
from tests.support.run_directory import events
from tests.support.small_runs import MODEL, RUNTIME, write_rows


@pytest.mark.parametrize(
    ("before", "after", "step", "passed_over", "read_twice", "rows"),
    [
        ("1 epochs", "2 epochs", 3, 2, 0, [11, 12]),  # 10 rows in 3 steps of 4; step 4 begins at row 13
        ("1 epochs", "2 epochs", 2, 0, 0, None),  # stopped before the partly filled step
        ("2 epochs", "3 epochs", 5, 0, 0, None),  # 20 rows fill 5 steps
        ("3 steps", "6 steps", 3, 0, 0, None),
        ("2 epochs", "1 epochs", 2, 0, 0, None),
    ],
)
def test_rows_after_a_partly_filled_last_step_are_counted(
    before: str, after: str, step: int, passed_over: int, read_twice: int, rows: list[int] | None
) -> None:
    data = pack(random_sequences([8] * 10), 8)
    assert len(data) == 10
    batch = BatchConfig(micro_batch_size=2, gradient_accumulation_steps=2)
    horizon = compute_steps(after, batch, data.packed_rows_in, data.packed_length)
    found = moved_rows(step, before, batch, data, horizon)
    expected = None if rows is None else {"passed_over": passed_over, "read_twice": read_twice, "rows": rows}
    assert (found and dict(found.evidence)) == expected


def test_a_stage_that_is_made_longer_says_which_row_it_passes_over(tmp_path: Path) -> None:
    """8 rows in steps of 3: the third step reads two rows, and the next epoch goes on with row 10 of the stream."""
    write_rows(tmp_path)
    data = {"train": str(tmp_path / "few.jsonl"), "validation": 0, "max_seq_len": 64}
    stage = {"kind": "sft", "data": data, "batch": {"micro_batch_size": 3}}
    tree = {"name": "longer", "output": str(tmp_path), "runtime": RUNTIME, "model": MODEL, "tokenizer": {"vocab_size": 400}}
    for duration in ("1 epochs", "2 epochs"):
        recipe = recipe_from_dict({**tree, "stages": {"sft": {**stage, "duration": duration}}})
        run = Pipeline(recipe, Console(quiet=True), allow=["stages.sft.duration"]).run()
    found = [event for event in events(run, "sft", "alert") if event["check"] == "moved_rows"]
    assert [(event["step"], event["where"], event["evidence"]) for event in found] == [
        (3, "stages.sft.duration", {"passed_over": 1, "read_twice": 0, "rows": [9, 9]})
    ]
    assert found[0]["message"].startswith("packed row 9 is passed over: the first 3 steps have read 8 rows")
    assert len(events(run, "sft", "step")) == 6
