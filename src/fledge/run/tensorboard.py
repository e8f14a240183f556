"""TensorBoard scalars, written from the events of a run."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from fledge.errors import missing_extra


class TensorBoard:
    """Writes the numbers of step, eval and system events. On resume, points that a killed process wrote later are purged."""

    def __init__(self, folder: Path, step: int, log: Callable[[str], None] = lambda text: None) -> None:
        """`log` gets a line when the disk refuses a point; training goes on, and later points are left out."""
        self._log, self._failed = log, False
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise missing_extra("tensorboard", "tensorboard", "logging.tensorboard") from None
        self._writer = SummaryWriter(str(folder), purge_step=step + 1 if step else None)

    def write(self, step: int, values: dict[str, Any]) -> None:
        """Write every number among the values. A number inside a mapping is named `<name>/<key>`."""
        if self._failed:
            return
        for name, value in values.items():
            if isinstance(value, dict):
                self.write(step, {f"{name}/{key}": inner for key, inner in value.items()})
            elif isinstance(value, int | float):
                try:
                    self._writer.add_scalar(name, value, step)
                except OSError as error:
                    self._failed = True
                    self._log(f"warning: TensorBoard's files cannot be written ({error.strerror}): no more points are added")
                    return

    def close(self) -> None:
        """Flush and close the writer."""
        if not self._failed:
            self._writer.close()
