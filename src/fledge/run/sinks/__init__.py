"""Receivers of the figures of a run: a table of them, and how the ones that a recipe asks for are opened."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from fledge.errors import missing_extra
from fledge.run.console import Log
from fledge.run.sinks.sink import GuardedSink, Sink, SinkContext


@dataclass(frozen=True)
class SinkKind:
    """A kind of receiver: its name for people, the package that it needs, the extra that installs it, and what opens it."""

    label: str
    package: str
    extra: str
    open: Callable[..., Sink]


def _tensorboard(context: SinkContext, **settings: Any) -> Sink:
    from fledge.run.sinks.tensorboard import TensorBoard

    return TensorBoard(context, **settings)


def _wandb(context: SinkContext, **settings: Any) -> Sink:
    from fledge.run.sinks.wandb import Wandb

    return Wandb(context, **settings)


def _trackio(context: SinkContext, **settings: Any) -> Sink:
    from fledge.run.sinks.trackio import Trackio

    return Trackio(context, **settings)


SINKS: dict[str, SinkKind] = {
    "tensorboard": SinkKind("TensorBoard", "tensorboard", "tensorboard", _tensorboard),
    "wandb": SinkKind("W&B", "wandb", "wandb", _wandb),
    "trackio": SinkKind("trackio", "trackio", "trackio", _trackio),
}
"""The receivers, by the key of the section `logging` that asks for each."""


def check_sinks(asked: Mapping[str, Any]) -> None:
    """FledgeError if a package of a receiver that the recipe asks for is missing. `asked`: the section `logging`."""
    for name, kind in SINKS.items():
        if _is_asked(asked.get(name)) and find_spec(kind.package) is None:
            raise missing_extra(kind.package, kind.extra, f"logging.{name}")


def open_sinks(asked: Mapping[str, Any], context: SinkContext, log: Log) -> list[GuardedSink]:
    """Open the receivers that the section `logging` (as JSON values) asks for. One that cannot be opened is told to `log`."""
    return [
        GuardedSink(kind.label, lambda kind=kind, name=name: kind.open(context, **_settings(asked[name])), log)
        for name, kind in SINKS.items()
        if _is_asked(asked.get(name))
    ]


def _is_asked(value: Any) -> bool:
    """Whether a key asks for its receiver: it is true, or a section."""
    return value is not None and value is not False


def _settings(value: Any) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else {}
