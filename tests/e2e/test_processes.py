"""Runs of several processes: they start, stop, restart and resume, and have the losses of one process."""

import json
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from fledge.checkpoint.find import verify
from fledge.distributed.context import DistributedContext
from fledge.entrypoint import TrainCommand
from fledge.launch.slurm import submit
from fledge.pipeline import Pipeline
from fledge.recipe import recipe_from_dict
from fledge.run import Console
from tests.support import tiny_run
from tests.support.bad_rows import poison_one_row
from tests.support.command import COMMAND, fledge
from tests.support.ranks import run_ranks
from tests.support.run_directory import events, final_results

BATCH = {"micro_batch_size": 3, "gradient_accumulation_steps": 2}


def tree(world: Path, folder: Path, stages: tuple[str, ...] = ("pretrain", "sft", "dpo"), steps: int = 8) -> dict[str, Any]:
    """The small recipe without dropout (each rank draws its own), with updates of six rows."""
    values = tiny_run.tree(world, folder, model={**tiny_run.MODEL, "dropout": 0.0})
    chosen = {name: {**values["stages"][name], "batch": BATCH, "duration": f"{steps} steps"} for name in stages}
    for stage in chosen.values():
        stage["optimizer"] = {"name": "adamw", "learning_rate": 1e-3, "betas": [0.9, 0.95], "weight_decay": 0.1}
    return {**values, "stages": chosen}


def command(folder: Path, values: dict[str, Any], *more: str) -> list[str]:
    """The command line that trains a recipe, which is written into the folder."""
    folder.mkdir(exist_ok=True)
    return [*COMMAND, "train", str(tiny_run.write(folder / "recipe.yaml", values)), "--quiet", *more]


def train(folder: Path, values: dict[str, Any], *more: str, code: int = 0) -> str:
    """Run the command and return its standard error."""
    done = fledge(*command(folder, values, *more)[len(COMMAND) :])
    assert done.returncode == code, done.stderr
    return done.stderr


def losses(run: Path, stage: str) -> dict[tuple[str, int], float]:
    """The training and evaluation losses of a stage, by kind and step of their event."""
    measured = events(run, stage, "step", "eval")
    return {(event["kind"], event["step"]): event.get("train/loss", event.get("eval/loss")) for event in measured}


def assert_same_losses(one: Path, two: Path, stages: tuple[str, ...]) -> None:
    """Check that two runs have losses that differ by less than 1e-5."""
    for stage in stages:
        expected, actual = losses(one, stage), losses(two, stage)
        assert expected and set(actual) == set(expected)
        assert max(abs(actual[key] - loss) for key, loss in expected.items()) < 1e-5


def test_two_processes_have_the_losses_of_one_process(world: Path, tmp_path: Path) -> None:
    stages = ("pretrain",)
    Pipeline(recipe_from_dict(tree(world, tmp_path / "one", stages)), Console(quiet=True)).run()
    train(tmp_path, tree(world, tmp_path / "two", stages), "--processes", "2")
    assert_same_losses(tmp_path / "one" / "tiny", tmp_path / "two" / "tiny", stages)
    run = tmp_path / "two" / "tiny"
    world_sizes = events(run, "pretrain", "world_size")
    assert world_sizes == [{"kind": "world_size", "step": 0, "world_size": 2, "parallelism": "ddp"}]
    assert (run / "report.html").exists() and (run / "summary.json").exists()


def test_an_error_is_printed_once_and_not_by_every_process(world: Path, tmp_path: Path) -> None:
    values = tree(world, tmp_path / "runs", ("pretrain",))
    values["stages"]["pretrain"]["batch"] = {"micro_batch_size": 1, "gradient_accumulation_steps": 1}
    errors = train(tmp_path, values, "--processes", "2", code=2)
    assert errors.count("stages.pretrain.batch: 2 processes cannot share the 1 rows of an update") == 1
    assert "Traceback" not in errors and "another process" not in errors and not (tmp_path / "runs" / "tiny").exists()


WRONG = [
    (["--processes", "0"], "--processes: it must be at least 1"),
    (["--nodes", "2"], "--nodes: this is for Slurm jobs"),
    (["--slurm-option", "partition=gpu", "--cluster", "ray"], "--slurm-option: this is for Slurm jobs"),
    (["--max-restarts", "-1"], "--max-restarts: it cannot be negative"),
    (["--cluster", "slurm"], "sbatch was not found"),
]


@pytest.mark.parametrize(("options", "message"), WRONG)
def test_options_that_exclude_each_other_are_errors(world: Path, tmp_path: Path, options: list[str], message: str) -> None:
    assert message in train(tmp_path, tree(world, tmp_path / "runs"), *options, code=2)


def test_eight_bit_optimizer_state_cannot_be_sharded(world: Path, tmp_path: Path) -> None:
    values = tree(world, tmp_path, ("pretrain",))
    values["stages"]["pretrain"]["optimizer"]["name"] = "adamw8bit"
    values["runtime"] = {**values["runtime"], "parallelism": "fsdp"}
    assert "stages.pretrain.optimizer.name: the blocks of 8-bit AdamW" in train(tmp_path, values, code=2)


@pytest.mark.slow
@pytest.mark.parametrize(("processes", "parallel"), [("4", "ddp"), ("2", "fsdp"), ("4", "fsdp")])
def test_fifty_steps_of_several_processes_have_the_losses_of_one_process(
    processes: str, parallel: str, world: Path, tmp_path: Path
) -> None:
    stages = ("sft", "dpo")
    train(tmp_path, tree(world, tmp_path / "one", stages, 50))
    values = tree(world, tmp_path / "more", stages, 50)
    train(tmp_path, {**values, "runtime": {**values["runtime"], "parallelism": parallel}}, "--processes", processes)
    assert_same_losses(tmp_path / "one" / "tiny", tmp_path / "more" / "tiny", stages)


def started(folder: Path, values: dict[str, Any], processes: int, when: Callable[[], bool]) -> tuple[subprocess.Popen, list]:
    """Start a run of several processes and wait until `when()` holds: the launcher, and its worker processes."""
    log = (folder / "log.txt").open("w")
    process = subprocess.Popen(command(folder, values, "--processes", str(processes)), stdout=log, stderr=log)
    until = time.monotonic() + 120
    while not when():
        assert time.monotonic() < until and process.poll() is None, (folder / "log.txt").read_text()
        time.sleep(0.01)
    return process, psutil.Process(process.pid).children()


@pytest.mark.slow
def test_a_run_of_four_processes_resumes_with_two_and_then_with_one(world: Path, tmp_path: Path) -> None:
    """SIGTERM is sent twice to a sharded run of four processes, then to one of two; a single process finishes the run."""
    stages, steps = ("pretrain",), 60
    train(tmp_path, tree(world, tmp_path / "one", stages, steps))
    values = tree(world, tmp_path / "more", stages, steps)
    sharded = {**values, "runtime": {**values["runtime"], "parallelism": "fsdp"}}
    checkpoints = tmp_path / "more" / "tiny" / "pretrain" / "checkpoints"
    for processes, saved in ((4, 9), (2, 30)):
        process, workers = started(tmp_path, sharded, processes, lambda saved=saved: reached(checkpoints) >= saved)
        process.send_signal(signal.SIGTERM)
        time.sleep(0.2)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=30) == 143
        assert not any(worker.is_running() for worker in workers)
        assert "the state is saved" in (tmp_path / "log.txt").read_text()
        assert verify((checkpoints / "last").resolve()) is None
    assert 30 <= reached(checkpoints) < steps
    train(tmp_path, sharded)
    assert_same_losses(tmp_path / "one" / "tiny", tmp_path / "more" / "tiny", stages)


def reached(checkpoints: Path) -> int:
    """The step of the newest checkpoint."""
    return max((int(path.name.removeprefix("step-")) for path in checkpoints.glob("step-*")), default=-1)


@pytest.mark.slow
def test_a_run_whose_process_is_killed_restarts_by_itself_and_ends_with_the_same_bytes(world: Path, tmp_path: Path) -> None:
    """The launcher restarts the run; its results equal those of a run without a kill, byte for byte."""
    stages, steps = ("pretrain",), 40
    train(tmp_path, tree(world, tmp_path / "whole", stages, steps), "--processes", "2")
    checkpoints = tmp_path / "hurt" / "tiny" / "pretrain" / "checkpoints"
    process, workers = started(tmp_path, tree(world, tmp_path / "hurt", stages, steps), 2, lambda: reached(checkpoints) >= 9)
    workers[1].kill()
    assert process.wait(timeout=120) == 0
    assert final_results(tmp_path / "hurt" / "tiny", stages) == final_results(tmp_path / "whole" / "tiny", stages)


@pytest.mark.slow
def test_worker_processes_end_when_the_launcher_is_killed(world: Path, tmp_path: Path) -> None:
    checkpoints = tmp_path / "runs" / "tiny" / "pretrain" / "checkpoints"
    process, workers = started(
        tmp_path, tree(world, tmp_path / "runs", ("pretrain",), 4000), 2, lambda: reached(checkpoints) >= 9
    )
    before = reached(checkpoints)
    process.kill()
    psutil.wait_procs(workers, timeout=20)
    assert not any(worker.is_running() for worker in workers)
    assert verify((checkpoints / "last").resolve()) is None and before <= reached(checkpoints) < 4000


def run_with_a_bad_row(ranks: DistributedContext, world: str, folder: str, parallel: str) -> str:
    """A run whose first process reads a poisoned row in update 8."""
    if ranks.is_main_process:
        poison_one_row(pytest.MonkeyPatch())
    values = tree(Path(world), Path(folder), ("pretrain",), 20)
    values["stages"]["pretrain"]["guards"] = {"non_finite": {"consecutive": 1}}
    recipe = recipe_from_dict({**values, "runtime": {**values["runtime"], "parallelism": parallel}})
    return str(Pipeline(recipe, Console(quiet=True), ranks=ranks).run())


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_all_ranks_roll_back_when_one_reads_a_bad_row(parallel: str, world: Path, tmp_path: Path) -> None:
    run, _ = map(Path, run_ranks(2, run_with_a_bad_row, str(world), str(tmp_path), parallel))
    steps, guards = events(run, "pretrain", "step"), events(run, "pretrain", "guard")
    assert [event["step"] for event in steps] == list(range(1, 21)) and all(event["train/grad_norm"] for event in steps)
    assert [(one["action"], one["step"], one["evidence"]["reached_step"]) for one in guards] == [("rollback", 6, 8)]
    assert guards[0]["evidence"]["skipped_rows"] == [[42, 6]]
    rolled_back = [json.loads(line) for line in (run / "pretrain" / "events.rolled_back.1.jsonl").read_text().splitlines()]
    bad_rows = [event["evidence"]["rows"] for event in rolled_back if event["kind"] == "guard"]
    assert bad_rows and all("pretrain.jsonl:" in row["where"] for rows in bad_rows for row in rows)


def run_with_all_options(ranks: DistributedContext, world: str, folder: str, parallel: str) -> str:
    """A run with averaged weights, prompt tests, the best checkpoint, and Muon."""
    values = tree(Path(world), Path(folder), ("pretrain", "sft"))
    stage = values["stages"]["sft"]
    stage["optimizer"]["name"] = "muon"
    stage |= {"ema": {"decay": 0.9}, "select_checkpoint": "best"}
    stage["prompt_tests"] = {"prompts": str(Path(world) / "prompts.yaml"), "every_steps": 4, "max_new_tokens": 4}
    recipe = recipe_from_dict({**values, "runtime": {**values["runtime"], "parallelism": parallel}})
    return str(Pipeline(recipe, Console(quiet=True), ranks=ranks).run())


@pytest.mark.slow
def test_prompt_tests_averages_and_the_next_stage_get_the_gathered_weights_of_a_sharded_model(
    world: Path, tmp_path: Path
) -> None:
    """A sharded model is gathered for prompts, for its average, and for the next stage."""
    one = Path(run_with_all_options(DistributedContext(), str(world), str(tmp_path / "one"), "ddp"))
    two, _ = map(Path, run_ranks(2, run_with_all_options, str(world), str(tmp_path / "two"), "fsdp"))
    assert json.loads((one / "sft" / "result.json").read_text())["model"].endswith("averaged")
    for run in (one, two):
        assert json.loads((run / "sft" / "result.json").read_text())["step"] == 8
    prompt_tests = [events(run, "sft", "prompt_tests") for run in (one, two)]
    assert [e["step"] for e in prompt_tests[0]] == [4, 8] and prompt_tests[0] == prompt_tests[1]
    after = [json.loads((run / "sft" / "eval" / "after.json").read_text()) for run in (one, two)]
    assert after[0]["samples"] == after[1]["samples"] and after[0]["loss"] == pytest.approx(after[1]["loss"], abs=1e-4)


@pytest.mark.slow
def test_a_slurm_job_trains_with_its_tasks_as_processes(world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """submitit's local executor starts the script and processes of a job without a queue."""
    stages = ("pretrain",)
    train(tmp_path, tree(world, tmp_path / "one", stages))
    recipe = tiny_run.write(tmp_path / "two.yaml", tree(world, tmp_path / "two", stages))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    job = submit(
        TrainCommand((str(recipe),), quiet=True), tmp_path / "two" / "tiny" / "jobs", 1, 2, ["time=10"], cluster="local"
    )
    assert job.results() == [0, 0], job.stderr()
    assert_same_losses(tmp_path / "one" / "tiny", tmp_path / "two" / "tiny", stages)


@pytest.mark.slow
def test_ray_workers_train_together(world: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    stages = ("pretrain",)
    train(tmp_path, tree(world, tmp_path / "one", stages))
    train(tmp_path, tree(world, tmp_path / "two", stages), "--cluster", "ray", "--processes", "2")
    assert_same_losses(tmp_path / "one" / "tiny", tmp_path / "two" / "tiny", stages)
    assert [event["world_size"] for event in events(tmp_path / "two" / "tiny", "pretrain", "world_size")] == [2]
