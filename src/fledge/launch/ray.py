"""Training in the workers of a Ray cluster, with Ray Train (extra `cluster`). All workers must share the run directory's
file system."""

import logging
import os
from pathlib import Path
from typing import Any

from fledge.entrypoint import TrainCommand, exit_code, train_in_folder
from fledge.errors import FledgeError, missing_extra


def run_on_ray(training: TrainCommand, folder: Path, workers: int, restarts: int) -> int:
    """Train in `workers` workers and return the exit code.

    The workers belong to the Ray cluster at RAY_ADDRESS, or else to one that is started here. Ray's own files go to `folder`.
    Raises FledgeError if workers were lost more than `restarts` times, or if Ray is not installed.
    """
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
            train_loop_config={"training": training, "folder": os.getcwd()},
            torch_config=TorchConfig(backend=backends(uses_gpu=torch.cuda.is_available())),
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=torch.cuda.is_available()),
            run_config=RunConfig(
                name="ray", storage_path=str(folder.resolve()), failure_config=FailureConfig(max_failures=restarts)
            ),
        )
        try:
            metrics = trainer.fit().metrics or {}
        except Exception as error:  # Ray raises many types, all for failures of workers
            raise FledgeError(
                f"training failed on the cluster: {error}", hint="the same command continues from the last checkpoint"
            ) from None
        return int(metrics.get("code", 0))
    finally:
        ray.shutdown()


def _on_worker(config: dict[str, Any]) -> None:
    """Train in one worker, within the process group that Ray Train has initialised."""
    from ray import train

    train.report({"code": exit_code(lambda: train_in_folder(config["training"], config["folder"]))})
