"""Receivers of the figures of a run: a table of them, and how the ones that a recipe asks for are opened."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

from fledge.errors import missing_extra
from fledge.run.console import Log
from fledge.run.sinks.sink import GuardedSink, Sink, SinkContext


@dataclass(frozen=True)
class SinkKind:
    """A kind of receiver: its name for people, the package that it needs, and the extra that installs it. `settings` reads
    from the section `logging` of a recipe what `open` takes; None if the recipe does not ask for this receiver."""

    label: str
    package: str
    extra: str
    settings: Callable[[Any], dict[str, Any] | None]
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


def _tensorboard_settings(logging: Any) -> dict[str, Any] | None:
    return {} if logging.tensorboard else None


def _wandb_settings(logging: Any) -> dict[str, Any] | None:
    wandb = logging.wandb
    return wandb and {"project": wandb.project, "entity": wandb.entity, "mode": wandb.mode, "tags": wandb.tags}


def _trackio_settings(logging: Any) -> dict[str, Any] | None:
    trackio = logging.trackio
    return trackio and {"project": trackio.project, "space": trackio.space}


SINKS: dict[str, SinkKind] = {
    "tensorboard": SinkKind("TensorBoard", "tensorboard", "tensorboard", _tensorboard_settings, _tensorboard),
    "wandb": SinkKind("W&B", "wandb", "wandb", _wandb_settings, _wandb),
    "trackio": SinkKind("trackio", "trackio", "trackio", _trackio_settings, _trackio),
}
"""The receivers, by the key of the section `logging` that asks for each."""


def check_sinks(logging: Any) -> None:
    """FledgeError if a package of a receiver that the section `logging` of a recipe asks for is missing."""
    for name, kind in SINKS.items():
        if kind.settings(logging) is not None and find_spec(kind.package) is None:
            raise missing_extra(kind.package, kind.extra, f"logging.{name}")


def open_sinks(logging: Any, context: SinkContext, log: Log) -> list[GuardedSink]:
    """Open the receivers that the section `logging` of a recipe asks for. One that cannot be opened is told to `log`."""
    return [
        GuardedSink(kind.label, lambda kind=kind, settings=settings: kind.open(context, **settings), log)
        for kind in SINKS.values()
        if (settings := kind.settings(logging)) is not None
    ]
