"""The three schemes: their numbers, their costs, and that recipes take them."""

from dataclasses import replace
from pathlib import Path

import pytest

from fledge.diagnosis import Case, Diagnoses, Diagnosis, Figure, Sign
from fledge.diagnosis.diagnose import add_own_figures
from fledge.doctor.as_json import as_json
from fledge.doctor.examination import Examination
from fledge.doctor.known_trainers import KNOWN_TRAINERS
from fledge.doctor.scheme_cost import cost_of
from fledge.doctor.scheme_text import scheme_lines
from fledge.doctor.schemes import halfway, proof_steps, schemes
from fledge.doctor.taken import taken_by_recipe
from fledge.doctor.target import Target
from fledge.doctor.text import finding_lines
from fledge.findings import Finding
from fledge.recipe import load_recipe, recipe_from_dict, to_yaml
from fledge.sweep.space import as_overrides
from tests.doctor.made_up import FAULTY, NOTHING, examination, rate_diagnosis
from tests.support import tiny_run

RATE = "stages.sft.optimizer.learning_rate"


def faulty(tmp_path: Path | None = None, found: Diagnoses = FAULTY, duration: str = "8 steps") -> Examination:
    """The made-up case with a rate that is too high; with a folder, of a run whose recipe is there."""
    one = examination(found)
    add_own_figures(one.case)
    if tmp_path is not None:
        tree = tiny_run.tree(tmp_path / "world", tmp_path / "runs")
        tree["stages"]["sft"]["duration"] = duration
        recipe = recipe_from_dict(tree)
        (tmp_path / "recipe.yaml").write_text(to_yaml(recipe), encoding="utf-8")
        one.target = Target(path=tmp_path, run=tmp_path)
    return one


def test_aggressive_goes_all_the_way_and_conservative_half_of_it(tmp_path: Path) -> None:
    one = faulty(tmp_path)
    found = {scheme.letter: scheme for scheme in schemes(one)}
    assert list(found) == ["A", "B", "C"]
    assert found["A"].patch[RATE] == 0.0006 and found["C"].patch == {RATE: 0.0006}
    nearest = min((0.01 * 0.0006) ** 0.5, 0.9 * one.case.value("plan/rate_high"))  # inside of the band
    assert found["B"].patch[RATE] == pytest.approx(nearest, rel=0.03)
    assert "an update moves weights 0.0601 times as far" in found["A"].effects[0]
    assert "look at step 50: the loss was" in found["C"].steps[0].look


def test_copies_fall_away_in_as_many_tokens(tmp_path: Path) -> None:
    clean = "stages.sft.data.clean.exact_duplicates"
    finding = Finding(check="duplicated data", severity="error", message="the data repeats itself", confidence="certain",
                      patch={clean: True})  # fmt: skip
    copied = Diagnosis(cause="duplicated data", category="data", sign=Sign(finding=finding, strength=0.9))
    one = faulty(tmp_path, Diagnoses(found=(copied, *FAULTY.found), unexplained=(), missing={}), duration="2 epochs")
    one.case.add("data", {"data/duplicate_share": Figure(0.6, "data")})
    found = {scheme.letter: scheme for scheme in schemes(one)}
    rows = {clean: True, "stages.sft.duration": "400 steps"}
    assert [dict(step.patch) for step in found["C"].steps] == [rows, {RATE: 0.0006}]
    assert found["A"].patch == {**rows, RATE: 0.0006} and found["B"].patch.items() > rows.items()
    assert found["C"].effects[0] == (
        "60.0% of the examples fall away, and in as many updates the others are read 2.5 times as often"
    )
    assert not any("longer run" in effect for effect in found["A"].effects)  # the number of updates is as before
    assert (found["A"].cost.updates, found["A"].cost.tokens) == (400, 3_276_800)
    in_steps = faulty(tmp_path, Diagnoses(found=(copied,), unexplained=(), missing={}), duration="400 steps")
    assert next(iter(schemes(in_steps))).patch == {clean: True}


def test_a_rate_that_was_rounded_is_not_called_outside_of_its_band(tmp_path: Path) -> None:
    one = faulty(tmp_path)
    low, high = one.case.value("plan/rate_low"), one.case.value("plan/rate_high")
    for rate, place in ((1.05 * high, "at the end of"), (1.2 * high, "still outside"), ((low * high) ** 0.5, "inside")):
        one.diagnoses = Diagnoses(found=(rate_diagnosis(rate=rate),), unexplained=(), missing={})
        assert f" is {place} the usual " in schemes(one)[0].effects[0]


def test_the_patches_are_taken_by_the_recipe(tmp_path: Path) -> None:
    one = faulty(tmp_path)
    for scheme in schemes(one):
        recipe = load_recipe([str(tmp_path / "recipe.yaml")], as_overrides(scheme.patch))
        assert recipe.stages["sft"].optimizer.learning_rate == scheme.patch[RATE]


def test_a_change_that_the_recipe_refuses_is_left_out_with_the_reason(tmp_path: Path) -> None:
    patch = {RATE: 1e-4, "stages.sft.data.max_seq_len": 4096}
    taken, left_out = taken_by_recipe(faulty(tmp_path), patch)
    assert taken == {RATE: 1e-4}
    assert "is longer than model.max_position_embeddings" in left_out["stages.sft.data.max_seq_len"]


def test_nothing_that_settings_cure_gives_no_schemes() -> None:
    one = examination(NOTHING)
    assert schemes(one) == [] and proof_steps(one, stepwise=True) is None
    assert "there are no schemes" in next(iter(scheme_lines(one))).text


def test_a_proof_tries_the_root_or_the_steps_of_the_stepwise_scheme(tmp_path: Path) -> None:
    chosen = proof_steps(faulty(tmp_path), stepwise=True)
    assert chosen is not None and chosen[0].cause == "learning rate too high" and chosen[1] == [{RATE: 0.0006}]
    assert proof_steps(faulty(tmp_path), stepwise=False) == chosen


def test_costs_are_the_runs_own_figures() -> None:
    case = faulty().case
    same = cost_of(case, {RATE: 1e-4})
    assert (same.updates, same.tokens, same.seconds) == (400, 3_276_800, 200.0) and same.memory.startswith("as before")
    longer = cost_of(case, {"stages.sft.duration": "4 epochs"})
    assert (longer.updates, longer.tokens, longer.seconds) == (800, 6_553_600, 400.0)
    smaller = cost_of(case, {"stages.sft.batch.micro_batch_size": 8, "stages.sft.batch.gradient_accumulation_steps": 1})
    assert (smaller.updates, smaller.tokens, smaller.seconds) == (1600, 3_276_800, 200.0)
    assert smaller.memory.startswith("less than before")
    short = Case(log=replace(case.log, settings=replace(case.settings, context=256)), figures=case.figures)
    wider = cost_of(short, {"stages.sft.data.max_seq_len": 512})
    assert (wider.updates, wider.tokens, wider.seconds) == (200, 3_276_800, 200.0) and wider.memory.startswith("up to 2 times")
    steps = cost_of(case, {"stages.sft.duration": "800 steps"})
    assert (steps.updates, steps.tokens) == (800, 6_553_600)


def test_half_of_the_way_by_kind_of_value() -> None:
    case = faulty().case
    assert halfway(case, "batch.micro_batch_size", 4) == 8
    assert halfway(case, "duration", "8 epochs") == "4 epochs"
    assert halfway(case, "schedule.name", "cosine") == "cosine"
    assert halfway(case, "runtime.compile", True) is True
    band = case.value("plan/rate_low"), case.value("plan/rate_high")
    assert band[0] < halfway(case, "optimizer.learning_rate", band[0] * 1.2) < band[1]


def test_a_foreign_log_gets_the_schemes_in_its_own_keys() -> None:
    one = examination(Diagnoses(found=(rate_diagnosis(),), unexplained=(), missing={}), run=False)
    add_own_figures(one.case)
    text = "\n".join(line.text for line in scheme_lines(one))
    assert "learning_rate = 0.0006" in text and "--stages" not in text


def test_a_trainer_whose_settings_have_no_effect_gets_changes_of_its_code() -> None:
    one = examination(NOTHING, run=False)
    one.trainer = KNOWN_TRAINERS[0]
    found = {scheme.letter: scheme for scheme in schemes(one)}
    assert list(found) == ["A", "B", "C"] and len(found["C"].steps) == 3
    assert any("relative_step=False" in word for word in found["B"].steps[0].words)
    assert all(scheme.patch == {} for scheme in found.values())


TOKENS = {"tokens_per_step": 4096, "micro_batch_size": 2}


def of_batch(tmp_path: Path, patch: dict, batch: dict = TOKENS) -> Examination:
    """A finding with a patch of the batch, of a run with this section in its recipe."""
    finding = Finding(check="batch too small", severity="warning", message="an update is small", confidence="likely",
                      patch={f"stages.sft.batch.{key}": value for key, value in patch.items()})  # fmt: skip
    diagnosis = Diagnosis(cause="batch too small", category="batch", sign=Sign(finding=finding, strength=0.7))
    one = faulty(tmp_path, Diagnoses(found=(diagnosis, *FAULTY.found), unexplained=(), missing={}))
    tree = load_recipe([str(tmp_path / "recipe.yaml")]).model_dump(mode="json")
    tree["stages"]["sft"]["batch"] = batch
    (tmp_path / "recipe.yaml").write_text(to_yaml(recipe_from_dict(tree)), encoding="utf-8")
    return one


def test_changes_are_taken_in_whatever_order_they_need_each_other_and_those_of_a_batch_together(tmp_path: Path) -> None:
    sized = {"gradient_accumulation_steps": 8, "micro_batch_size": 4, "tokens_per_step": None}
    one = of_batch(tmp_path, sized)
    patch = {"stages.sft.batch." + key: value for key, value in sized.items()}
    too_long = {"stages.sft.data.max_seq_len": 4096}
    taken, left_out = taken_by_recipe(one, {**too_long, **patch})
    assert taken == patch and list(left_out) == list(too_long)
    half = {key: value for key, value in patch.items() if value is not None}  # of which the recipe would take one key
    assert taken_by_recipe(one, half)[0] == {} and list(taken_by_recipe(one, half)[1]) == list(half)


def test_what_the_recipe_refuses_is_neither_told_to_be_written_nor_proved(tmp_path: Path) -> None:
    one = of_batch(tmp_path, {"gradient_accumulation_steps": 8})
    text = "\n".join(line.text for line in finding_lines(one, one.diagnoses.found[0], 1))
    assert "--stages" not in text and "as YAML" not in text and "--prove" not in text
    assert "left out: stages.sft.batch.gradient_accumulation_steps: " in text and "both set the size of an update" in text
    told = as_json([one])["findings"][0]
    assert told["patch"] is None and list(told["left_out"]) == ["stages.sft.batch.gradient_accumulation_steps"]
    chosen = proof_steps(one, stepwise=False)
    assert chosen is not None and (chosen[0].cause, chosen[1]) == ("learning rate too high", [{RATE: 0.0006}])


def test_a_recipe_that_cannot_be_read_leaves_nothing_out(tmp_path: Path) -> None:
    one = faulty(tmp_path)
    (tmp_path / "recipe.yaml").write_text("stages: {sft: {kind: of another version}}", encoding="utf-8")
    assert taken_by_recipe(one, {RATE: 1e-4}) == ({RATE: 1e-4}, {})
