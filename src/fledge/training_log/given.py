"""What a user says about a log."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fledge.errors import FledgeError
from fledge.training_log.names import plain_name
from fledge.training_log.records import TrainingSettings

AXES = {"step": "axis/step", "epoch": "axis/epoch", "micro_step": "axis/micro_step"}
"""Names of counts that a user writes without what is before them."""


class GivenError(FledgeError):
    """What the user says does not fit a log: a column or a stage that is not there. The log itself may well be one."""


def no_stage(stage: str, names: Sequence[str], where: str) -> GivenError:
    """The error for a stage that has no log. `names`: those that have one."""
    listed = ", ".join(name for name in names if name) or "it has none"
    return GivenError(f"there is no stage '{stage}' with a log here", where=where, hint=f"stages: {listed}")


@dataclass(frozen=True)
class Given:
    """What is known beside a log. `columns`: name of a figure in fledge, or `step` and `epoch` → column of the log. `settings`:
    name of a stage, empty for a log without stages → its settings, from a configuration; they come before those of the log,
    and tell what its steps count. `stage`: the one to read; where a log has no stages, the section of its settings."""

    columns: Mapping[str, str] = field(default_factory=dict)
    settings: Callable[[str], TrainingSettings] = lambda stage: TrainingSettings()
    stage: str | None = None

    def chosen(self, present: list[str], path: str) -> dict[str, str]:
        """Name of fledge → column, as it stands in the log. Raises GivenError for a column that is not there."""
        found: dict[str, str] = {}
        by_plain = {plain_name(name): name for name in reversed(present)}
        for name, raw in self.columns.items():
            column = raw if raw in present else by_plain.get(plain_name(raw))
            if column is None:
                hint = f"columns: {', '.join(present[:20]) or 'none with numbers'}"
                raise GivenError(f"there is no column '{raw}' for {name}", where=path, hint=hint)
            found[AXES.get(name, name)] = column
        return found

    def wanted(self) -> dict[str, str]:
        """Plain name of a column → name of fledge."""
        return {plain_name(raw): AXES.get(name, name) for name, raw in self.columns.items()}

    def stages(self, present: Sequence[str], target: Path) -> list[str]:
        """The names of the stages that are read: the chosen one, or all that are `present`; all where they have no names.
        Raises GivenError if the chosen one is not there."""
        if self.stage is None or not any(present):
            return list(present)
        if self.stage not in present:
            raise no_stage(self.stage, present, str(target))
        return [self.stage]
