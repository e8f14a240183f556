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
from fledge.training.batch_source import BatchSource, DatasetSource
from fledge.training.hooks import Hook
from fledge.training.live_doctor import LiveDoctor

MakeSource = Callable[["TrainContext", int, Callable[[], bool]], BatchSource]
"""A function from a context, the packed rows of a micro-batch, and the question whether to stop, to the source of batches."""


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
    doctor: LiveDoctor | None = None  # looks at the events while the stage trains; also one of the observers of `log`
    ranks: DistributedContext = field(default_factory=DistributedContext)
    is_sharded: bool = False  # whether the model is sharded among the ranks
    make_source: MakeSource = field(default_factory=lambda: dataset_source)


def dataset_source(context: TrainContext, micro_batch_size: int, stop_requested: Callable[[], bool]) -> DatasetSource:
    """The rows of the context's data, in order."""
    normalizer = context.objective.normalizer
    return DatasetSource(context.data, context.horizon, micro_batch_size, normalizer, ranks=context.ranks)
