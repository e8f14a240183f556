"""What a stage says of itself: events, TensorBoard, the console; and what the guards find in it."""

from typing import Any

from fledge.recipe.sections.guards import GuardsConfig
from fledge.run import Console, EventLog, StageDirectory
from fledge.run.alerts import Alerts
from fledge.train.guards import Guards, Verdict

STYLES = {"error": "red", "warning": "yellow"}


class Journal:
    """Every event of a stage goes through here. Opened at a step, it knows what the events up to it tell."""

    def __init__(
        self,
        directory: StageDirectory,
        step: int,
        config: GuardsConfig,
        console: Console,
        tensorboard: bool = False,
        alerts: Alerts | None = None,
    ) -> None:
        self.directory, self.console, self.alerts = directory, console, alerts
        self.events, self.guards = EventLog(directory.events, step), Guards(config)
        self.guards.replay(self.events.kept)
        self.board = _board(directory, step) if tensorboard else None
        self._found: list[Verdict] = []

    def write(self, kind: str, step: int, **values: Any) -> None:
        """One event."""
        self._found += self.guards.see(self.events.write(kind, step, **values))

    def draw(self, step: int, values: dict[str, Any]) -> None:
        """Figures for TensorBoard, where it is asked for."""
        if self.board is not None:
            self.board.write(step, values)

    def found(self) -> list[Verdict]:
        """What the guards have found since this was asked last."""
        found, self._found = self._found, []
        return found

    def alert(self, level: str, message: str, step: int, kind: str = "alert", **evidence: Any) -> None:
        """Something is wrong: in the events, on the console, and to whoever else wants to know."""
        self.write(kind, step, level=level, message=message, **evidence)
        self.console.say(f"{level}: {message}", style=STYLES[level])
        if self.alerts is not None:
            self.alerts.send(level, message, self.directory.root.name, step, evidence)

    def rewind(self, step: int, number: int) -> None:
        """Go back to a step: later events are moved to `rolled-back-<number>.jsonl`, and the guards forget them."""
        self.guards.replay(self.events.rewind(step, self.directory.root / f"rolled-back-{number}.jsonl"))
        self._found = []

    def close(self) -> None:
        """Close the files."""
        self.events.close()
        if self.board is not None:
            self.board.close()


def _board(directory: StageDirectory, step: int) -> Any:
    from fledge.run.tensorboard import TensorBoard

    return TensorBoard(directory.root / "tensorboard", step)
