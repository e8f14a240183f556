"""What a stage says of itself: events, TensorBoard, the console; and what the guards find in it."""

from typing import Any

from fledge.distributed.context import DistributedContext
from fledge.monitor.guards import Event, Guards, GuardTrigger
from fledge.recipe.sections.guards import GuardsConfig
from fledge.run import Console, EventLog, StageDirectory
from fledge.run.alerts import Alerts

STYLES = {"error": "red", "warning": "yellow"}


class RunLogger:
    """Every event of a stage goes through here. Opened at a step, it knows what the events up to it tell.

    Of several ranks the first one keeps the journal. The others are told what is in it when they ask what was `found`, so
    that the guards of all see the same and find the same."""

    def __init__(
        self,
        directory: StageDirectory,
        step: int,
        config: GuardsConfig,
        console: Console,
        tensorboard: bool = False,
        alerts: Alerts | None = None,
        ranks: DistributedContext | None = None,
    ) -> None:
        self.directory, self.console, self.alerts = directory, console, alerts
        self.ranks, self.guards = ranks or DistributedContext(), Guards(config)
        self.events = EventLog(directory.events, step) if self.ranks.is_main_process else None
        kept = self.ranks.broadcast_object(self.events and self.events.kept)
        self.guards.replay(kept)
        self.processes = _processes(kept)
        self.board = _board(directory, step) if tensorboard and self.ranks.is_main_process else None
        self._untold: list[Event] = []

    def write(self, kind: str, step: int, **values: Any) -> None:
        """One event."""
        if self.events is not None:
            self._untold.append(self.events.write(kind, step, **values))

    def log_scalars(self, step: int, values: dict[str, Any]) -> None:
        """Figures for TensorBoard, where it is asked for."""
        if self.board is not None:
            self.board.write(step, values)

    def check_guards(self) -> list[GuardTrigger]:
        """What the guards find in the events since this was asked last. All ranks must ask together."""
        events, self._untold = self.ranks.broadcast_object(self._untold), []
        return [verdict for event in events for verdict in self.guards.update(event)]

    def alert(self, level: str, message: str, step: int, kind: str = "alert", **evidence: Any) -> None:
        """Something is wrong: in the events, on the console, and to whoever else wants to know."""
        self.write(kind, step, level=level, message=message, **evidence)
        self.console.log(f"{level}: {message}", style=STYLES[level])
        if self.alerts is not None and self.ranks.is_main_process:
            self.alerts.send(level, message, self.directory.root.name, step, evidence)

    def rewind(self, step: int, number: int) -> None:
        """Go back to a step: later events are moved to `rolled-back-<number>.jsonl`, and the guards forget them."""
        aside = self.directory.root / f"events.rolled_back.{number}.jsonl"
        self.guards.replay(self.ranks.broadcast_object(self.events and self.events.rewind(step, aside)))
        self._untold = []

    def close(self) -> None:
        """Close the files."""
        if self.events is not None:
            self.events.close()
        if self.board is not None:
            self.board.close()


def _processes(events: list[Event]) -> int | None:
    """How many have written these events, as far as they go; None where there are none."""
    counts = [event["world_size"] for event in events if event["kind"] == "world_size"]
    return counts[-1] if counts else 1 if events else None


def _board(directory: StageDirectory, step: int) -> Any:
    from fledge.run.tensorboard import TensorBoard

    return TensorBoard(directory.root / "tensorboard", step)
