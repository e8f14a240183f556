"""TensorBoard: event files in the folder of the stage."""

from collections.abc import Mapping

from fledge.run.sinks.sink import SinkContext


class TensorBoard:
    """Writes scalars into `tensorboard/`. On resume, points that a killed process wrote later are purged."""

    def __init__(self, context: SinkContext) -> None:
        from torch.utils.tensorboard import SummaryWriter

        purge = context.step + 1 if context.step else None
        self._writer = SummaryWriter(str(context.folder / "tensorboard"), purge_step=purge)

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Add one point to each curve."""
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close the files."""
        self._writer.close()
