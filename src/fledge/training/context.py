"""The inputs of the training of one stage."""

from collections.abc import Callable
from dataclasses import dataclass, field

from fledge.autotune.autotune import ComputeConfig
from fledge.checkpoint.checkpoint import WriteModel
from fledge.data import PackedDataset
from fledge.distributed.context import DistributedContext
from fledge.model.protocol import LanguageModel
from fledge.monitor.run_logger import LogTargets
from fledge.objective import Objective
from fledge.plan.horizon import TrainingHorizon
from fledge.recipe.schema import Stage
from fledge.run.stopping import SignalHandler
from fledge.training.hooks import Hook


@dataclass(frozen=True, kw_only=True)
class TrainContext:
    """The inputs of the Trainer: the stage with all settings resolved, model, objective, data, compute configuration, log."""

    stage: Stage
    horizon: TrainingHorizon
    seed: int
    model: LanguageModel
    objective: Objective
    data: PackedDataset
    locate_example: Callable[[int], str]  # FILE:LINE of a training example
    compute: ComputeConfig
    log: LogTargets
    write_model: WriteModel
    stopping: SignalHandler
    on_start: Callable[[], None] = lambda: None  # called when the state is restored, before the first update
    hooks: tuple[Hook, ...] = ()  # run in this order between two steps, before checkpoints are written
    ranks: DistributedContext = field(default_factory=DistributedContext)
    is_sharded: bool = False  # whether the model is sharded among the ranks
