"""What all receivers of figures have in common, and the guard around each: none of them can stop a run."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from fledge.errors import first_line
from fledge.run.console import Log


class Sink(Protocol):
    """A receiver of figures."""

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Take the figures of a step, such as `train/loss`."""
        ...

    def close(self) -> None:
        """Write what is waiting, and end."""
        ...


@dataclass(frozen=True, kw_only=True)
class SinkContext:
    """What a receiver is told about the stage whose figures it gets.

    `folder`: of the stage. `step`: the step that training goes on from, 0 at the beginning. `recipe`: the resolved recipe as
    JSON values, without receivers of alerts, whose addresses may be secret.
    """

    folder: Path
    step: int = 0
    recipe: Mapping[str, Any] = field(default_factory=dict)

    @property
    def stage(self) -> str:
        """The name of the stage."""
        return self.folder.name

    @property
    def run(self) -> str:
        """The name of the run."""
        return self.folder.resolve().parent.name


def scalars(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, float]]:
    """Every number among the values; one inside a mapping is named `<name>/<key>`."""
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, dict):
            yield from scalars(value, f"{name}/")
        elif isinstance(value, int | float):
            yield name, value


class GuardedSink:
    """A receiver whose first failure is told and ends it; what it does not get after that is counted. Training goes on."""

    def __init__(self, label: str, make: Callable[[], Sink], log: Log) -> None:
        """`label`: the name of the receiver for messages. `make` opens it; `log` gets the warnings."""
        self.label, self._log, self.lost = label, log, 0
        self._sink: Sink | None = None
        self._guarded(lambda: setattr(self, "_sink", make()), "cannot be opened")

    def _guarded(self, action: Callable[[], Any], what: str) -> bool:
        """Do something with the receiver; returns whether it went well. Whatever it raises ends the receiver, not the run."""
        try:
            action()
        except Exception as error:
            self._sink = None
            self._log(f"warning: {self.label} {what} ({first_line(error)}): no more figures go there; training goes on")
            return False
        return True

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Pass the numbers among the values on."""
        sink, numbers = self._sink, dict(scalars(values))
        if sink is None or not self._guarded(lambda: sink.write(step, numbers), "takes no more figures"):
            self.lost += len(numbers)

    def close(self) -> None:
        """End the receiver, and say how many figures it did not get."""
        sink = self._sink
        if sink is not None:
            self._guarded(sink.close, "did not end properly")
        if self.lost:
            self._log(f"warning: {self.lost:,} figures are missing in {self.label}; all are in events.jsonl")
