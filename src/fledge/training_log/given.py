"""What a user says about a log."""

from collections.abc import Mapping
from dataclasses import dataclass, field

from fledge.errors import FledgeError
from fledge.training_log.names import plain_name
from fledge.training_log.records import TrainingSettings

AXES = {"step": "axis/step", "epoch": "axis/epoch", "micro_step": "axis/micro_step"}
"""Names of counts that a user writes without what is before them."""


@dataclass(frozen=True)
class Given:
    """What is known beside a log. `columns`: name of a figure in fledge, or `step` and `epoch` → column of the log. `settings`:
    from a configuration; they come before those of the log, and tell what its steps count."""

    columns: Mapping[str, str] = field(default_factory=dict)
    settings: TrainingSettings = field(default_factory=TrainingSettings)

    def chosen(self, present: list[str], path: str) -> dict[str, str]:
        """Name of fledge → column, as it stands in the log. Raises FledgeError for a column that is not there."""
        found: dict[str, str] = {}
        by_plain = {plain_name(name): name for name in reversed(present)}
        for name, raw in self.columns.items():
            column = raw if raw in present else by_plain.get(plain_name(raw))
            if column is None:
                hint = f"columns: {', '.join(present[:20]) or 'none with numbers'}"
                raise FledgeError(f"there is no column '{raw}' for {name}", where=path, hint=hint)
            found[AXES.get(name, name)] = column
        return found

    def wanted(self) -> dict[str, str]:
        """Plain name of a column → name of fledge."""
        return {plain_name(raw): AXES.get(name, name) for name, raw in self.columns.items()}
