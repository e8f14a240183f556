"""What a probe is, and why one is left out."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from fledge.data.formats import FORMATS
from fledge.diagnosis.case import Figure
from fledge.doctor.probes.context import ProbeContext
from fledge.errors import FledgeError

DIALOGUES = frozenset(kind for kind, example_format in FORMATS.items() if example_format.is_dialogue)


def left_out(reason: str) -> FledgeError:
    """The error of a probe that cannot be made here; its sentence is told in the place of the figures."""
    return FledgeError(reason)


def figure(value: Any, note: str = "") -> Figure:
    """A figure of a probe."""
    return Figure(value, "probe", note=note)


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One probe. `figures`: the names of what it measures. `measure`: takes a context and returns some of them; raises
    FledgeError, with the reason, where it cannot. `kinds`: of stage, for which it makes sense; None: all. `needs_run`: whether
    it needs a run of fledge."""

    figures: tuple[str, ...]
    measure: Callable[[ProbeContext], Mapping[str, Figure | None]]
    kinds: frozenset[str] | None = None
    needs_run: bool = False


@dataclass(kw_only=True)
class ProbeReport:
    """The figures of a checkpoint, by name. `left_out`: name of each figure that is not there → the reason. `seconds`: by
    probe, that is by its first figure. `step`: updates that the checkpoint has behind it; None: not known."""

    figures: dict[str, Figure] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    step: int | None = None
