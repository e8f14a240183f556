"""The logger of a stage: events, receivers of figures, console lines and alerts; and the guards, which read the events."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from fledge.distributed.context import DistributedContext
from fledge.findings import Finding
from fledge.monitor.guards import Guards
from fledge.monitor.remedies import with_remedy
from fledge.monitor.rules import Event, GuardTrigger
from fledge.recipe.schema import LoggingConfig, StageBase
from fledge.run import Console, EventLog, StageDirectory
from fledge.run.alerts import Alerts
from fledge.run.events import rolled_back_file
from fledge.run.sinks import open_sinks
from fledge.run.sinks.sink import SinkContext
from fledge.run.startup import StartupTimer

STYLES = {"error": "red", "warning": "yellow", "info": None}


class EventObserver(Protocol):
    """Sees every event of a stage, on the main process, as readers of the file will see it."""

    def update(self, event: Event) -> None:
        """Take the next event."""
        ...

    def replay(self, events: Sequence[Event]) -> None:
        """Forget all, and take these events: those that stand when a process goes on, or goes back to an earlier step."""
        ...


@dataclass(frozen=True, kw_only=True)
class LogTargets:
    """The outputs of a stage's logger, and the values that it logs once."""

    directory: StageDirectory
    config: LoggingConfig = field(default_factory=LoggingConfig)
    alerts: Alerts | None = None
    take_startup_report: Callable[[], StartupTimer | None] = lambda: None  # the time before the first step; None once taken
    recipe: dict[str, Any] = field(default_factory=dict)  # the resolved recipe, for receivers of figures
    recipe_changes: dict[str, list[Any]] = field(default_factory=dict)  # key -> [value before, value now] of a resumed run
    observers: tuple[EventObserver, ...] = ()


def show_finding(console: Console, finding: Finding) -> None:
    """Show a finding and its hint on the console."""
    where = f"{finding.where}: " if finding.where else ""
    console.log(f"{finding.severity}: {where}{finding.message}", style=STYLES[finding.severity])
    console.log(f"  → {finding.hint}")


class RunLogger:
    """Writes all events of a stage, and passes them to the guards. A logger opened at a step first replays the earlier events.

    Only the main process holds the events. `check_guards` broadcasts them, so that the guards of all ranks read equal events
    and return equal triggers."""

    def __init__(
        self,
        targets: LogTargets,
        step: int,
        stage: StageBase,
        console: Console,
        *,
        ranks: DistributedContext | None = None,
        rollbacks: int = 0,
    ) -> None:
        """`step`, `rollbacks`: of the state that training goes on from."""
        self.directory, self.alerts, self.stage, self.console = targets.directory, targets.alerts, stage, console
        self.ranks, self.guards = ranks or DistributedContext(), Guards(stage.guards)
        self.events = EventLog(self.directory.events, step, rollbacks, self._warn) if self.ranks.is_main_process else None
        for warning in self.events.warnings if self.events is not None else ():
            self._warn(f"warning: {warning}")
        kept = self.ranks.broadcast_object(self.events and self.events.kept)
        self.guards.replay([event for event in kept if _has_figures(event)])
        self.observers = targets.observers if self.ranks.is_main_process else ()
        self._replay(kept)
        self.world_size_before = _world_size(kept)
        context = SinkContext(folder=self.directory.root, step=step, recipe=targets.recipe)
        self.sinks = open_sinks(targets.config, context, self._warn) if self.ranks.is_main_process else []
        self._unchecked: list[Event] = []

    def _warn(self, text: str) -> None:
        self.console.log(text, style="yellow")

    def flush(self) -> bool:
        """Write the events that the disk refused; returns whether all events are in the file, on the main process."""
        return self.events is None or self.events.flush()

    def write(self, kind: str, step: int, **values: Any) -> None:
        """Write one event."""
        if self.events is not None:
            event = self.events.write(kind, step, **values)
            self._unchecked.append(event)
            for observer in self.observers:
                observer.update(event)

    def write_changes(self, step: int, keys: dict[str, list[Any]]) -> bool:
        """Write the `recipe_changed` event, unless a process that was killed right afterwards has written it; returns whether
        it is written now."""
        if self.events is not None:
            earlier = [event for event in self.events.kept if event["kind"] == "recipe_changed" and event["step"] == step]
            if not any(event.get("keys") == keys for event in earlier):
                self.write("recipe_changed", step, keys=keys)
                return True
        return False

    def log_scalars(self, step: int, values: dict[str, Any]) -> None:
        """Pass figures to TensorBoard and to the other receivers that the recipe asks for."""
        for sink in self.sinks:
            sink.write(step, values)

    def check_guards(self) -> list[GuardTrigger]:
        """Let the guards read the events since the last call; returns their triggers, with remedies. Collective: all ranks must
        call it."""
        events, self._unchecked = self.ranks.broadcast_object(self._unchecked), []
        triggers = [trigger for event in events for trigger in self.guards.update(event)]
        name = self.directory.root.name
        return [replace(trigger, finding=with_remedy(trigger.finding, name, self.stage)) for trigger in triggers]

    def report(self, finding: Finding, step: int, kind: str = "alert", **more: Any) -> None:
        """Report a finding as an event with the fields of the finding and `more`, on the console, and as an alert with equal
        content."""
        self.write(kind, step, **finding.as_dict(), **more)
        self.console.log(f"{finding.severity}: {finding.message}", style=STYLES[finding.severity])
        if self.alerts is not None and self.ranks.is_main_process:
            details = {"check": finding.check, "where": finding.where, "hint": finding.hint, "patch": finding.patch, **more}
            evidence = {**finding.evidence, **{name: value for name, value in details.items() if value not in ("", None)}}
            self.alerts.send(finding.severity, finding.message, self.directory.root.name, step, evidence)

    def rewind(self, step: int, rollback: int) -> None:
        """Go back to `step`: move later events to `events.rolled_back.<rollback>.jsonl`, and reset the guards to `step`."""
        rolled_back = rolled_back_file(self.directory.root, rollback)
        kept = self.ranks.broadcast_object(self.events and self.events.rewind(step, rolled_back))
        self.guards.replay(kept)
        self._replay(kept)
        self._unchecked = []

    def _replay(self, kept: Sequence[Event]) -> None:
        for observer in self.observers:
            observer.replay(kept)

    def close(self) -> None:
        """Close the files."""
        if self.events is not None:
            self.events.close()
        for sink in self.sinks:
            sink.close()


FIGURES = {  # that the guards and this logger read without asking whether they are there
    "step": ("train/loss", "train/grad_norm"),
    "prompt_tests": ("prompt_tests/pass_rate", "prompt_tests/passed", "prompt_tests/cases"),
    "world_size": ("world_size",),
}


def _has_figures(event: Event) -> bool:
    """Whether an event read from a file has the figures of its kind, as numbers or null."""
    return all(name in event and isinstance(event[name], int | float | None) for name in FIGURES.get(event["kind"], ()))


def _world_size(events: list[Event]) -> int | None:
    """The world size at the last event; None without events."""
    sizes = [event["world_size"] for event in events if event["kind"] == "world_size" and _has_figures(event)]
    return sizes[-1] if sizes else 1 if events else None
