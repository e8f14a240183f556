"""A run's recipe, report and weights tell one story, whatever becomes of its inputs between start and resume."""

import datetime
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from fledge.checkpoint.async_save import AsyncCheckpointer
from fledge.errors import FledgeError
from fledge.pipeline import Pipeline
from fledge.recipe import Recipe, load_recipe, recipe_from_dict
from fledge.run import Console, read_json
from fledge.tokenizer import Message, load_tokenizer
from fledge.training.train_step import TrainStep
from tests.run.test_events import disk_of
from tests.support import tiny_run
from tests.support.killing import run_until_killed
from tests.support.run_directory import events, final_results

QUIET = Console(quiet=True)


class Lines(Console):
    """A console that keeps its lines and prints nothing."""

    def __init__(self) -> None:
        super().__init__(quiet=True)
        self.lines: list[str] = []

    def log(self, text: str = "", style: str | None = None) -> None:
        """Keep a line."""
        self.lines.append(text)

    def holds(self, *texts: str) -> bool:
        """Whether one line has all the texts."""
        return any(all(text in line for text in texts) for line in self.lines)


@pytest.fixture
def rows(world: Path, tmp_path: Path) -> Path:
    """A copy of the data that a test may change."""
    return Path(shutil.copytree(world, tmp_path / "rows"))


def one_stage(name: str, world: Path, output: Path, **changes: Any) -> dict[str, Any]:
    """The tiny recipe with one of its stages, with these changes."""
    tree = tiny_run.tree(world, output)
    return {**tree, "stages": {name: {**tree["stages"][name], **changes}}}


def recipe_of(tree: dict[str, Any]) -> Recipe:
    """The tree as a recipe."""
    return recipe_from_dict(tree)


# -- data ---------------------------------------------------------------------------------------------------------------


def test_data_edited_before_its_stage_begins_is_read_again_and_data_of_a_begun_stage_is_told(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = tiny_run.recipe(rows, tmp_path / "runs")
    run_until_killed(recipe, 5, monkeypatch)  # in pretraining, which has 8 updates
    for name in ("pretrain.jsonl", "sft.jsonl"):
        lines = (rows / name).read_text(encoding="utf-8").splitlines(keepends=True)
        (rows / name).write_text("".join(lines[: len(lines) // 2]), encoding="utf-8")
    (rows / "preference.jsonl").unlink()
    console = Lines()
    run = Pipeline(recipe, console).run()
    assert console.holds("note: pretrain has begun and goes on with the rows", "pretrain.jsonl")
    assert console.holds("sft: its data is read again", "sft.jsonl")
    assert console.holds("dpo uses the rows that were read", "preference.jsonl (gone)")
    sources = [read_json(run / stage / "data_report.json")["sources"][0]["rows"] for stage in ("pretrain", "sft")]
    assert sources == [120, len((rows / "sft.jsonl").read_text(encoding="utf-8").splitlines())] and sources[1] < 150


def test_files_added_to_a_folder_and_a_changed_registry_are_told_for_a_begun_stage(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, registry = tmp_path / "folder", tmp_path / "dataset_info.json"
    folder.mkdir()
    (rows / "pretrain.jsonl").rename(folder / "pretrain.jsonl")
    entry = {"file_name": "rows/pretrain.validation.jsonl", "columns": {"prompt": "text"}}
    registry.write_text(json.dumps({"ours": entry}), encoding="utf-8")
    data = {"train": [str(folder), {"registry": str(registry), "name": "ours"}], "max_seq_len": 64, "validation": 0}
    recipe = recipe_of(one_stage("pretrain", rows, tmp_path, data=data))
    run_until_killed(recipe, 5, monkeypatch)
    shutil.copy(folder / "pretrain.jsonl", folder / "more.jsonl")
    registry.write_text(json.dumps({"ours": {**entry, "num_samples": 7}}), encoding="utf-8")
    console = Lines()
    Pipeline(recipe, console).run()
    assert console.holds("note: pretrain has begun and goes on", str(registry), f"{folder / 'more.jsonl'} (added)")


# -- prompt tests and the tokenizer's files --------------------------------------------------------------------------------


def _with_tests(rows: Path, output: Path, file: Path) -> Recipe:
    stage = {"prompt_tests": {"prompts": str(file), "every_steps": 4, "max_new_tokens": 2}}
    file.write_text("- {name: old, prompt: hi, expect: {length: {min: 0}}}\n", encoding="utf-8")
    tree = tiny_run.tree(rows, output)
    stages = {name: {**tree["stages"][name], **stage} for name in ("pretrain", "sft")}
    return recipe_of({**tree, "stages": {"pretrain": {**stages["pretrain"], "kind": "pretrain"}, "sft": stages["sft"]}})


@pytest.mark.parametrize("fate", ["changed since", "does not exist"])
def test_a_begun_stage_keeps_its_prompt_tests_and_tells_that_their_file_changed(
    fate: str, rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "tests.yaml"
    recipe = _with_tests(rows, tmp_path, file)
    run_until_killed(recipe, 8 + 5, monkeypatch)  # in sft, whose checkpoint is of step 4; pretrain is finished
    if fate == "does not exist":
        file.unlink()
    else:
        file.write_text("- {name: new, prompt: hi, expect: {exact: [never]}}\n", encoding="utf-8")
    console = Lines()
    run = Pipeline(recipe, console).run()
    assert console.holds("note: sft has begun and goes on with the prompt tests", fate, str(file))
    assert not console.holds("pretrain has begun")
    assert [event["prompt_tests/passed"] for event in events(run, "sft", "prompt_tests")] == [1, 1]


def test_prompt_tests_that_are_edited_before_their_stage_begins_are_read_again(
    rows: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "tests.yaml"
    recipe = _with_tests(rows, tmp_path, file)
    run_until_killed(recipe, 6, monkeypatch)  # in pretrain
    file.write_text("- {name: new, prompt: hi, expect: {exact: [never]}}\n", encoding="utf-8")
    console = Lines()
    run = Pipeline(recipe, console).run()
    assert console.holds("note: pretrain has begun and goes on with the prompt tests") and not console.holds(
        "note: sft has begun"
    )
    passed = {stage: [event["prompt_tests/passed"] for event in events(run, stage, "prompt_tests")] for stage in recipe.stages}
    assert passed == {"pretrain": [1, 1], "sft": [0, 0]}


def test_a_tokenizer_or_chat_template_edited_since_the_run_began_is_told(
    world: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = Path(shutil.copytree(finished / "tokenizer", tmp_path / "tokenizer"))
    recipe = recipe_of({**one_stage("pretrain", world, tmp_path), "tokenizer": {"path": str(folder)}})
    run_until_killed(recipe, 6, monkeypatch)
    before = load_tokenizer(tmp_path / "tiny" / "tokenizer").fingerprint()
    console = Lines()
    for fate, told in (("same", ""), ("edited", "chat template changed since"), ("gone", f"gone: {folder}")):
        if fate == "edited":
            config = read_json(folder / "tokenizer_config.json")
            config["chat_template"] = config["chat_template"].replace("\\n", "\\n ", 1)
            config["fledge"]["template"] = "tokenizer"
            (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
            (folder / "chat_template.jinja").unlink(missing_ok=True)
        elif fate == "gone":
            shutil.rmtree(folder)
        console = Lines()
        with pytest.raises(KeyboardInterrupt):
            monkeypatch.setattr("fledge.pipeline.StageRunner.run", _interrupt)
            Pipeline(recipe, console).run()
        assert console.holds("note: the run goes on with the tokenizer that it began with", told) == bool(told), fate
    assert load_tokenizer(tmp_path / "tiny" / "tokenizer").fingerprint() == before


def _interrupt(*_: Any) -> None:
    raise KeyboardInterrupt


def test_a_template_that_writes_the_date_gives_equal_tokens_when_the_run_is_resumed_on_another_day(
    world: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The built data is removed as well, so that the resumed run writes all conversations again."""
    folder = Path(shutil.copytree(finished / "tokenizer", tmp_path / "tokenizer"))
    config = read_json(folder / "tokenizer_config.json")
    config["chat_template"] = (
        "{{ '<|im_start|>system\\n' + strftime_now('%Y-%m-%d') + '<|im_end|>\\n' }}" + config["chat_template"]
    )
    config["fledge"]["template"] = "tokenizer"
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    stage, fingerprints, saved = tmp_path / "tiny" / "sft", [], tmp_path / "tiny" / "tokenizer"
    recipe = recipe_of({**one_stage("sft", world, tmp_path), "tokenizer": {"path": str(folder)}})
    console = Lines()
    for day in (1, 2):
        today = type("Date", (datetime.date,), {"today": classmethod(lambda cls, day=day: cls(2031, 5, day))})
        monkeypatch.setattr("fledge.tokenizer.loading.datetime", SimpleNamespace(date=today))
        if day == 1:
            run_until_killed(recipe, 6, monkeypatch)
            shutil.rmtree(stage / "data")
        else:
            Pipeline(recipe, console).run()
        fingerprints.append(read_json(stage / "data_report.json")["train"]["fingerprint"])
        assert read_json(saved / "tokenizer_config.json")["fledge"]["template_date"] == "2031-05-01"
        prompt = load_tokenizer(saved).encode_prompt([Message("user", "hi")])
        assert "2031-05-01" in load_tokenizer(saved).decode(prompt)
    assert fingerprints[0] == fingerprints[1] and console.holds("resuming from step 4")
    assert not console.holds("the run goes on with the tokenizer")


# -- start models -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def start_model(finished: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The model of the finished sft stage, as a directory of its own."""
    folder = tmp_path_factory.mktemp("models") / "start"
    return Path(shutil.copytree(finished / "sft" / read_json(finished / "sft" / "result.json")["model"], folder))


def _overwrite(model: Path) -> None:
    file = model / "model.safetensors"
    torch.manual_seed(0)
    tensors = {name: tensor + 0.05 * torch.randn_like(tensor) for name, tensor in load_file(file).items()}
    save_file(tensors, file, metadata={"format": "pt"})


FATES = {"overwritten": _overwrite, "deleted": shutil.rmtree}


@pytest.mark.parametrize("precomputed", [True, False], ids=["table", "live reference"])
@pytest.mark.parametrize("fate", FATES)
def test_a_preference_stage_keeps_its_reference_whatever_becomes_of_its_start_model(
    fate: str, precomputed: bool, world: Path, start_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tree = one_stage(
        "dpo", world, tmp_path, precompute_ref_log_probs=precomputed, checkpoint={"every_steps": 2, "keep_last": 1}
    )
    results = []
    for name in ("undisturbed", "resumed"):
        model = Path(shutil.copytree(start_model, tmp_path / "model"))
        stage = {**tree["stages"]["dpo"], "init_from": str(model)}
        recipe = recipe_of({**tree, "name": name, "stages": {"dpo": stage}})
        console = Lines()
        if name == "resumed":
            run_until_killed(recipe, 6, monkeypatch)
            FATES[fate](model)
        results.append(final_results(Pipeline(recipe, console).run(), ("dpo",)))
        shutil.rmtree(model, ignore_errors=True)
    assert results[0] == results[1]
    assert console.holds("since this stage began", "has changed" if fate == "overwritten" else "is gone")


def test_a_reference_that_cannot_be_had_any_more_is_an_error_with_the_places_that_were_tried(
    world: Path, start_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = Path(shutil.copytree(start_model, tmp_path / "model"))
    recipe = recipe_of(one_stage("dpo", world, tmp_path, init_from=str(model), checkpoint={"every_steps": 2, "keep_last": 1}))
    run_until_killed(recipe, 6, monkeypatch)
    _overwrite(model)
    (tmp_path / "tiny" / "dpo" / "reference.training.safetensors").unlink()
    with pytest.raises(FledgeError, match=rf"weights that this stage began with(.|\n)*{model}: other weights") as caught:
        Pipeline(recipe, QUIET).run()
    assert "put the model back" in (caught.value.hint or "")


def test_a_start_model_without_weights_leaves_no_run_and_the_mended_recipe_begins_one(
    world: Path, start_model: Path, tmp_path: Path
) -> None:
    bad = Path(shutil.copytree(start_model, tmp_path / "bad"))
    (bad / "model.safetensors").unlink()
    output = tmp_path / "runs"
    with pytest.raises(FledgeError, match="the weights are missing"):
        Pipeline(recipe_of(one_stage("sft", world, output, init_from=str(bad))), QUIET).run()
    assert not (output / "tiny").exists()
    good = one_stage("sft", world, output, init_from=str(start_model), duration="1 steps")
    assert read_json(Pipeline(recipe_of(good), QUIET).run() / "sft" / "result.json")["step"] == 1


# -- the tokenizer, and runs that have not begun ----------------------------------------------------------------------------


def test_a_run_that_was_killed_before_it_began_takes_the_tokenizer_of_the_present_recipe(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed once between tokenizer and recipe, and once after the recipe, before a step is trained."""
    from fledge import pipeline, stage

    run_until_killed(recipe_of(one_stage("pretrain", world, tmp_path)), 1, monkeypatch, pipeline, "environment")
    assert (tmp_path / "tiny" / "tokenizer").exists() and not (tmp_path / "tiny" / "recipe.yaml").exists()
    second = {**one_stage("pretrain", world, tmp_path), "tokenizer": {"vocab_size": 360}}
    run_until_killed(recipe_of(second), 1, monkeypatch, stage, "reset_compiler")
    assert _vocabulary(tmp_path / "tiny") == 360
    third = {**one_stage("pretrain", world, tmp_path, duration="2 steps"), "tokenizer": {"vocab_size": 330}}
    console = Lines()
    run = Pipeline(recipe_of(third), console).run()
    assert console.holds("has not begun to train: it is prepared anew")
    assert _vocabulary(run) == 330 == read_json(run / "summary.json")["tokenizer"]["vocab_size"]
    assert load_recipe([str(run / "recipe.yaml")]).tokenizer.vocab_size == 330
    assert load_file(run / "pretrain/checkpoints/last/model/model.safetensors")["model.embed_tokens.weight"].shape[0] == 330


def _vocabulary(run: Path) -> int:
    return load_tokenizer(run / "tokenizer").vocab_size


def test_a_run_whose_tokenizer_was_deleted_takes_it_from_its_own_checkpoint(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = recipe_of(one_stage("pretrain", world, tmp_path))
    run_until_killed(recipe, 6, monkeypatch)
    run = tmp_path / "tiny"
    before = load_tokenizer(run / "tokenizer").fingerprint()
    shutil.rmtree(run / "tokenizer")
    console = Lines()
    Pipeline(recipe, console).run()
    assert load_tokenizer(run / "tokenizer").fingerprint() == before
    assert console.holds("the run's tokenizer is missing") and console.holds("resuming from step 4")


# -- a changed recipe -------------------------------------------------------------------------------------------------------

DURATION = "stages.pretrain.duration"


def test_a_change_that_cannot_reach_a_finished_stage_is_refused_and_not_recorded(world: Path, tmp_path: Path) -> None:
    tree = one_stage("pretrain", world, tmp_path, duration="2 steps")
    run = Pipeline(recipe_of(tree), QUIET).run()
    before = (run / "recipe.yaml").read_bytes()
    tree["stages"]["pretrain"]["optimizer"] = {"learning_rate": 4e-4}
    for allow in ((), ("stages.pretrain.optimizer.learning_rate",)):
        with pytest.raises(FledgeError, match=r"learning_rate: 0.001 -> 0.0004 \(pretrain is finished\)"):
            Pipeline(recipe_of(tree), QUIET, allow=allow).run()
    shorter = one_stage("pretrain", world, tmp_path, duration="1 steps")
    with pytest.raises(FledgeError, match="stage pretrain is finished after 2 steps"):
        Pipeline(recipe_of(shorter), QUIET, allow=[DURATION]).run()
    guarded = one_stage("pretrain", world, tmp_path, duration="2 steps", guards={"divergence": "warn"})
    console = Lines()
    Pipeline(recipe_of(guarded), console).run()
    assert console.holds("note: without effect, its stage is finished: stages.pretrain.guards.divergence.action")
    assert (run / "recipe.yaml").read_bytes() == before and not list(run.glob("recipe.*.yaml"))


def test_a_stage_that_is_made_longer_trains_on_and_every_file_says_so(world: Path, tmp_path: Path) -> None:
    run = Pipeline(recipe_of(one_stage("pretrain", world, tmp_path, duration="4 steps")), QUIET).run()
    longer = recipe_of(one_stage("pretrain", world, tmp_path, duration="7 steps"))
    with pytest.raises(FledgeError, match="'4 steps' -> '7 steps'") as caught:
        Pipeline(longer, QUIET).run()
    assert f"--allow-change {DURATION}" in (caught.value.hint or "")
    console = Lines()
    Pipeline(longer, console, allow=[DURATION]).run()
    assert console.holds("pretrain: trains on from step 4 to step 7")
    stage = run / "pretrain"
    assert (read_json(stage / "result.1.json")["step"], read_json(stage / "result.json")["step"]) == (4, 7)
    assert (load_recipe([str(run / "recipe.yaml")]).stages["pretrain"].duration, read_json(stage / "plan.json")["steps"]) == (
        "7 steps",
        7,
    )
    assert load_recipe([str(run / "recipe.1.yaml")]).stages["pretrain"].duration == "4 steps"
    assert [event["step"] for event in events(run, "pretrain", "step")] == list(range(1, 8))
    assert [(event["step"], event["keys"]) for event in events(run, "pretrain", "recipe_changed")] == [
        (4, {DURATION: ["4 steps", "7 steps"]})
    ]
    assert (stage / "eval" / "after.1.json").exists() and (stage / "eval" / "after.json").exists()
    assert os.path.realpath(stage / "checkpoints" / "last").endswith("step-00000007")


def test_a_stage_that_is_made_shorter_than_what_is_done_ends_where_it_is(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_until_killed(recipe_of(one_stage("pretrain", world, tmp_path)), 6, monkeypatch)  # the newest checkpoint is of step 4
    shorter = recipe_of(one_stage("pretrain", world, tmp_path, duration="2 steps"))
    run = Pipeline(shorter, QUIET, allow=[DURATION]).run()
    result = read_json(run / "pretrain" / "result.json")
    assert result["step"] == 4 and "shortened to 2 steps" in result["stop"]
    assert [event["reason"] for event in events(run, "pretrain", "stop")] == [result["stop"]]
    assert load_recipe([str(run / "recipe.yaml")]).stages["pretrain"].duration == "2 steps"


def test_a_changed_recipe_is_not_recorded_before_a_stage_goes_on_under_it(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = one_stage("pretrain", world, tmp_path)
    run_until_killed(recipe_of(first), 6, monkeypatch)
    run = tmp_path / "tiny"
    before = {name: (run / name).read_bytes() for name in ("recipe.yaml", "pretrain/plan.json", "pretrain/compute.json")}
    hidden = (run / "pretrain" / "checkpoints" / "step-00000004" / "manifest.json").rename(tmp_path / "manifest")
    (run / "pretrain" / "checkpoints" / "step-00000004" / "manifest.json").mkdir()
    changed = recipe_of(one_stage("pretrain", world, tmp_path, optimizer={"learning_rate": 4e-4}))
    with pytest.raises(FledgeError, match="cannot be read: Is a directory"):
        Pipeline(changed, QUIET, allow=["stages.pretrain.optimizer"]).run()
    assert all((run / name).read_bytes() == content for name, content in before.items())
    (run / "pretrain" / "checkpoints" / "step-00000004" / "manifest.json").rmdir()
    hidden.rename(run / "pretrain" / "checkpoints" / "step-00000004" / "manifest.json")
    Pipeline(changed, QUIET, allow=["stages.pretrain.optimizer"]).run()
    assert read_json(run / "pretrain" / "plan.json")["learning_rate"] == 4e-4


def test_a_stage_whose_events_were_deleted_has_begun_all_the_same(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_until_killed(recipe_of(one_stage("pretrain", world, tmp_path)), 6, monkeypatch)
    (tmp_path / "tiny" / "pretrain" / "events.jsonl").unlink()
    with pytest.raises(FledgeError, match="learning_rate"):
        Pipeline(recipe_of(one_stage("pretrain", world, tmp_path, optimizer={"learning_rate": 4e-4})), QUIET).run()
    console = Lines()
    run = Pipeline(recipe_of(one_stage("pretrain", world, tmp_path)), console).run()
    assert console.holds("has no events of the 4 steps before")
    assert [event["step"] for event in events(run, "pretrain", "step")] == [5, 6, 7, 8]


# -- places and disks -------------------------------------------------------------------------------------------------------


def test_a_moved_and_renamed_run_goes_on_in_its_new_place(
    world: Path, finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_until_killed(tiny_run.recipe(world, tmp_path / "runs"), 8 + 5, monkeypatch)
    moved = tmp_path / "elsewhere" / "renamed"
    moved.parent.mkdir()
    (tmp_path / "runs" / "tiny").rename(moved)
    run = Pipeline(load_recipe([str(moved / "recipe.yaml")]), QUIET).run()
    assert run == moved and not (tmp_path / "runs" / "tiny").exists()
    assert final_results(moved) == final_results(finished)


def test_a_disk_that_is_full_for_a_moment_costs_nothing(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From update 4 to update 7 no file can grow; a checkpoint is due after steps 3, 4 and 6."""
    whole = Pipeline(recipe_of(one_stage("pretrain", world, tmp_path / "whole")), QUIET).run()
    count, act, contexts = 0, TrainStep._step, []

    def filling(*arguments: Any) -> Any:
        nonlocal count
        count += 1
        if count == 4:
            contexts.append(disk_of(0))
            contexts[0].__enter__()
        if count == 7:
            contexts[0].__exit__(None, None, None)
        return act(*arguments)

    monkeypatch.setattr(TrainStep, "_step", filling)
    save = AsyncCheckpointer.save_async
    monkeypatch.setattr(AsyncCheckpointer, "save_async", lambda saver, snapshot: [*save(saver, snapshot), *saver.wait()])
    console = Lines()
    run = Pipeline(recipe_of(one_stage("pretrain", world, tmp_path)), console).run()
    assert final_results(run, ("pretrain",)) == final_results(whole, ("pretrain",))
    assert console.holds("events.jsonl cannot be written (File too large)") and console.holds("is written again")
    assert console.holds("cannot write the checkpoint of step 4")
