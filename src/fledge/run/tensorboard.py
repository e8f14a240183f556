"""TensorBoard scalars, written from the events of a run."""

from pathlib import Path
from typing import Any

from fledge.errors import missing_extra


class TensorBoard:
    """Writes the numbers of step, eval and system events. On resume, points that a killed process wrote later are purged."""

    def __init__(self, folder: Path, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise missing_extra("tensorboard", "tensorboard", "logging.tensorboard") from None
        self._writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Write every number among the values. A number inside a mapping is named `<name>/<key>`."""
        for name, value in values.items():
            if isinstance(value, dict):
                self.write(step, {f"{name}/{key}": inner for key, inner in value.items()})
            elif isinstance(value, int | float):
                self._writer.add_scalar(name, value, step)

    def close(self) -> None:
        """Flush and close the writer."""
        self._writer.close()
