"""Statistics over rows before training: empty columns, schemas, openings of answers, identity, placeholders."""

import re
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

import xxhash
from pydantic import NonNegativeInt
from typing_extensions import TypedDict

from fledge.data.parsing.columns import Row
from fledge.data.parsing.detection import schema_name
from fledge.data.parsing.items import Dialogue, Item
from fledge.data.row_events import RowEvent

Counts = dict[str, NonNegativeInt]
MAX_OPENINGS = 2000  # the most frequent openings stored per shard
MAX_EQUAL_ANSWERS = 5  # the most frequent answers stored per shard
MAX_UNREAD = 50  # columns whose names are stored per shard
OPENING_WORDS, OPENING_CHARACTERS = 4, 12
_WORDS = re.compile(r"\S+")
_IDENTITY = re.compile(
    r"\bI(?:'| a)m (?:an? |the )?[^.!?\n]{0,60}?(?:AI|assistant|language model|chatbot)\b"
    r"|\b(?:my name is|I am called|I(?: wa|')s (?:created|developed|trained|built) by)\b"
    r"|我(?:是|叫)[^。!?！？\n]{0,30}?(?:助手|人工智能|AI|语言模型|机器人)"
    r"|(?:我的名字是|我叫|(?:我?是?由)[^。\n]{1,30}?(?:开发|训练|创造|研发))",
    re.IGNORECASE,
)
_PLACEHOLDER = re.compile(r"(?<![A-Za-z0-9_{}\\^$%])\{\{ ?[A-Za-z][A-Za-z0-9_]+ ?\}\}(?!\})|<(?:NAME|AUTHOR)>")


def opening(answer: str) -> str:
    """The opening of an answer: a few words, or a few characters in scripts without spaces."""
    words = _WORDS.findall(answer[:200])[:OPENING_WORDS]
    return " ".join(words)[: OPENING_CHARACTERS if answer[:1] > "\u2e7f" else 40]


def speaks_of_identity(answer: str) -> bool:
    """Whether an answer says who the assistant is."""
    return _IDENTITY.search(answer[:300]) is not None


def placeholders(item: Item) -> list[str]:
    """Template variables that were not filled in, such as {{name}} or <AUTHOR>: each once, in order."""
    candidates = (text for text in item.texts() if any(mark in text for mark in ("{{", "<NAME>", "<AUTHOR>")))
    return list(dict.fromkeys(variable for text in candidates for variable in _PLACEHOLDER.findall(text)))


class ShardStatistics(TypedDict):
    """The counts over the rows of one shard, as they are stored (`RowStatistics.as_dict`)."""

    columns: Counts
    nulls: Counts
    empty: Counts
    unread: Counts
    schemas: Counts
    openings: Counts
    distinct_openings: NonNegativeInt
    equal: Counts
    answers: NonNegativeInt
    identity: NonNegativeInt


class RowStatistics:
    """Counts over the rows of one shard."""

    def __init__(self) -> None:
        self.columns: Counter[str] = Counter()
        self.nulls: Counter[str] = Counter()
        self.empty: Counter[str] = Counter()
        self.unread: Counter[str] = Counter()  # columns with a value that parsing did not use, in the rows that it could parse
        self.schemas: Counter[str] = Counter()
        self.openings: Counter[str] = Counter()
        self.equal: Counter[int] = Counter()  # number of answers by hash
        self.answers, self.identity = 0, 0

    def add_row(self, row: Row) -> None:
        """Count one row as it was read."""
        for column, content in row.items() if not row.whole else ():
            self.columns[column] += 1
            if content is None:
                self.nulls[column] += 1
            elif content == "" or content == []:
                self.empty[column] += 1
        self.schemas[schema_name(row, row.source)] += 1

    def add_unread(self, columns: Iterable[str]) -> None:
        """Count the columns of one parsed row that nothing has read."""
        self.unread.update(columns)

    def add_item(self, item: Item) -> Iterator[RowEvent]:
        """Count one parsed item; yields an event for anything unusual in it."""
        if isinstance(item, Dialogue):
            answer = item.final_answer
            self.answers += 1
            self.openings[opening(answer)] += 1
            self.equal[xxhash.xxh3_64_intdigest(answer.encode())] += 1
            self.identity += speaks_of_identity(answer)
        variables = placeholders(item)
        if variables:
            yield RowEvent("noticed", "unfilled placeholder", ", ".join(variables))

    def as_dict(self) -> dict[str, Any]:
        """The counts for the shard's result."""
        return {
            "columns": dict(sorted(self.columns.items())),
            "nulls": dict(sorted(self.nulls.items())),
            "empty": dict(sorted(self.empty.items())),
            "unread": dict(sorted(self.unread.most_common(MAX_UNREAD))),
            "schemas": dict(sorted(self.schemas.items())),
            "openings": dict(sorted(self.openings.most_common(MAX_OPENINGS))),
            "distinct_openings": len(self.openings),
            "equal": {f"{digest:016x}": count for digest, count in sorted(self.equal.most_common(MAX_EQUAL_ANSWERS))},
            "answers": self.answers,
            "identity": self.identity,
        }
