"""What a target is, and what is said about wrong ones."""

import json
from pathlib import Path

import pytest

from fledge.doctor.examine import examine, given_settings
from fledge.doctor.options import DoctorOptions
from fledge.doctor.target import find_target, started_from
from fledge.errors import FledgeError
from fledge.run.directory import StageDirectory


def make_run(folder: Path, *stages: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "recipe.yaml").write_text("name: x\n")
    for stage in stages:
        (folder / stage).mkdir()
        (folder / stage / "events.jsonl").write_text('{"kind": "start", "step": 0}\n')
    return folder


def test_a_run_its_stage_and_its_events_are_the_same_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "mine", "pretrain", "sft")
    assert find_target(run).run == run and find_target(run).stage is None
    for path in (run / "sft", run / "sft" / "events.jsonl"):
        assert find_target(path).run == run and find_target(path).stage == "sft"
    assert find_target(run, "sft").stage == "sft"


@pytest.mark.parametrize("name", ["missing.log", "no/such/folder"])
def test_a_missing_target(tmp_path: Path, name: str) -> None:
    with pytest.raises(FledgeError, match="there is no such file or folder"):
        find_target(tmp_path / name)


def test_an_empty_folder(tmp_path: Path) -> None:
    with pytest.raises(FledgeError, match="this folder is empty"):
        find_target(tmp_path)


def test_a_folder_of_several_runs_lists_them(tmp_path: Path) -> None:
    for name in ("one", "two"):
        make_run(tmp_path / name, "sft")
    with pytest.raises(FledgeError, match="2 runs: one, two") as raised:
        find_target(tmp_path)
    assert raised.value.hint is not None and "fledge doctor" in raised.value.hint


def test_a_recipe_is_no_log(tmp_path: Path) -> None:
    run = make_run(tmp_path / "mine")
    with pytest.raises(FledgeError, match="this is a recipe, and no log"):
        find_target(run / "recipe.yaml")


def test_a_stage_that_is_not_the_one_that_was_asked_for(tmp_path: Path) -> None:
    run = make_run(tmp_path / "mine", "sft")
    with pytest.raises(FledgeError, match="this is the stage 'sft', and --stage asks for 'dpo'"):
        find_target(run / "sft", "dpo")


def test_a_binary_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.bin"
    file.write_bytes(bytes(range(256)) * 40)
    with pytest.raises(FledgeError):
        examine(file, DoctorOptions(depth="curves"))


def test_a_stage_that_started_from_another_one_of_its_run(tmp_path: Path) -> None:
    run = make_run(tmp_path / "mine", "pretrain", "sft", "dpo")
    (run / "sft" / "start.json").write_text(json.dumps({"source": f"runs/{run.name}/pretrain/checkpoints/step-1/model"}))
    (run / "dpo" / "start.json").write_text(json.dumps({"source": "models/base"}))
    assert started_from(StageDirectory(run / "sft")) == "pretrain"
    assert started_from(StageDirectory(run / "dpo")) is None
    assert started_from(StageDirectory(run / "pretrain")) is None


def test_settings_that_are_given_by_hand() -> None:
    settings = given_settings({"parameters": "26M", "learning_rate": "1e-4", "kind": "sft"})
    assert (settings.parameters, settings.learning_rate, settings.kind) == (26e6, 1e-4, "sft")
    assert set(settings.origin) == {"parameters", "learning_rate", "kind"}
    with pytest.raises(FledgeError, match="'lr' is no setting"):
        given_settings({"lr": "1"})
    with pytest.raises(FledgeError, match="'many' is no number"):
        given_settings({"steps": "many"})
