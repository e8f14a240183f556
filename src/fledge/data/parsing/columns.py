"""The columns of a row by role: the column that the recipe names, else a column with a usual name."""

from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Self

from fledge.data.parsing.turn_lists import is_turns
from fledge.data.reading.formats import ColumnarRow
from fledge.data.row_events import DETAIL_LENGTH, RowEvent
from fledge.recipe.schema import Column, Source

INSTRUCTION, INPUT = "instruction", "input"  # alpaca's
USUAL: Mapping[str, tuple[str, ...]] = {  # role -> usual names of its column, the most typical first
    "text": ("text", "content", "正文", "内容", "文本", "全文", "文章"),
    "prompt": ("prompt", INSTRUCTION, "question", "query", "问题", "提问", "指令", "提示", "问", "题目", "q", INPUT, "输入",
               "user", "human", "用户"),
    "query": (INPUT, "输入"),
    "response": ("response", "output", "answer", "completion", "回答", "答案", "回复", "输出", "答", "a", "assistant", "bot",
                 "助手"),
    "messages": ("messages", "conversations", "conversation", "对话"),
    "system": ("system", "系统", "系统提示"),
    "history": ("history", "历史"),
    "tools": ("tools", "工具"),
    "label": ("label", "kto_tag"),
    "chosen": ("chosen",),
    "rejected": ("rejected",),
    "ranked": (),
    "margin": ("margin",),
    "weight": ("weight", "loss_weight", "loss_scale", "loss", "loss_mask", "step_loss_mask", "train", "trainable", "training"),
}  # fmt: skip
LISTED_COLUMNS = 12  # in a message about a row
MAX_NAME = 40
PLAIN = ("id", "idx", "index", "source", "url", "category", "lang", "language", "date", "model", "split", "type")
NOT_READ = "is not read"  # in the reason of each event about a key or column that may say what is trained
UNKNOWN = object()
EMPTY: tuple[Any, ...] = ("", [], {})
Layout = Mapping[str, tuple[str, ...]]


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


def _folded(name: Any) -> str:
    return name.strip().casefold() if isinstance(name, str) else ""


@lru_cache(maxsize=512)
def _layout(columns: tuple[str, ...]) -> Layout:
    """For rows with these columns: role -> columns with one of its usual names, in the order of those names."""
    folded: dict[str, list[str]] = {}
    for column in columns:
        folded.setdefault(_folded(column), []).append(column)
    return {
        role: tuple(column for name in names for column in sorted(folded.get(name, ()), key=lambda column: column != name))
        for role, names in USUAL.items()
    }


class Row(dict[str, Any]):
    """The columns of one row. `events` are what is unusual in it; `read` are the columns whose values were used.

    `whole`: what the row is if it has no columns, such as "a text"; else empty. `columnar`: the row comes from a table whose
    objects all have the same keys."""

    __slots__ = ("_layout", "_names", "columnar", "conversation", "conversation_column", "events", "read", "source", "whole")

    def __init__(self, values: Mapping[str, Any], source: Source, whole: str = "") -> None:
        super().__init__(values)
        self.source, self.whole = source, whole
        self.columnar = isinstance(values, ColumnarRow)
        self.events: list[RowEvent] = []
        self.read: set[str] = set()
        self.conversation: Any = UNKNOWN  # the list of turns, or None if there is none, once it has been looked for
        self.conversation_column = ""
        self._layout = _layout(tuple(values))
        self._names: Mapping[str, str | list[str]] = source.columns  # type: ignore[assignment]

    @classmethod
    def of(cls, value: Any, source: Source) -> Self:
        """The row that a value of a file is: an object of columns, a text, a list of texts, or a list of turns. A row stays as
        it is. RowError for any other value."""
        if isinstance(value, cls):
            return value
        if isinstance(value, dict):
            return cls(value, source)
        if isinstance(value, str):
            return cls({"text": value}, source, "a text")
        if isinstance(value, list) and value and all(isinstance(text, str) for text in value):
            return cls({"text": value, "messages": value}, source, "a list of texts")
        if is_turns(value, source):
            return cls({"messages": value}, source, "a list of turns")
        raise RowError("not an object", type(value).__name__)

    def add_columns(self, values: Mapping[str, Any]) -> None:
        """Add columns that were found inside another one."""
        self.update(values)
        self._layout = _layout(tuple(self))

    def event(self, reason: str, detail: str = "", changed: bool = False) -> None:
        """Add an event about this row, once for each reason. `changed`: the row was changed, not only noticed."""
        if not any(event.reason == reason for event in self.events):
            self.events.append(RowEvent("changed" if changed else "noticed", reason, detail[:DETAIL_LENGTH]))

    def usual(self, role: Column) -> tuple[str, ...]:
        """The columns of this row with a usual name of a role."""
        return self._layout[role]

    def is_named(self, role: Column) -> bool:
        """Whether the recipe names a column for a role, or says that there is none."""
        return role in self._names

    def find(self, role: Column) -> tuple[str, Any]:
        """The column of a role and its value: of the one that the recipe names ('' means none), else of the first usual one
        with a value. ("", None) if the column is missing or null. The column does not count as read."""
        names = self._layout[role]
        if role in self._names:
            configured = self._names[role]
            names = (configured,) if isinstance(configured, str) else configured
        for name in names:
            value = dict.get(self, name) if name else None
            if value is not None:
                return name, value
        return "", None

    def present(self, role: Column) -> Any:
        """The value in a role's column, as `find` finds it; None if there is none."""
        name, value = self.find(role)
        if name:
            self.read.add(name)
        return value

    def has(self, role: Column) -> bool:
        """Whether a role has a column with a value."""
        return self.find(role)[1] is not None

    def named(self, role: Column) -> list[str] | None:
        """The column names that the recipe sets for a role; None if it sets none. Raises RowError if one is missing."""
        if role not in self._names:
            return None
        configured = self._names[role]
        names = [name for name in ([configured] if isinstance(configured, str) else configured) if name]
        for name in names:
            if name not in self:
                raise RowError("column missing", f"'{name}' is named in the recipe; {self.description()}")
        return names

    def value(self, role: Column) -> Any:
        """Like `present`, but RowError if a column that the recipe names is missing."""
        if role in self._names:
            self.named(role)
        return self.present(role)

    def text(self, role: Column, *, joined: bool = True) -> str | None:
        """The text of a role's column(s), joined by line breaks; None if there is none.

        A list of texts is joined as well, with an event. `joined=False`: such a list is a RowError, unless the recipe names
        its column."""
        names = self.named(role)
        by_recipe = names is not None
        if names is None:
            value = self.present(role)
            if value is None or isinstance(value, str):
                return value
            names = [name for name in self._layout[role] if dict.get(self, name) is not None][:1]
        texts = []
        for name in names:
            value = dict.get(self, name)
            if value is not None:
                self.read.add(name)
                texts.append(self._string(value, name, role, by_recipe, joined))
        return "\n".join(text for text in texts if text) if texts else None

    def _string(self, value: Any, column: str, role: Column, by_recipe: bool, joined: bool) -> str:
        if isinstance(value, str):
            return value
        if not isinstance(value, list) or not all(isinstance(item, str) for item in value):
            raise RowError("wrong type", f"'{column}' is {type(value).__name__}, not text")
        if len(value) > 1 and not by_recipe:
            if not joined:
                way = f"write columns: {{{role}: {column}}} to join them by line breaks"
                turns = f"columns: {{messages: {column}}} and alternating_turns: true if they are turns"
                raise RowError("list of texts", f"'{column}' holds {len(value)} texts; {way}, or {turns}")
            self.event("a list of texts is joined by line breaks", f"'{column}' holds {len(value)} texts")
        return "\n".join(value)

    def unread(self) -> list[str]:
        """The columns with a value that nothing has read."""
        if self.whole:
            return []
        return [name for name, value in self.items() if name not in self.read and value is not None and value not in EMPTY]

    def description(self) -> str:
        """The columns of the row as text, for messages about a missing column."""
        if self.whole:
            return f"the row is {self.whole}"
        names = [str(name)[:MAX_NAME] for name in self]
        more = f" and {len(names) - LISTED_COLUMNS} more" if len(names) > LISTED_COLUMNS else ""
        return f"the row has {', '.join(names[:LISTED_COLUMNS])}{more}"

    def naming_hint(self, *roles: Column) -> str:
        """The line of a recipe that would name this row's columns for these roles, as the end of a sentence."""
        names = [name for name, value in self.items() if isinstance(value, str) and _folded(name) not in PLAIN and name.strip()]
        if self.whole or len(names) < len(roles):
            return ""
        columns = ", ".join(f"{role}: {_quoted(name)}" for role, name in zip(roles, names, strict=False))
        path = f"path: {_quoted(self.source.path)}, " if self.source.path else ""
        return f"; name them, such as train: {{{path}columns: {{{columns}}}}}"


def _quoted(name: str) -> str:
    """A name as YAML reads it inside braces."""
    plain = name.strip() == name and name and not set(name) & set("{}[],:#&*!|>'\"%@`?") and not name.startswith("-")
    return name if plain else '"' + name.replace("\\", "\\\\").replace('"', '\\"') + '"'
