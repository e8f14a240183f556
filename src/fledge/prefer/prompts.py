"""The prompts of a file or folder of rows of any kind, each once, with every row that is left out counted."""

from collections import Counter
from dataclasses import dataclass, field

from fledge.data.build.plan import SHARD_BYTES
from fledge.data.parsing.columns import RowError
from fledge.data.parsing.prompts import Prompt, parse_prompt
from fledge.data.reading.records import files_of, read, row_location, spans_of
from fledge.errors import FledgeError
from fledge.prefer.answers import prompt_id
from fledge.recipe import Source
from fledge.run import Log

EQUAL = "the prompt of an earlier row"
OTHER_REFERENCE = "the prompt of an earlier row, with another reference answer"


@dataclass(frozen=True)
class FoundPrompt:
    """A prompt, its id, and the row that it comes from."""

    id: str
    prompt: Prompt
    where: str


@dataclass
class Counts:
    """How often each thing happened, with the place and detail of the first time."""

    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, str] = field(default_factory=dict)

    def add(self, reason: str, where: str, detail: str = "") -> None:
        """Count one."""
        self.counts[reason] += 1
        self.first.setdefault(reason, f"{where}: {detail}" if detail else where)

    def lines(self) -> list[str]:
        """A line for each reason, the most frequent first."""
        return [f"{count:,} × {reason}, first at {self.first[reason]}" for reason, count in self.counts.most_common()]


def read_prompts(path: str, system: str | None, limit: int | None, log: Log) -> list[FoundPrompt]:
    """The prompts of a file, folder or glob, in the order of its rows, at most `limit`. Rows that are left out are told with
    their reasons, and so are columns that nothing has read. Raises FledgeError if no row is left."""
    source = Source(path=path)
    found: dict[str, FoundPrompt] = {}
    left_out, events, unread = Counts(), Counts(), Counter[str]()
    for span in spans_of(files_of(source, path), source, SHARD_BYTES):
        for record in read(span, source):
            where = row_location(span.file, record.number)
            if limit is not None and len(found) >= limit:
                left_out.add(f"beyond the first {limit:,} prompts (--limit)", where)
                continue
            try:
                if record.broken:
                    raise RowError(record.broken, record.detail)
                parsed = parse_prompt(record.value, source, system)
            except RowError as error:
                left_out.add(error.reason, where, error.detail)
                continue
            unread.update(parsed.unread_columns)
            for event in parsed.events:
                events.add(event.reason, where, event.detail)
            one = FoundPrompt(prompt_id(parsed.prompt), parsed.prompt, where)
            first = found.setdefault(one.id, one)
            if first is not one:
                left_out.add(EQUAL if first.prompt.reference == one.prompt.reference else OTHER_REFERENCE, where)
    if not found:
        hint = "a row is a conversation, a question, a pair of answers or a text, see docs/data.md"
        raise FledgeError(
            f"there is no prompt in it: {'; '.join(left_out.lines()) or 'it holds no rows'}", where=path, hint=hint
        )
    for problem in left_out.lines():
        log(f"not asked: {problem}")
    for line in events.lines():
        log(f"note: {line}")
    if unread:
        log("columns that nothing reads: " + ", ".join(f"{name} ({count:,} rows)" for name, count in unread.most_common()))
    return list(found.values())
