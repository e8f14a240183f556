"""A case: all that is known about a run, from which causes are told."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from fledge.training_log import TrainingLog, TrainingSettings

Depth = Literal["curves", "plan", "data", "probe"]
"""Where a figure comes from. curves: the log alone; plan: the log beside what it was told to do; data: the built training data
and the template; probe: a pass of the model of a checkpoint."""


@dataclass(frozen=True)
class Figure:
    """One figure of evidence. `value`: a number, a truth, or a short list or mapping of them. `depth`: where it comes from.
    `steps`: the steps that it was read from, where it has some. `note`: a few words on how it was measured."""

    value: Any
    depth: Depth
    steps: tuple[float, float] | None = None
    note: str = ""


@dataclass(kw_only=True)
class Case:
    """The log of a stage, its settings and the figures measured so far, by name (`data/…`, `probe/…`, and others of curves).

    `probed_step`: the update after which the weights were saved that the probes have looked at; None: those of the end.
    What a check asks for and nobody has measured is remembered in `wanted`, so that the doctor can say what is missing.
    """

    log: TrainingLog
    figures: dict[str, Figure] = field(default_factory=dict)
    wanted: set[str] = field(default_factory=set)
    probed_step: float | None = None

    @property
    def settings(self) -> TrainingSettings:
        """What the run was told to do."""
        return self.log.settings

    @property
    def kind(self) -> str | None:
        """The kind of stage; None: not known."""
        return self.log.settings.kind

    def value(self, name: str) -> Any:
        """The value of a figure; None if it was not measured, which is then remembered as wanted."""
        figure = self.figures.get(name)
        if figure is None:
            self.wanted.add(name)
            return None
        return figure.value

    def add(self, depth: Depth, figures: Mapping[str, Any]) -> None:
        """Add figures of one depth by name; a value that is no Figure yet becomes one, and None is left out."""
        for name, value in figures.items():
            if value is not None:
                self.figures[name] = value if isinstance(value, Figure) else Figure(value, depth)
