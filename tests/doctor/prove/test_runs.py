"""What paired runs are made of: patches, lengths, data in another order, held-out documents."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fledge.diagnosis.causes import CAUSES
from fledge.doctor.prove import FROM_CHECKPOINT, prove
from fledge.doctor.prove_budget import least_share, length_of, needs_whole, seconds_per_token, whole_seconds
from fledge.doctor.prove_data import built_folder, changes_data, held_out_examples, load, reseeded
from fledge.doctor.prove_effect import compare
from fledge.doctor.prove_recipes import Length, ProofRecipes
from fledge.doctor.prove_runs import ProofRuns
from fledge.doctor.prove_yardsticks import OF_CAUSE, OF_KIND, YARDSTICKS, Subject, yardsticks_for
from fledge.errors import FledgeError
from fledge.prepare import Preparation
from fledge.recipe import load_recipe, to_yaml
from fledge.recipe.schema_keys import KINDS
from fledge.report.proofs import LABELS
from fledge.run import Console, StageDirectory
from fledge.run.console import silent
from fledge.tokenizer import load_tokenizer

QUIET = Console(quiet=True)


def test_keys_of_a_patch_are_those_of_the_stage_or_of_the_recipe(slow_run: Path) -> None:
    recipes = ProofRecipes.of(slow_run, "talk")
    assert recipes.normalised({"optimizer.learning_rate": 1e-3, "model.dropout": 0.1, "stages.talk.duration": "9 steps"}) == {
        "stages.talk.optimizer.learning_rate": 1e-3, "model.dropout": 0.1, "stages.talk.duration": "9 steps",
    }  # fmt: skip
    with pytest.raises(FledgeError, match="no key of the stage talk"):
        recipes.normalised({"stages.other.duration": "9 steps"})
    with pytest.raises(FledgeError, match="another tokenizer losses cannot be compared"):
        recipes.normalised({"tokenizer.vocab_size": 500})
    with pytest.raises(FledgeError, match="the seed is what the pairs differ in"):
        recipes.normalised({"seed": 5})
    with pytest.raises(FledgeError, match="unknown key"):
        recipes.whole({"optimizer.rate": 1})


def test_short_runs_keep_the_proportions_of_the_schedule(slow_run: Path) -> None:
    runs = ProofRuns(recipes=ProofRecipes.of(slow_run, "talk"), console=QUIET)
    variant = runs.variant({"schedule.warmup": 10})
    half = runs.recipes.short(variant.recipe, variant.prepared, Length(0.5), 9).stages["talk"]
    assert half.duration == "20 steps" and half.schedule.warmup == 0.25 and half.schedule.min_lr == 1e-5
    whole = runs.recipes.short(variant.recipe, variant.prepared, Length(1.0), 9)
    assert whole.stages["talk"].duration == "40 steps" and whole.stages["talk"].schedule.warmup == 10 and whole.seed == 9
    assert Length(0.1).steps(40) == 20 and Length(0.1).steps(12) == 12 and Length(0.25).steps(400) == 100
    runs.clean()


def test_runs_begin_where_the_stage_began_or_at_its_newest_checkpoint(slow_run: Path) -> None:
    recipes = ProofRecipes.of(slow_run, "talk")
    assert recipes.start_model() is None and recipes.whole({}).stages["talk"].init_from is None  # new weights
    newest = recipes.whole({}, "checkpoint").stages["talk"].init_from
    assert newest == str(slow_run / "talk" / "checkpoints" / "step-00000040" / "model") and Path(newest).exists()


def test_a_build_is_read_in_another_order_and_stays_as_it_is(slow_run: Path, tmp_path: Path) -> None:
    recipes = ProofRecipes.of(slow_run, "talk")
    recipe, folder = recipes.whole({}), built_folder(recipes.run, recipes.given, "talk")
    before = {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    tokenizer = load_tokenizer(slow_run / "tokenizer")
    seed = Preparation(recipe.model_copy(update={"seed": 77}), silent).seed("talk")
    out = reseeded(folder, recipe, seed, tmp_path / "data", (slow_run / "tokenizer", tokenizer))
    first, other = (load(one, recipe.stages["talk"], tokenizer) for one in (folder, out / "talk"))
    assert first.validation is not None and other.validation is not None
    assert np.array_equal(first.train.examples.tokens[0:999], other.train.examples.tokens[0:999])
    assert first.validation.examples.fingerprint() == other.validation.examples.fingerprint()
    assert not np.array_equal(first.train.epoch_order(0), other.train.epoch_order(0))
    assert before == {file: file.read_bytes() for file in folder.rglob("*") if file.is_file()}
    assert reseeded(folder, recipe, seed, out, (slow_run / "tokenizer", tokenizer)) == out  # again: it is there
    assert not changes_data(folder, recipe.stages["talk"])
    assert changes_data(folder, recipes.whole({"data.max_seq_len": 64}).stages["talk"])


def test_documents_that_a_run_is_trained_on_are_not_held_out(slow_run: Path) -> None:
    recipes = ProofRecipes.of(slow_run, "talk")
    data = load(slow_run / "talk" / "data", recipes.given.stages["talk"], load_tokenizer(slow_run / "tokenizer"))
    assert data.validation is not None
    held_out = held_out_examples(data.validation, [data.train], 10)
    assert len(held_out) == 10 and max(held_out.values()) < data.validation.examples.count
    assert len(held_out_examples(data.train, [data.train], 10)) == 10  # one data set serves all: equal for both runs
    with pytest.raises(FledgeError, match="that no run was trained on, and there are 0"):
        held_out_examples(data.train, [data.train, data.train], 10)
    with pytest.raises(FledgeError, match="there are 0"):
        held_out_examples(None, [data.train], 10)


def test_the_minutes_decide_how_long_runs_are(slow_run: Path) -> None:
    runs = ProofRuns(recipes=ProofRecipes.of(slow_run, "talk"), console=QUIET)
    given = runs.variant({})
    seconds, basis = whole_seconds(runs.recipes, given.recipe, given.prepared)
    assert 0 < seconds < 60 and basis == "the speed of the run itself"
    long = replace(given.prepared, plan=replace(given.prepared.plan, steps=10_000))
    assert length_of([(long, 600.0)] * 2, 3, 5.0, whole=False).share == pytest.approx((0.9 * 300 - 12) / 3600)
    assert length_of([(long, 10.0)] * 2, 3, 5.0, whole=False).share == 1
    with pytest.raises(FledgeError, match=r"not enough for 6 runs of whole stages.*\n.*--minutes 66\.9"):
        length_of([(long, 600.0)] * 2, 3, 5.0, whole=True)
    with pytest.raises(FledgeError, match="not enough for 6 runs of 20 updates each"):
        length_of([(long, 1e5)] * 2, 3, 0.5, whole=False)
    shorter = runs.variant({"duration": "30 steps"})
    longer = runs.variant({"duration": "80 steps"})
    assert needs_whole(shorter.patch, "talk", given.prepared, shorter.prepared)
    assert not needs_whole(longer.patch, "talk", given.prepared, longer.prepared)
    runs.clean()


def test_runs_that_are_shortened_leave_both_of_a_pair_the_same_share(slow_run: Path) -> None:
    runs = ProofRuns(recipes=ProofRecipes.of(slow_run, "talk"), console=QUIET)
    prepared = runs.variant({}).prepared
    many, few = (replace(prepared, plan=replace(prepared.plan, steps=steps)) for steps in (400, 40))
    share = least_share([many, few])
    assert share == 0.5 and [Length(share).steps(one.plan.steps) for one in (many, few)] == [200, 20]
    assert (
        least_share([many, few]) == least_share([few, many])
        and least_share([replace(few, plan=replace(few.plan, steps=9))]) == 1
    )
    runs.clean()


def test_the_speed_is_that_of_updates_that_nothing_delayed(tmp_path: Path) -> None:
    directory = StageDirectory(tmp_path)

    def wrote(speeds: list[float]) -> float | None:
        lines = [{"kind": "system", "step": n, "system/step_tokens_per_second": one} for n, one in enumerate(speeds, 1)]
        directory.events.write_text("".join(json.dumps(one) + "\n" for one in lines), encoding="utf-8")
        return seconds_per_token(directory)

    assert wrote([1000.0] * 20) == 1e-3
    assert wrote([100.0] * 15 + [1000.0] * 5) == 1e-3  # most of the time the machine was busy
    assert wrote([1000.0] * 9) is None


def test_rows_that_a_patch_drops_do_not_make_its_runs_shorter(repeated_run: Path) -> None:
    runs = ProofRuns(recipes=ProofRecipes.of(repeated_run, "talk"), console=QUIET)
    given, cleaned = runs.variant({}), runs.variant({"data.clean.exact_duplicates": True})
    assert cleaned.built != given.built and cleaned.prepared.plan.tokens < 0.8 * given.prepared.plan.tokens
    tried = runs.as_long(cleaned, given)
    assert tried.patch == {**cleaned.patch, "stages.talk.duration": f"{given.prepared.plan.steps} steps"}
    assert tried.prepared.plan.steps == given.prepared.plan.steps > cleaned.prepared.plan.steps
    assert not needs_whole(tried.patch, "talk", given.prepared, tried.prepared)
    longer = runs.variant({"data.clean.exact_duplicates": True, "duration": "3 epochs"})
    assert runs.as_long(longer, given) is longer  # says itself how long
    faster = runs.variant({"optimizer.learning_rate": 1e-3})
    assert runs.as_long(faster, given) is faster
    runs.clean()


def test_what_cannot_be_tried_is_refused(slow_run: Path, tmp_path: Path) -> None:
    patch = {"optimizer.learning_rate": 1e-3}
    with pytest.raises(FledgeError, match="no run of fledge"):
        prove(tmp_path, "talk", patch, console=QUIET)
    with pytest.raises(FledgeError, match="no stage 'other'"):
        prove(slow_run, "other", patch, console=QUIET)
    with pytest.raises(FledgeError, match="not mended by a setting"):
        prove(slow_run, "talk", {}, console=QUIET)
    with pytest.raises(FledgeError, match="must be 3 or more"):
        prove(slow_run, "talk", patch, seeds=2, console=QUIET)
    with pytest.raises(FledgeError, match="there is no figure 'bleu'"):
        prove(slow_run, "talk", patch, console=QUIET, by=("bleu",))


def test_a_proof_that_is_refused_leaves_nothing(slow_run: Path) -> None:
    proofs, patch = slow_run / "talk" / "proofs", {"optimizer.learning_rate": 1e-3}
    kept = {file: file.read_bytes() for file in proofs.rglob("*.json")} if proofs.exists() else {}
    with pytest.raises(FledgeError, match="minutes are not enough"):
        prove(slow_run, "talk", patch, minutes=0.01, console=QUIET)
    assert proofs.exists() == bool(kept) and not (proofs / "work").exists()
    assert {file: file.read_bytes() for file in proofs.rglob("*.json")} == kept


def test_a_run_without_a_model_is_slower_than_any_and_the_verdict_has_numbers(slow_run: Path, tmp_path: Path) -> None:
    runs = ProofRuns(recipes=ProofRecipes.of(slow_run, "talk"), console=QUIET)
    held_out, speed = runs.held_out([runs.variant({})]), YARDSTICKS["microseconds_per_token"]
    effect = compare(speed.scale, [{"run": 12.0}, {"run": 12.5}, {"run": 11.8}], [speed.of_failed(held_out)] * 3)
    assert effect.outcome == "makes it worse"
    json.dumps(effect.as_dict(), allow_nan=False)
    assert all(np.isfinite(one.worst(held_out)) for one in YARDSTICKS.values())
    (tmp_path / "events.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(FledgeError, match="no event with its speed"):
        speed.measure(Subject(directory=StageDirectory(tmp_path), held_out=held_out))
    runs.clean()


def test_a_stage_before_with_few_documents_stops_only_what_is_judged_by_them(two_stages: Path, tmp_path: Path) -> None:
    runs = ProofRuns(recipes=ProofRecipes.of(two_stages, "talk"), console=QUIET)
    held_out, forgetting = runs.held_out([runs.variant({})]), YARDSTICKS["earlier_loss"]
    assert len(held_out.examples) >= 8 and YARDSTICKS["answer_loss"].read(held_out) is held_out
    with pytest.raises(FledgeError, match="there are 3") as few:
        forgetting.read(held_out)
    assert few.value.where == "stages.texts.data.validation"
    runs.clean()
    built = tmp_path / "built"
    moved = shutil.copytree(two_stages, tmp_path / "run", symlinks=True)
    shutil.copytree(two_stages / "texts" / "data", built / "texts")
    shutil.rmtree(moved / "texts" / "data")
    recipe = load_recipe([str(moved / "recipe.yaml")]).model_copy(update={"built_dataset": str(built)})
    (moved / "recipe.yaml").write_text(to_yaml(recipe), encoding="utf-8")
    with pytest.raises(FledgeError, match="there are 3"):  # it is found where the recipe says
        ProofRuns(recipes=ProofRecipes.of(moved, "talk"), console=QUIET)._earlier()


def test_a_run_without_a_model_is_the_worst_on_the_documents_that_its_figure_reads(slow_run: Path) -> None:
    runs = ProofRuns(recipes=ProofRecipes.of(slow_run, "talk"), console=QUIET)
    held_out = runs.held_out([runs.variant({})])
    before = replace(held_out, examples={"of before": 0})
    both = replace(held_out, find_earlier=lambda: before)
    assert YARDSTICKS["earlier_loss"].of_failed(both) == dict.fromkeys(("of before", "run"), held_out.ignorance)
    assert set(YARDSTICKS["answer_loss"].of_failed(both)) == {*held_out.examples, "run"}
    with pytest.raises(FledgeError, match="no earlier stage with validation data"):
        YARDSTICKS["earlier_loss"].read(held_out)
    runs.clean()


def test_every_kind_of_stage_has_a_figure_and_every_figure_a_name_in_both_languages() -> None:
    assert set(OF_KIND) == set(KINDS) and set(LABELS) == set(YARDSTICKS)
    assert all(LABELS[name].en == one.scale.label for name, one in YARDSTICKS.items())
    for names in (*OF_KIND.values(), *OF_CAUSE.values()):
        assert set(names) <= set(YARDSTICKS)
    assert {*OF_CAUSE, *FROM_CHECKPOINT} <= {one.name for one in CAUSES}
    assert yardsticks_for("sft", cause="answers never end")[0].scale.name == "ended"
    assert yardsticks_for("sft", cause="answers never end", named=("loss",))[0].scale.name == "loss"
