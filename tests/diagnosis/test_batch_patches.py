"""What the causes in the size of an update change: it has the rows that they say, whatever else the recipe says of it."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fledge.diagnosis import Case
from fledge.diagnosis.causes import CAUSES
from fledge.doctor.scheme_cost import batch_factor, cost_of
from fledge.doctor.schemes import _steps, current
from fledge.doctor.synonyms import stage_key
from fledge.recipe import load_recipe, recipe_from_dict, to_yaml
from fledge.recipe.units import Duration
from fledge.sweep.space import as_overrides
from fledge.training_log.fledge_settings import recipe_settings
from fledge.training_log.settings import yaml_tree
from tests.diagnosis.made_logs import TRAINED, case_of, falling, log_of

CRASH = {"kind": "crash", "text": "torch.OutOfMemoryError: CUDA out of memory"}
FIGURES: dict[str, dict[str, Any]] = {
    "batch too small": {"plan/batch_factor": 1 / 8, "plan/batch_tokens": 65_536, "plan/batch_low": 524_288},
    "batch too large": {"plan/batch_factor": 16.0, "plan/batch_tokens": 65_536, "plan/batch_high": 4096, "plan/steps": 30},
    "too few updates": {"plan/steps": 8, "plan/is_done": True},
    "out of memory": {"curve/crash": CRASH["text"]},
}
BATCHES: dict[str, dict[str, Any]] = {
    "tokens": {"tokens_per_step": 65_536},
    "tokens in micro-batches": {"tokens_per_step": 65_536, "micro_batch_size": 8},
    "rows with a warm-up": {
        "micro_batch_size": 8,
        "gradient_accumulation_steps": 16,
        "warmup": {"initial_accumulation_steps": 2},
    },
    "rows": {"micro_batch_size": 16, "gradient_accumulation_steps": 8},
}
ROWS = 128  # of an update, in each of them


def recipe_file(folder: Path, batch: dict[str, Any], **more: Any) -> Path:
    """The recipe of a run of one stage of 512 tokens a row, with every key written. `more`: other keys of the stage."""
    data = {"train": "rows.jsonl", "max_seq_len": 512}
    stage = {"kind": "sft", "data": data, "batch": batch, **more}
    recipe = recipe_from_dict({"model": {"max_position_embeddings": 2048}, "stages": {"sft": stage}})
    file = folder / "recipe.yaml"
    file.write_text(to_yaml(recipe), encoding="utf-8")
    return file


def case(file: Path, figures: dict[str, Any]) -> Case:
    """A run of that recipe, whose plan took 16 rows as a micro-batch where the recipe leaves it open."""
    steps = np.arange(1, 31.0)
    found = recipe_settings(yaml_tree(file), "sft", "recipe.yaml")
    planned = replace(TRAINED, steps=30.0, batch_rows=float(ROWS), batch_tokens=65_000.0, context=512, tokens=30 * 65_000.0,
                      micro_batch_rows=found.micro_batch_rows or 16.0, accumulation_steps=found.accumulation_steps,
                      other=found.other)  # fmt: skip
    made = case_of(log_of(falling(steps, 4.0, 1.0, 10), planned))
    made.add("plan", figures)
    return made


def patch_of(cause: str, one: Case) -> dict[str, Any]:
    sign = next(found for found in CAUSES if found.name == cause).find(one)
    assert sign is not None and sign.finding.patch is not None
    return dict(sign.finding.patch)


@pytest.mark.parametrize("batch", BATCHES)
@pytest.mark.parametrize("cause", FIGURES)
def test_the_recipe_takes_the_change_and_an_update_has_its_rows(tmp_path: Path, cause: str, batch: str) -> None:
    file = recipe_file(tmp_path, BATCHES[batch])
    one = case(file, FIGURES[cause])
    patch = patch_of(cause, one)
    changed = load_recipe([str(file)], as_overrides(patch)).stages["sft"].batch
    assert changed.tokens_per_step is None
    rows = changed.global_batch_rows(512)
    wanted = {"batch too small": 8 * ROWS, "batch too large": ROWS // 16, "too few updates": round(ROWS * 8 / 200),
              "out of memory": ROWS}  # fmt: skip
    assert rows == wanted[cause]
    updates = cost_of(one, patch).updates
    assert updates is not None and updates == pytest.approx(30 * ROWS / rows, abs=1)


@pytest.mark.parametrize("cause", ["batch too small", "batch too large", "too few updates"])
@pytest.mark.parametrize("batch", BATCHES)
def test_a_stage_that_counts_updates_gets_as_many_tokens_from_smaller_or_larger_ones(
    tmp_path: Path, cause: str, batch: str
) -> None:
    file = recipe_file(tmp_path, BATCHES[batch], duration="30 steps")
    one = case(file, FIGURES[cause])
    patch = patch_of(cause, one)
    changed = load_recipe([str(file)], as_overrides(patch)).stages["sft"]
    rows = changed.batch.global_batch_rows(512)
    steps = Duration.parse(changed.duration).amount
    assert steps == (200 if cause == "too few updates" else pytest.approx(30 * ROWS / rows, abs=1))
    cost = cost_of(one, patch)
    assert cost.updates == steps
    assert cost.tokens == pytest.approx(30 * 65_000 * (steps * rows) / (30 * ROWS), rel=1e-3)
    (step,) = _steps(one, patch)
    assert step.patch == patch


@pytest.mark.parametrize("duration", ["2 epochs", "30 steps"])
@pytest.mark.parametrize("batch", BATCHES)
def test_longer_rows_leave_an_update_its_tokens(tmp_path: Path, batch: str, duration: str) -> None:
    file = recipe_file(tmp_path, BATCHES[batch], duration=duration)
    one = case(file, {})
    one.add("data", {"data/truncated_share": 0.6})
    patch = patch_of("context cuts answers", one)
    changed = load_recipe([str(file)], as_overrides(patch)).stages["sft"]
    assert changed.data.max_seq_len == 1024
    assert changed.batch.global_batch_rows(1024) == ROWS // 2
    assert changed.duration == load_recipe([str(file)]).stages["sft"].duration
    cost = cost_of(one, patch)
    assert (cost.updates, cost.tokens) == (30, 30 * 65_000)
    (step,) = _steps(one, patch)
    assert step.patch == patch


def test_longer_rows_of_another_trainer_leave_its_batch_as_it_is(tmp_path: Path) -> None:
    one = case(recipe_file(tmp_path, BATCHES["rows"]), {})
    foreign = Case(log=replace(one.log, stage=""), figures={})
    foreign.add("data", {"data/truncated_share": 0.6})
    assert patch_of("context cuts answers", foreign) == {"stages.sft.data.max_seq_len": 1024}


def test_the_cost_of_a_batch_in_a_stage_that_counts_updates_is_that_of_its_rows(tmp_path: Path) -> None:
    one = case(recipe_file(tmp_path, BATCHES["rows"], duration="30 steps"), FIGURES["batch too large"])
    halved = cost_of(one, {"stages.sft.batch.micro_batch_size": 8})
    assert (halved.updates, halved.tokens) == (30, 15 * 65_000)


def test_a_warm_up_of_the_batch_stays_where_it_still_grows(tmp_path: Path) -> None:
    one = case(recipe_file(tmp_path, BATCHES["rows with a warm-up"]), FIGURES["batch too small"])
    assert patch_of("batch too small", one) == {
        "stages.sft.batch.micro_batch_size": 8, "stages.sft.batch.gradient_accumulation_steps": 128,
    }  # fmt: skip


def run_again(one: Case, **settings: Any) -> Case:
    """The case with other settings, as another number of processes or another device computed the recipe."""
    return Case(log=replace(one.log, settings=replace(one.log.settings, **settings)), figures=one.figures)


TWICE = {"plan/batch_factor": 1 / 2.5, "plan/batch_per_noise_scale": 0.01, "plan/batch_tokens": 65_536,
         "plan/batch_low": 163_840}  # fmt: skip


@pytest.mark.parametrize(
    "computed",
    [
        {"processes": 2.0, "accumulation_steps": 4.0},
        {"micro_batch_rows": 128.0, "accumulation_steps": 1.0},
        {"processes": 4.0, "micro_batch_rows": 32.0, "accumulation_steps": 1.0},
    ],
)
def test_a_larger_update_is_larger_however_the_recipe_was_computed(tmp_path: Path, computed: dict[str, Any]) -> None:
    file = recipe_file(tmp_path, {"micro_batch_size": 16, "gradient_accumulation_steps": 8, "merge_micro_batches": True})
    one = run_again(case(file, TWICE), **computed)
    patch = patch_of("batch too small", one)
    changed = load_recipe([str(file)], as_overrides(patch)).stages["sft"].batch
    assert changed.global_batch_rows(512) == 2 * ROWS
    assert batch_factor(one, {stage_key(key): value for key, value in patch.items()}) == 2.0
    assert current(one, "batch.gradient_accumulation_steps") == ROWS // (computed.get("micro_batch_rows") or 16)


def rows_of(one: Case, cause: str) -> int:
    """The rows of an update of another trainer after the change, over all processes."""
    patch = {stage_key(key): value for key, value in patch_of(cause, one).items()}
    each = patch["batch.micro_batch_size"] * patch["batch.gradient_accumulation_steps"]
    return each * int(one.settings.processes or 1)


@pytest.mark.parametrize(("micro", "accumulation"), [(32.0, 1.0), (4.0, 8.0)])
def test_another_trainer_is_told_the_rows_of_one_process(tmp_path: Path, micro: float, accumulation: float) -> None:
    sized = {"batch_rows": 256.0, "processes": 8.0, "micro_batch_rows": micro, "accumulation_steps": accumulation}
    for cause, figures, rows in (("too few updates", {"plan/steps": 40, "plan/is_done": True}, 51),
                                 ("batch too large", FIGURES["batch too large"], 16)):  # fmt: skip
        one = case(recipe_file(tmp_path, BATCHES["rows"]), figures | {"curve/last_loss": 3.0})
        foreign = run_again(Case(log=replace(one.log, stage=""), figures=one.figures), **sized)
        if cause == "too few updates":
            foreign.add("plan", {"curve/late_fall": 0.9, "curve/late_z": -9.0})
        assert rows_of(foreign, cause) == pytest.approx(rows, abs=8)
        assert patch_of(cause, foreign)["stages.sft.batch.micro_batch_size"] <= micro


def test_an_update_that_cannot_be_smaller_makes_room_for_a_longer_stage(tmp_path: Path) -> None:
    one = case(recipe_file(tmp_path, BATCHES["rows"]), FIGURES["too few updates"])
    foreign = run_again(Case(log=replace(one.log, stage=""), figures=one.figures), batch_rows=8.0, processes=8.0,
                        micro_batch_rows=1.0, accumulation_steps=1.0)  # fmt: skip
    assert patch_of("too few updates", foreign) == {"stages.sft.duration": "200 steps"}


def test_micro_batches_that_a_gpu_merged_do_not_make_updates_larger(tmp_path: Path) -> None:
    file = recipe_file(tmp_path, {"micro_batch_size": "auto", "gradient_accumulation_steps": 16})
    one = case(file, FIGURES["out of memory"])
    merged = replace(one.log.settings, micro_batch_rows=64.0, other={**one.log.settings.other, "device": "cuda"})
    patch = patch_of("out of memory", Case(log=replace(one.log, settings=merged), figures=one.figures))
    changed = load_recipe([str(file)], as_overrides(patch)).stages["sft"].batch
    assert changed.global_batch_rows(512) == ROWS and changed.micro_batch_size == 32 and not changed.merge_micro_batches


def test_the_cost_of_other_micro_batches_of_an_update_that_is_counted_in_tokens_is_the_same(tmp_path: Path) -> None:
    one = case(recipe_file(tmp_path, BATCHES["tokens"]), {})
    assert cost_of(one, {"stages.sft.batch.micro_batch_size": 4}).updates == 30


def test_the_log_of_another_trainer_gets_the_rows_alone(tmp_path: Path) -> None:
    one = case(recipe_file(tmp_path, BATCHES["tokens"]), FIGURES["batch too large"])
    foreign = Case(log=replace(one.log, stage=""), figures=one.figures)
    assert list(patch_of("batch too large", foreign)) == [
        "stages.sft.batch.micro_batch_size", "stages.sft.batch.gradient_accumulation_steps",
    ]  # fmt: skip
