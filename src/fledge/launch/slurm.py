"""Training as a Slurm job, with submitit (extra `cluster`). All nodes must share the run directory's file system."""

import os
import shutil
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fledge.entrypoint import TrainCommand, exit_code, train_in_folder
from fledge.errors import EXIT_PEER_LOST, FledgeError, missing_extra
from fledge.run.slurm_options import slurm_options

DAY = 24 * 60  # minutes; default time limit of a job


@dataclass(frozen=True)
class SlurmTask:
    """One task of a Slurm job: a training command whose paths are relative to `folder`."""

    training: TrainCommand
    folder: str

    def __call__(self) -> int:
        """Train and return the exit code.

        Slurm announces the time limit or a preemption with SIGUSR2. Training then stops in an orderly way; the job is queued
        again and resumes.
        """
        from submitit.helpers import TorchDistributedEnvironment

        TorchDistributedEnvironment().export(set_cuda_visible_devices=False)
        warned, requeue = False, signal.getsignal(signal.SIGUSR2)

        def on_warning(number: int, frame: Any) -> None:
            nonlocal warned
            warned = True
            os.kill(os.getpid(), signal.SIGTERM)

        signal.signal(signal.SIGUSR2, on_warning)
        code = exit_code(lambda: train_in_folder(self.training, self.folder))
        if code == EXIT_PEER_LOST:  # immediately, without waiting for threads, so that Slurm ends the other tasks
            sys.stderr.flush()
            os._exit(code)
        if warned and callable(requeue):
            requeue(signal.SIGUSR2, None)
        return code

    def checkpoint(self) -> Any:
        """The submission with which submitit queues the job again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def submit(
    training: TrainCommand, folder: Path, nodes: int, processes: int, options: Sequence[str], cluster: str | None = None
) -> Any:
    """Submit a Slurm job with `processes` tasks on each of `nodes` nodes; returns submitit's job.

    The job's script and logs go to `folder`. `options`: sbatch options as key=value. `cluster="local"` runs the job on this
    machine. Raises FledgeError if Slurm or submitit is not installed.
    """
    try:
        import submitit
    except ImportError:
        raise missing_extra("submitit", "cluster", "training with Slurm") from None
    if cluster is None and shutil.which("sbatch") is None:
        raise FledgeError("Slurm is not available: sbatch was not found", where="--cluster slurm", hint="use --processes")
    executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
    chosen = slurm_options(options)
    executor.update_parameters(**{"timeout_min": DAY, "nodes": nodes, "tasks_per_node": processes, "name": "fledge", **chosen})
    return executor.submit(SlurmTask(training, os.getcwd()))
