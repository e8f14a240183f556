"""Executors run a phase on shards: in this process, in processes of this machine, on a Ray cluster, in a Slurm array.

Each calls `run_shard(build, phase, number)` for every shard. Workers exchange data only through the build directory, so
every executor writes equal bytes, and one executor can finish a build that another one began."""

import logging
import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, Protocol

from fledge.errors import FledgeError, missing_extra
from fledge.run.environment import cores
from fledge.run.slurm_options import slurm_options

if TYPE_CHECKING:  # the command line imports this module; what a build needs is imported when one runs
    from fledge.data.build.directory import BuildDirectory

Done = Callable[[int], None]
ONE_THREAD = {"TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1", "FASTOKENS_BPE_THREADS": "1", "OMP_NUM_THREADS": "1"}
RESUME_HINT = "run the same command again: what is finished is kept"


class Executor(Protocol):
    """Runs a phase on shards and calls `done(number)` after each. Raises FledgeError if a shard cannot be finished."""

    def run(self, build: "BuildDirectory", phase: str, numbers: Sequence[int], done: Done) -> None:
        """Run `phase` on the shards with these numbers."""
        ...


class InProcessExecutor:
    """One shard after the other, in this process."""

    def run(self, build: "BuildDirectory", phase: str, numbers: Sequence[int], done: Done) -> None:
        """See Executor."""
        from fledge.data.build.phases import run_shard

        for number in numbers:
            run_shard(build, phase, number)
            done(number)


class ProcessPoolExecutor:
    """`count` worker processes of this machine. A worker stops when its input is closed, so none outlives this process."""

    def __init__(self, count: int) -> None:
        self.count = count

    def run(self, build: "BuildDirectory", phase: str, numbers: Sequence[int], done: Done) -> None:
        """See Executor."""
        waiting: SimpleQueue[int] = SimpleQueue()
        for number in numbers:
            waiting.put(number)
        finished: SimpleQueue[tuple[int, str | None]] = SimpleQueue()
        count = min(self.count, len(numbers))
        workers = [_Worker(build.folder, phase, waiting, finished) for _ in range(count)]
        try:
            for _ in numbers:
                number, error = finished.get()
                if error is not None:
                    raise FledgeError.from_json(error)
                done(number)
        finally:
            for worker in workers:
                worker.stop()


class _Worker(threading.Thread):
    """Feeds one process with shard numbers, a line each, and reads its answers."""

    def __init__(
        self, folder: Path, phase: str, waiting: "SimpleQueue[int]", finished: "SimpleQueue[tuple[int, str | None]]"
    ) -> None:
        super().__init__(daemon=True)
        self.waiting, self.finished = waiting, finished
        command = [sys.executable, "-m", "fledge.data.build.worker", str(folder), phase]
        environment = {**os.environ, **ONE_THREAD}
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, encoding="utf-8", env=environment
        )
        self.start()

    def run(self) -> None:
        assert self.process.stdin is not None and self.process.stdout is not None
        number = -1
        try:
            while True:
                number = self.waiting.get_nowait()
                self.process.stdin.write(f"{number}\n")
                self.process.stdin.flush()
                answer = self.process.stdout.readline()
                if not answer.endswith("\n"):
                    self.finished.put((number, _ended(self.process.wait(), number)))
                    return
                self.finished.put((number, answer[:-1] or None))
        except Empty:
            return
        except (BrokenPipeError, ValueError, OSError):
            self.finished.put((number, _ended(self.process.wait(), number)))

    def stop(self) -> None:
        """End the process, at once if it is in the middle of a shard that nobody waits for."""
        self.process.terminate()
        self.process.wait()
        self.join()
        for stream in (self.process.stdin, self.process.stdout):
            if stream is not None:
                with suppress(BrokenPipeError):
                    stream.close()


def _ended(code: int, number: int) -> str:
    how = f"was killed by signal {-code}" if code < 0 else f"ended with exit code {code}"
    return FledgeError(f"a worker {how} in the middle of shard {number}", hint=RESUME_HINT).as_json()


class RayExecutor:
    """Tasks of a Ray cluster (extra `cluster`): of the one at RAY_ADDRESS, else of one that is started on this machine."""

    def __init__(self, count: int | None = None) -> None:
        self.count = count

    def run(self, build: "BuildDirectory", phase: str, numbers: Sequence[int], done: Done) -> None:
        """See Executor. The build directory must be on a file system that all nodes share."""
        try:
            import ray
            from ray.exceptions import RayError
        except ImportError:
            raise missing_extra("ray", "cluster", "building on a Ray cluster") from None
        os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        started = not ray.is_initialized()
        if started:
            address = os.environ.get("RAY_ADDRESS")
            options: dict[str, Any] = {} if address else {"num_cpus": self.count, "include_dashboard": False}
            options.update(log_to_driver=False, logging_level=logging.ERROR, runtime_env={"env_vars": ONE_THREAD})
            ray.init(address=address, **options)
        try:
            task = ray.remote(max_retries=2)(_run_shard_or_report)
            pending = {task.remote(str(build.folder), phase, number, os.getcwd()): number for number in numbers}
            while pending:
                ready, _ = ray.wait(list(pending), num_returns=1)
                number = pending.pop(ready[0])
                try:
                    error = ray.get(ready[0])
                except RayError as failure:
                    raise FledgeError(f"shard {number} failed on the cluster: {failure}", hint=RESUME_HINT) from None
                if error is not None:
                    raise FledgeError.from_json(error)
                done(number)
        finally:
            if started:
                ray.shutdown()


def _run_shard_or_report(folder: str, phase: str, number: int, working_directory: str) -> str | None:
    """Run one shard of the build in `folder`. A FledgeError is returned as JSON, which can be sent to another process."""
    try:
        from fledge.data.build.phases import run_shard_in

        os.chdir(working_directory)
        run_shard_in(Path(folder), phase, number)
    except FledgeError as error:
        return error.as_json()
    return None


class SlurmExecutor:
    """A Slurm array through submitit (extra `cluster`); `cluster="local"` runs its jobs on this machine."""

    def __init__(self, count: int | None = None, cluster: str | None = None, options: dict[str, Any] | None = None) -> None:
        self.count, self.cluster, self.options = count, cluster, options or {}

    def run(self, build: "BuildDirectory", phase: str, numbers: Sequence[int], done: Done) -> None:
        """See Executor. Logs of the jobs are kept in `<folder>/jobs`."""
        try:
            import submitit
        except ImportError:
            raise missing_extra("submitit", "cluster", "building with Slurm") from None
        if self.cluster is None and shutil.which("sbatch") is None:
            raise FledgeError("there is no Slurm here: sbatch was not found", where="--executor slurm", hint="use processes")
        try:
            executor = submitit.AutoExecutor(folder=build.folder / "jobs", cluster=self.cluster)
        except RuntimeError as error:
            raise FledgeError(f"cannot submit to Slurm: {error}", where="--executor slurm") from None
        executor.update_parameters(**{"timeout_min": 24 * 60, "slurm_array_parallelism": self.count or 64, **self.options})
        with executor.batch():
            folder, cwd = str(build.folder), os.getcwd()
            jobs = [executor.submit(_run_shard_or_report, folder, phase, number, cwd) for number in numbers]
        for job, number in zip(jobs, numbers, strict=True):
            try:
                error = job.result()
            except Exception as failure:  # submitit raises many kinds, all of them failures of the job
                raise FledgeError(f"shard {number} failed as job {job.job_id}: {failure}", hint=RESUME_HINT) from None
            if error is not None:
                raise FledgeError.from_json(error)
            done(number)
        for pickled in (build.folder / "jobs").glob("*.pkl"):  # submitit's own; the logs stay
            pickled.unlink()


def chosen_executor(name: str, workers: int | None, parameters: Sequence[str] = ()) -> Executor:
    """The executor of a name: processes, ray or slurm. `parameters` are Slurm's, as key=value."""
    if workers is not None and workers < 1:
        raise FledgeError(f"{workers} workers cannot work", where="--workers")
    if parameters and name != "slurm":
        raise FledgeError("these are parameters of Slurm jobs", where="--slurm-option", hint="add --executor slurm")
    if name == "ray":
        return RayExecutor(workers)
    if name == "slurm":
        return SlurmExecutor(workers, options=slurm_options(parameters))
    return ProcessPoolExecutor(workers or cores())
