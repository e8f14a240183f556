"""Training in the workers of a Ray cluster, with Ray Train (extra `cluster`). All workers must share the run directory's
file system."""

import logging
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fledge.entrypoint import TrainCommand, exit_code, to_stderr, train_in_folder
from fledge.errors import FledgeError, missing_extra


def run_on_ray(training: TrainCommand, folder: Path, workers: int, restarts: int) -> int:
    """Train in `workers` workers and return the exit code.

    The workers belong to the Ray cluster at RAY_ADDRESS, or else to one that is started here. Ray's own files go to `folder`.
    Raises FledgeError if workers were lost more than `restarts` times, if the cluster has no room for them, or if Ray is not
    installed.
    """
    try:
        import ray
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchConfig, TorchTrainer
    except ImportError:
        raise missing_extra("ray", "cluster", "training on a Ray cluster") from None
    from fledge.distributed.startup import backends
    from fledge.recipe import load_recipe

    device = load_recipe(list(training.recipes), list(training.overrides)).runtime.device
    address = os.environ.get("RAY_ADDRESS")
    ray.init(address=address, include_dashboard=False, log_to_driver=True, logging_level=logging.ERROR)
    try:
        uses_gpu, note = check_cluster(ray.cluster_resources(), workers, device, can_grow=address is not None)
        if note is not None:
            to_stderr(note)
        trainer = TorchTrainer(
            _on_worker,
            train_loop_config={"training": training, "folder": os.getcwd()},
            torch_config=TorchConfig(backend=backends(uses_gpu)),
            scaling_config=ScalingConfig(num_workers=workers, use_gpu=uses_gpu),
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


def check_cluster(resources: Mapping[str, float], workers: int, device: str, can_grow: bool) -> tuple[bool, str | None]:
    """Whether the workers get a GPU each, and a note for the user; None: nothing to say.

    `resources`: what the cluster has, as `ray.cluster_resources` answers. `device`: `runtime.device` of the recipe. Raises
    FledgeError if a cluster that cannot grow has too little: Ray would wait for ever.
    """
    gpus = int(resources.get("GPU", 0))
    uses_gpu = device == "cuda" or (device == "auto" and gpus > 0)
    for kind, plural, hint in (
        ("GPU", "GPUs", "or set runtime.device to cpu" if gpus else "set runtime.device to auto or cpu"),
        ("CPU", "CPUs", "or a cluster with more machines"),
    ):
        count = int(resources.get(kind, 0))
        if count >= workers or (kind == "GPU" and not uses_gpu):
            continue
        what = f"{workers} workers need {workers} {plural}, and the Ray cluster has {count}"
        if can_grow:
            return uses_gpu, f"note: {what}: waiting until it has grown"
        fewer = f"start at most {count} workers, " if count else ""
        raise FledgeError(what, where="--processes", hint=fewer + hint)
    return uses_gpu, None


def _on_worker(config: dict[str, Any]) -> None:
    """Train in one worker, within the process group that Ray Train has initialised."""
    from ray import train

    train.report({"code": exit_code(lambda: train_in_folder(config["training"], config["folder"]))})
