"""Files of a run that were damaged or written by another program: each is a named error, or is read as far as it goes."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import fledge
from fledge.data.build.phase_output import read_rows_result
from fledge.data.row_events import read_row_events
from fledge.errors import FledgeError
from fledge.pipeline import Pipeline
from fledge.recipe import load_recipe
from fledge.report import write_report
from fledge.run import Console
from fledge.run.file_hash import hash_files
from tests.support.small_runs import MODEL, train, write_rows

CHECKPOINT = "sft/checkpoints/step-00000002"
RESULT = ("sft/result.json", "sft/eval/after.json")
DEEP = b'{"a":' * 100_000


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of four steps, with a checkpoint of every step."""
    folder = tmp_path_factory.mktemp("run")
    write_rows(folder)
    stage = {
        "kind": "sft", "data": {"train": str(folder / "few.jsonl"), "validation": 0.25}, "batch": {"micro_batch_size": 1},
        "duration": "4 steps", "checkpoint": {"every_steps": 1, "keep_last": 5}, "evaluation": {"every_steps": 2},
    }  # fmt: skip
    samples = {"prompts": ["Hello"], "max_new_tokens": 2}
    return train(folder, stage, tokenizer={"vocab_size": 400}, model=MODEL, generation_samples=samples)


def copied(whole: Path, target: Path, *, unfinished: bool) -> Path:
    """A copy of the run; `unfinished`: as it was when it had saved the checkpoint of step 2."""
    shutil.copytree(whole, target, symlinks=True)
    if unfinished:
        for file in (*RESULT, "summary.json"):
            (target / file).unlink()
        for step in (3, 4):
            shutil.rmtree(target / f"sft/checkpoints/step-{step:08d}")
    return target


def changed(file: Path, key: str, value: Any) -> None:
    """Set a value of a JSON file, by its dotted key; None as a key: of the whole file."""
    content = json.loads(file.read_text())
    inner, *names = content, *key.split(".")
    for name in names[:-1]:
        inner = inner[int(name) if isinstance(inner, list) else name]
    inner[names[-1]] = value
    file.write_text(json.dumps(content))


def resume(run: Path) -> None:
    Pipeline(load_recipe([str(run / "recipe.yaml")]), Console(quiet=True)).run(resume=True)


def seal(checkpoint: Path) -> None:
    """Make the manifest agree with the files, as if they had been written so."""
    manifest = json.loads((checkpoint / "manifest.json").read_text())
    for name in manifest["files"]:
        file = checkpoint / name
        manifest["files"][name] = {"bytes": file.stat().st_size, "xxh3": hash_files(file)}
    (checkpoint / "manifest.json").write_text(json.dumps(manifest))


READ_ON_RESUME = {
    "plan.json": ("notes", None, "notes: Input should be a valid array"),
    "start.json": ("weights", 7, "weights: Input should be a valid string"),
    "compute.json": ("threads", 0, "threads: Input should be greater than 0"),
    "data_report.json": ("train.fingerprint", [], "train.fingerprint: Input should be a valid string"),
    "eval/before.json": ("samples", "x", "samples: Input should be a valid array"),
    "data/manifest.json": ("tokenizer", None, "tokenizer: Input should be a valid string"),
    "data/data_report.json": ("sources.0.dropped", 1e308, "sources.0.dropped: Input should be an object"),
    "data/tokens/00000/result.json": ("splits", {}, "splits.train: Field required"),
}


@pytest.mark.parametrize("name", READ_ON_RESUME)
def test_a_value_that_cannot_be_used_is_named_with_its_file_and_key(name: str, whole: Path, tmp_path: Path) -> None:
    run, (key, value, message) = copied(whole, tmp_path / "run", unfinished=True), READ_ON_RESUME[name]
    changed(run / "sft" / name, key, value)
    with pytest.raises(FledgeError) as caught:
        resume(run)
    assert message in caught.value.what and caught.value.where == str(run / "sft" / name)


@pytest.mark.parametrize(
    "content", [b"", b"[", b"null", b"\xff\xfe{}", b"\0" * 40, DEEP, b"{}", b"1" * 5000, b'{"a": 1}{"a": 2}'],
    ids=["empty", "cut", "null", "no UTF-8", "NULs", "deep", "no keys", "a large number", "two objects"],
)  # fmt: skip
@pytest.mark.parametrize("name", ["plan.json", "compute.json", "eval/before.json"])
def test_a_file_with_other_content_is_an_error_that_names_it(name: str, content: bytes, whole: Path, tmp_path: Path) -> None:
    run = copied(whole, tmp_path / "run", unfinished=True)
    (run / "sft" / name).write_bytes(content)
    with pytest.raises(FledgeError, match="damaged") as caught:
        resume(run)
    assert caught.value.where == str(run / "sft" / name)


STATES = {
    "a text for a number": ("clipped_steps", "1", "clipped_steps: Input should be a valid integer"),
    "infinite seconds": ("seconds", float("inf"), "seconds: Input should be a finite number"),
    "a negative count": ("evals_since_best", -1, "evals_since_best: Input should be greater than or equal to 0"),
    "half a range of rows": ("skipped_rows", [[1]], "skipped_rows.0: List should have at least 2 items"),
    "another step": ("step", 7, "this is the state of step 7"),
    "other sources": ("by_source", [1, 2], "by_source has 2 numbers for 1 sources"),
    "an unknown key": ("momentum", 1, "another version of fledge wrote this checkpoint"),
}


@pytest.mark.parametrize("case", STATES)
def test_a_state_that_training_cannot_go_on_from_is_an_error(case: str, whole: Path, tmp_path: Path) -> None:
    run, (key, value, message) = copied(whole, tmp_path / "run", unfinished=True), STATES[case]
    changed(run / CHECKPOINT / "state/trainer.json", key, value)
    seal(run / CHECKPOINT)
    with pytest.raises(FledgeError, match=message):
        resume(run)


def test_a_manifest_that_is_nested_too_deeply_is_damage_like_any_other(whole: Path, tmp_path: Path) -> None:
    run = copied(whole, tmp_path / "run", unfinished=True)
    (run / CHECKPOINT / "manifest.json").write_bytes(DEEP)
    resume(run)
    assert (run / "sft/checkpoints/damaged-step-00000002").exists()
    weights = [folder / "sft/checkpoints/last/model/model.safetensors" for folder in (run, whole)]
    assert weights[0].read_bytes() == weights[1].read_bytes()


USES: dict[str, Callable[[Path], object]] = {
    "train": resume,
    "load": fledge.load,
    "api": lambda run: fledge.Run(run).stages["sft"].finished,
}


@pytest.mark.parametrize("use", USES)
@pytest.mark.parametrize("case", [("model", "../../x"), ("model", "/tmp"), ("model", None), ("order", "1"), ("step", {})])
def test_the_result_of_a_stage_names_a_model_inside_it(use: str, case: tuple[str, Any], whole: Path, tmp_path: Path) -> None:
    run = copied(whole, tmp_path / "run", unfinished=False)
    changed(run / "sft/result.json", *case)
    with pytest.raises(FledgeError, match=f"damaged: {case[0]}: ") as caught:
        USES[use](run)
    assert caught.value.where == str(run / "sft/result.json") and "goes on from its last checkpoint" in (
        caught.value.hint or ""
    )
    write_report(run)  # which shows what can be read


def test_a_damaged_result_or_event_of_a_built_shard_is_an_error(whole: Path, tmp_path: Path) -> None:
    shard = copied(whole, tmp_path / "run", unfinished=False) / "sft/data/rows/00000"
    changed(shard / "result.json", "statistics", [])
    with pytest.raises(FledgeError, match="statistics: Input should be an object"):
        read_rows_result(shard)
    for line in (b"[1]\n", b'{"where": 1}\n', b'{"row"', DEEP):
        (shard / "row_events.jsonl").write_bytes(b"\n" + line)
        with pytest.raises(FledgeError, match="this line is not an event") as caught:
            read_row_events(shard / "row_events.jsonl")
        assert caught.value.where == f"{shard / 'row_events.jsonl'}:2"


def test_damaged_answers_are_an_error_of_the_api(whole: Path, tmp_path: Path) -> None:
    run = copied(whole, tmp_path / "run", unfinished=False)
    changed(run / "sft/eval/after.json", "samples", [{"prompt": "x"}])
    with pytest.raises(FledgeError, match=r"samples\.0\.answer: Field required"):
        fledge.Run(run).samples()
    (run / "sft/eval/after.json").write_bytes(DEEP)
    with pytest.raises(FledgeError, match="nested too deeply"):
        fledge.Run(run).samples()
