"""Columns of a row by role: the column that the recipe names, else a column with a usual name."""

from collections.abc import Mapping, Sequence
from typing import Any

from fledge.data.row_events import DETAIL_LENGTH, RowEvent
from fledge.recipe.schema import Source


class RowError(ValueError):
    """A row that cannot be used: a short reason, which is counted, and a detail about this row."""

    def __init__(self, reason: str, detail: str = "") -> None:
        self.reason = reason
        self.detail = detail[:DETAIL_LENGTH].encode("utf-8", "replace").decode("utf-8")
        super().__init__(reason)

    @property
    def event(self) -> RowEvent:
        """The event that the row is dropped for this reason."""
        return RowEvent("dropped", self.reason, self.detail)


def present(row: Mapping[str, Any], source: Source, role: str, usual: Sequence[str]) -> Any:
    """The value in a role's column: the one that the recipe names ('' means none), else the first usual column with a value.

    None if the column is missing or null.
    """
    configured = source.columns.get(role)  # type: ignore[call-overload]
    for name in usual if configured is None else (configured,) if isinstance(configured, str) else configured:
        value = row.get(name) if name else None
        if value is not None:
            return value
    return None


def named(row: Mapping[str, Any], source: Source, role: str) -> list[str] | None:
    """The column names that the recipe sets for a role; None if it sets none. Raises RowError if one is missing in the row."""
    configured = source.columns.get(role)  # type: ignore[call-overload]
    if configured is None:
        return None
    names = [name for name in ([configured] if isinstance(configured, str) else configured) if name]
    for name in names:
        if name not in row:
            raise RowError("column missing", f"'{name}' is named in the recipe; {columns_of(row)}")
    return names


def value_of(row: Mapping[str, Any], source: Source, role: str, usual: Sequence[str]) -> Any:
    """Like `present`, but RowError if a column that the recipe names is missing."""
    named(row, source, role)
    return present(row, source, role, usual)


def text_of(row: Mapping[str, Any], source: Source, role: str, usual: Sequence[str]) -> str | None:
    """The text of a role's column(s), joined by line breaks; None if there is none."""
    names = named(row, source, role)
    if names is None:
        names = [name for name in usual if row.get(name) is not None][:1]
    texts = [_string(row[name], name) for name in names if row[name] is not None]
    return "\n".join(text for text in texts if text) if texts else None


def _string(value: Any, column: str) -> str:
    if isinstance(value, list) and all(isinstance(item, str) for item in value):
        return "\n".join(value)
    if not isinstance(value, str):
        raise RowError("wrong type", f"'{column}' is {type(value).__name__}, not text")
    return value


def columns_of(row: Mapping[str, Any]) -> str:
    """The columns of a row as text, for messages about a missing column."""
    return f"the row has {', '.join(map(str, row))}"
