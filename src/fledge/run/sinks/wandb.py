"""Weights & Biases: one run for each stage, grouped by the run of fledge. Offline unless the recipe says otherwise."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal
from uuid import uuid4

from fledge.run.sinks.sink import SinkContext

GLOBAL_STEP = "train/global_step"  # the x axis, under the name that the trainers of transformers give it


class Wandb:
    """Writes a run below `wandb/` of the stage; offline, `wandb sync` sends it later. A resumed stage goes on with its run."""

    def __init__(
        self, context: SinkContext, *, project: str, entity: str | None, mode: Literal["offline", "online"], tags: Sequence[str]
    ) -> None:
        """`mode`: offline, or online. The rest is as wandb names it."""
        if mode == "offline":
            os.environ.setdefault("WANDB_ERROR_REPORTING", "false")  # read when wandb is imported: reports of its own crashes
        import wandb

        settings = wandb.Settings(
            console="off", silent=True, disable_code=True, disable_git=True, x_disable_stats=True, x_disable_meta=True,
            login_timeout=10, init_timeout=60, finish_timeout=120, reinit="create_new",
        )  # fmt: skip
        self._run = wandb.init(
            project=project,
            entity=entity,
            mode=mode,
            tags=list(tags),
            name=f"{context.run}-{context.stage}",
            group=context.run,
            job_type=context.stage,
            id=_identity(context.folder / "wandb", context.step),
            resume="allow",
            dir=str(context.folder),
            config=dict(context.recipe),
            settings=settings,
        )
        self._run.define_metric(GLOBAL_STEP)
        self._run.define_metric("*", step_metric=GLOBAL_STEP)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Log the figures with their step. A step may come again after a roll-back, so it is a figure and not wandb's own."""
        self._run.log({GLOBAL_STEP: step, **values})

    def close(self) -> None:
        """Write what is waiting, and end the run. Online, what is not sent within two minutes stays for `wandb sync`."""
        self._run.finish()


def _identity(folder: Path, step: int) -> str:
    """The id of the run in wandb: a new one for a stage that begins, that of the beginning for one that goes on."""
    file = folder / "run_id"
    if step and file.is_file():
        return file.read_text(encoding="utf-8").strip()
    folder.mkdir(exist_ok=True)
    identity = uuid4().hex
    file.write_text(identity, encoding="utf-8")
    return identity
