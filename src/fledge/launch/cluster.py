"""Training on a cluster: a Slurm job through submitit, or workers of a Ray cluster through Ray Train (extra `cluster`).

Both do the same in every process; what differs is who starts it and tells it its rank. The run directory must be
on a file system that all machines share.
"""

import logging
import os
import shutil
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fledge.data.build.executors import slurm_parameters
from fledge.entrypoint import TrainCommand, exit_code
from fledge.errors import EXIT_PEER_LOST, FledgeError, missing_extra
from fledge.run.stopping import SignalHandler

DAY = 24 * 60  # minutes that a Slurm job gets where the recipe's user does not say


@dataclass(frozen=True)
class ClusterJob:
    """A training in the folder that paths are relative to: what every process of a cluster does."""

    training: TrainCommand
    where: str

    def __call__(self) -> int:
        """Train as a task of a Slurm job; returns the exit code. A warning that the time is up, or that another job goes first,
        becomes a polite stop; then the job is queued again, and goes on by itself."""
        from submitit.helpers import TorchDistributedEnvironment

        TorchDistributedEnvironment().export(set_cuda_visible_devices=False)
        warned, queue_again = False, signal.getsignal(signal.SIGUSR2)

        def warn(number: int, frame: Any) -> None:
            nonlocal warned
            warned = True
            os.kill(os.getpid(), signal.SIGTERM)

        signal.signal(signal.SIGUSR2, warn)
        code = exit_code(self.train)
        if code == EXIT_PEER_LOST:  # at once, so that Slurm ends the others, and without threads that wait for them
            sys.stderr.flush()
            os._exit(code)
        if warned and callable(queue_again):
            queue_again(signal.SIGUSR2, None)
        return code

    def train(self) -> None:
        """Train, in the folder."""
        os.chdir(self.where)
        with SignalHandler(lambda text: None, "stopped on request") as stopping:
            self.training.run(stopping)

    def checkpoint(self) -> Any:
        """What submitit queues again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def submit(
    training: TrainCommand, folder: Path, nodes: int, processes: int, parameters: Sequence[str], cluster: str | None = None
) -> Any:
    """Submit a Slurm job of `processes` tasks on each of `nodes`; returns submitit's job. Its script and its logs are in
    `folder`. `cluster="local"` runs the same job on this machine."""
    try:
        import submitit
    except ImportError:
        raise missing_extra("submitit", "cluster", "training with Slurm") from None
    if cluster is None and shutil.which("sbatch") is None:
        raise FledgeError("there is no Slurm here: sbatch was not found", where="--cluster slurm", hint="use --processes")
    executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
    asked = slurm_parameters(parameters)
    executor.update_parameters(**{"timeout_min": DAY, "nodes": nodes, "tasks_per_node": processes, "name": "fledge", **asked})
    return executor.submit(ClusterJob(training, os.getcwd()))


def run_on_ray(training: TrainCommand, folder: Path, workers: int, restarts: int) -> int:
    """Train in workers of the Ray cluster at RAY_ADDRESS, else of one that is started here; returns its exit code. What Ray
    itself keeps is in `folder`. FledgeError where workers were lost too often."""
    try:
        import ray
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer
    except ImportError:
        raise missing_extra("ray", "cluster", "training on a Ray cluster") from None
    import torch

    from fledge.distributed.context import backends

    ray.init(address=os.environ.get("RAY_ADDRESS"), include_dashboard=False, log_to_driver=True, logging_level=logging.ERROR)
    try:
        trainer = TorchTrainer(
            _on_worker,
            train_loop_config={"training": training, "where": os.getcwd()},
            torch_config=TorchConfig(backend=backends()),
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=torch.cuda.is_available()),
            run_config=RunConfig(
                name="ray", storage_path=str(folder.resolve()), failure_config=FailureConfig(max_failures=restarts)
            ),
        )
        try:
            metrics = trainer.fit().metrics or {}
        except Exception as error:  # Ray has many kinds, all of them failures of workers
            raise FledgeError(
                f"training failed on the cluster: {error}", hint="the same command goes on from the last checkpoint"
            ) from None
        return int(metrics.get("code", 0))
    finally:
        ray.shutdown()


def _on_worker(config: dict[str, Any]) -> None:
    """One worker: it belongs to the process group that Ray Train has begun."""
    from ray import train

    train.report({"code": exit_code(ClusterJob(config["training"], config["where"]).train)})
