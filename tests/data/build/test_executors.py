"""Executors write identical bytes, whoever works on the shards and however often the build is interrupted."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from fledge.data.build import build, plan
from fledge.data.build.build import collect, encode
from fledge.data.build.directory import BuildDirectory
from fledge.data.build.executors import (
    Done,
    Executor,
    InProcessExecutor,
    ProcessPoolExecutor,
    RayExecutor,
    SlurmExecutor,
)
from fledge.errors import FledgeError
from fledge.tokenizer import Tokenizer
from tests.support.documents import documents, stage_of
from tests.support.sources import jsonl


def tree(folder: Path) -> dict[str, bytes]:
    """All files of a build, with their bytes."""
    return {str(file.relative_to(folder)): file.read_bytes() for file in sorted(folder.rglob("*")) if file.is_file()}


def built(folder: Path, file: Path, tokenizer: Tokenizer, executor: Executor, **data: object) -> dict[str, bytes]:
    """Build one stage: the bytes of all files."""
    stage = stage_of("pretrain", file, validation=0.1, **data)
    encode(collect(stage, "x", 1, folder, executor), tokenizer, executor)
    return tree(folder)


@pytest.mark.usefixtures("small_shards")
def test_worker_processes_write_the_bytes_of_one_process(tmp_path: Path, tokenizer: Tokenizer) -> None:
    file = jsonl(tmp_path / "a.jsonl", [*documents(400), b"{broken", {"text": "short"}])
    near = {"clean": {"near_duplicates": 0.7}}
    expected = built(tmp_path / "one", file, tokenizer, InProcessExecutor(), **near)
    assert sum(name.startswith("tokens/") and name.endswith("result.json") for name in expected) > 3
    assert built(tmp_path / "two", file, tokenizer, ProcessPoolExecutor(2), **near) == expected


class _Dying(InProcessExecutor):
    """An executor that completes some shards and is interrupted in the next one."""

    def __init__(self, after: int) -> None:
        self.left = after

    def run(self, build: BuildDirectory, phase: str, numbers: Sequence[int], done: Done) -> None:
        for number in numbers:
            if self.left == 0:
                raise KeyboardInterrupt
            self.left -= 1
            super().run(build, phase, [number], done)


@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("after", [0, 1, 3, 5, 7, 9])
def test_an_interrupted_build_continues_to_the_bytes_of_an_uninterrupted_one(
    tmp_path: Path, tokenizer: Tokenizer, after: int
) -> None:
    file = jsonl(tmp_path / "a.jsonl", documents(300))
    expected = built(tmp_path / "uninterrupted", file, tokenizer, InProcessExecutor())
    with pytest.raises(KeyboardInterrupt):
        built(tmp_path / "cut", file, tokenizer, _Dying(after))
    assert built(tmp_path / "cut", file, tokenizer, InProcessExecutor()) == expected


BUILD = """
from pathlib import Path
from tests.support.documents import stage_of
from fledge.data.build import plan
from fledge.data.build.build import collect
from fledge.data.build.executors import ProcessPoolExecutor
plan.SHARD_BYTES = 6000
collect(stage_of("pretrain", Path({file!r}), validation=0.1), "x", 1, Path({folder!r}), ProcessPoolExecutor(2))
"""


def _children(pid: int) -> list[int]:
    import psutil

    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.Error:
        return []


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["worker", "all"])
def test_a_build_whose_worker_was_killed_continues_to_the_same_bytes(
    tmp_path: Path, tokenizer: Tokenizer, victim: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file, folder = jsonl(tmp_path / "a.jsonl", documents(3000)), tmp_path / "cut"
    process = subprocess.Popen(
        [sys.executable, "-c", BUILD.format(file=str(file), folder=str(folder))],
        cwd=Path(__file__).parents[3], stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    while not list(folder.glob("rows/0*")) and process.poll() is None:
        time.sleep(0.02)
    children = _children(process.pid)
    os.kill(children[0] if victim == "worker" else process.pid, signal.SIGKILL)
    _, errors = process.communicate(timeout=60)
    assert process.returncode != 0
    assert victim == "all" or "was killed by signal 9" in errors
    deadline = time.monotonic() + 20
    while any(_alive(child) for child in children) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(_alive(child) for child in children)
    monkeypatch.setattr(plan, "SHARD_BYTES", 6000)
    assert 0 < len(list(folder.glob("rows/0*"))) < len(collect(stage_of("pretrain", file), "x", 1).plan.shards)
    assert built(folder, file, tokenizer, ProcessPoolExecutor(2)) == built(
        tmp_path / "whole", file, tokenizer, InProcessExecutor()
    )


def _alive(pid: int) -> bool:
    import psutil

    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@pytest.mark.slow
@pytest.mark.usefixtures("small_shards")
@pytest.mark.parametrize("kind", ["ray", "slurm"])
def test_clusters_write_the_bytes_of_one_process(tmp_path: Path, tokenizer: Tokenizer, kind: str) -> None:
    pytest.importorskip("ray" if kind == "ray" else "submitit")
    file = jsonl(tmp_path / "a.jsonl", documents(300))
    executor: Executor = RayExecutor(2) if kind == "ray" else SlurmExecutor(2, cluster="local")
    files = built(tmp_path / "cluster", file, tokenizer, executor)
    kept = {name: content for name, content in files.items() if not name.startswith("jobs/")}
    assert not any(name.endswith(".pkl") for name in files)
    assert kept == built(tmp_path / "here", file, tokenizer, InProcessExecutor())


def test_an_error_in_a_worker_reaches_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(build, "MIN_BYTES_FOR_WORKERS", 0)
    good, bad = jsonl(tmp_path / "a.jsonl", documents(10)), tmp_path / "b.json"
    bad.write_text('[{"text": "x"}, {')
    with pytest.raises(FledgeError, match=r"b\.json"):
        collect(stage_of("pretrain", [str(good), str(bad)]), "x", 1, tmp_path / "d")
