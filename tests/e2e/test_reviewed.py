"""Mistakes of users that were once handled badly: each is reported, and no data is lost."""

import json
import shutil
from pathlib import Path

import pytest

from fledge.errors import FledgeError
from fledge.pipeline import Pipeline
from fledge.recipe import recipe_from_dict
from fledge.run import Console
from tests.support import tiny_run
from tests.support.command import assert_error, fledge

QUIET = Console(quiet=True)


def test_a_mistake_in_a_later_stage_is_reported_before_anything_is_written(world: Path, tmp_path: Path) -> None:
    tree = tiny_run.tree(world, tmp_path)
    tree["stages"]["dpo"]["schedule"] = {"warmup": 1000}
    with pytest.raises(FledgeError, match=r"stages.dpo.schedule.warmup: warm-up takes 1,000 steps"):
        Pipeline(recipe_from_dict(tree), QUIET).run()
    assert not (tmp_path / "tiny").exists()
    tree["stages"]["dpo"]["schedule"] = {}
    assert Pipeline(recipe_from_dict(tree), QUIET).run().exists()


def test_a_run_resumes_only_with_the_data_it_began_with(world: Path, tmp_path: Path) -> None:
    shutil.copytree(world, tmp_path / "world")
    tree = tiny_run.tree(tmp_path / "world", tmp_path)
    tree["stages"] = {"pretrain": tree["stages"]["pretrain"]}
    run = Pipeline(recipe_from_dict(tree), QUIET).run()
    account = (run / "pretrain" / "data_report.json").read_bytes()
    (run / "pretrain" / "result.json").unlink()
    with (tmp_path / "world" / "pretrain.jsonl").open("a") as file:
        file.write('{"text": "one more row that was not there when the run began, long enough to stay"}\n')
    Pipeline(recipe_from_dict(tree), QUIET).run(resume=True)
    assert (run / "pretrain" / "data_report.json").read_bytes() == account
    (run / "pretrain" / "result.json").unlink()
    shutil.rmtree(run / "pretrain" / "data")  # then it must be built again, and it is another
    with pytest.raises(FledgeError, match="changed since it began"):
        Pipeline(recipe_from_dict(tree), QUIET).run(resume=True)


def test_a_stage_starts_from_a_model_directory_with_its_tokenizer_and_sizes(
    world: Path, finished: Path, tmp_path: Path
) -> None:
    tree = tiny_run.tree(world, tmp_path)
    start = str(finished / "pretrain" / "checkpoints" / "last" / "model")
    tree["stages"] = {"sft": {**tree["stages"]["sft"], "init_from": start, "duration": "2 steps"}}
    del tree["model"]
    run = Pipeline(recipe_from_dict(tree), QUIET).run()
    assert json.loads((run / "sft" / "plan.json").read_text())["parameters"] < 100_000
    before = json.loads((run / "sft" / "eval" / "before.json").read_text())
    assert before["perplexity"] == json.loads((finished / "sft" / "eval" / "before.json").read_text())["perplexity"]

    with pytest.raises(FledgeError, match="has its own sizes; the recipe also sets hidden_size"):
        tree["model"] = {"path": start, "hidden_size": 64}
        Pipeline(recipe_from_dict({**tree, "name": "other"}), QUIET).run()


def test_a_tokenizer_other_than_the_tokenizer_of_the_model_is_an_error(world: Path, finished: Path, tmp_path: Path) -> None:
    tree = tiny_run.tree(world, tmp_path)
    start = str(finished / "pretrain" / "checkpoints" / "last" / "model")
    tree["stages"]["sft"]["init_from"] = start
    tree["tokenizer"] = {"vocab_size": 390}
    with pytest.raises(FledgeError, match="another tokenizer or chat template"):
        Pipeline(recipe_from_dict(tree), QUIET).run()


def test_an_unwritable_output_and_wrong_options_are_reported(world: Path, finished: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    tree = tiny_run.tree(world, tmp_path / "file")
    assert_error(fledge("train", tiny_run.write(tmp_path / "r.yaml", tree)), "cannot write")
    assert_error(fledge("quickstart", "--minutes", "nan"), "--minutes must be a number above zero")
    assert_error(fledge("quickstart", "--name", "../x"), "--name: a name has letters")
    assert_error(fledge("quickstart", "--resume", "--seed", "3"), "--resume uses the stored recipe")
    assert_error(fledge("generate", finished, "x", "--raw", "--max-new-tokens", 0), "--max-new-tokens: must be 1 or more")
    long = fledge("generate", finished, "x", "--max-new-tokens", 10**9)
    assert long.returncode == 0, long.stderr
    assert_error(fledge("generate", finished, "word " * 200), "the model has 96 positions")


def test_links_are_repaired_after_a_kill_between_saving_and_linking(world: Path, tmp_path: Path) -> None:
    tree = tiny_run.tree(world, tmp_path)
    tree["stages"] = {"pretrain": tree["stages"]["pretrain"]}
    run = Pipeline(recipe_from_dict(tree), QUIET).run()
    folder = run / "pretrain" / "checkpoints"
    (run / "pretrain" / "result.json").unlink()
    (folder / "last").unlink()
    (folder / ".writing-step-00000007").mkdir()
    Pipeline(recipe_from_dict(tree), QUIET).run(resume=True)
    assert (folder / "last").resolve().name == "step-00000008"
    assert not list(folder.glob(".writing-*"))
