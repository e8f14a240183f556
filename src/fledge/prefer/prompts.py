"""The prompts of a file or folder of rows of any kind, each once, with every row that is left out counted."""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

from fledge.data.parsing.left_out import Counts
from fledge.data.parsing.prompts import ParsedPrompt, Prompt, parse_prompt
from fledge.data.parsing.rows import Parsed
from fledge.data.reading.records import Record, file_notices, files_of, ignored_files, records_of, row_location
from fledge.errors import FledgeError
from fledge.prefer.answers import prompt_id
from fledge.recipe import Source
from fledge.run import Log
from fledge.tokenizer import Message

Row = TypeVar("Row", ParsedPrompt, Parsed)
SHOWN_FILES = 5  # names of files in one message
EQUAL = "the prompt of an earlier row"
OTHER_REFERENCE = "the prompt of an earlier row, with another reference answer"


@dataclass(frozen=True)
class FoundPrompt:
    """A prompt, its id, and the row that it comes from."""

    id: str
    prompt: Prompt
    where: str


@dataclass
class Told:
    """What is unusual in rows that are read, for the user: `events` of rows, and how many have columns that nothing reads."""

    events: Counts = field(default_factory=Counts)
    unread: Counter[str] = field(default_factory=Counter)

    def add(self, parsed: ParsedPrompt | Parsed, where: str) -> None:
        """Count the events and unread columns of a row."""
        self.unread.update(parsed.unread_columns)
        for event in parsed.events:
            self.events.add(event.reason, where, event.detail)

    def tell(self, log: Log) -> None:
        """Log a line for each event, and one for the columns."""
        for line in self.events.lines():
            log(f"note: {line}")
        if self.unread:
            columns = ", ".join(f"{name} ({count:,} rows)" for name, count in self.unread.most_common())
            log(f"columns that nothing reads: {columns}")


def rows_of(source: Source, path: str, log: Log) -> Iterator[tuple[Record, str]]:
    """The rows of a source with their places. Files of a folder that are not read, and what is unusual in how one is read, are
    told."""
    files = files_of(source, path)
    if ignored := [item.name for item in ignored_files(source)]:
        more = f" and {len(ignored) - SHOWN_FILES:,} more" if len(ignored) > SHOWN_FILES else ""
        log(f"{path}: not read: {', '.join(ignored[:SHOWN_FILES])}{more}")
    for file in files:
        for notice in file_notices(file, source):
            log(f"{file}: {notice}")
    for file, record in records_of(files, source):
        yield record, row_location(file, record.number)


def parsed_row(record: Record, where: str, parse: Callable[[Any], Row], left_out: Counts, told: Told) -> Row | None:
    """What a row is parsed to; None for a row that is left out. Both are counted: the reason, or what is unusual in it."""
    parsed = left_out.parsed(record, where, parse)
    if parsed is not None:
        told.add(parsed, where)
    return parsed


def read_prompts(path: str, system: str | None, limit: int | None, log: Log) -> list[FoundPrompt]:
    """The prompts of a file, folder or glob, in the order of its rows, at most `limit`. Rows that are left out are told with
    their reasons, and so are columns that nothing has read. Raises FledgeError if no row is left."""
    source = Source(path=path)
    found: dict[str, FoundPrompt] = {}
    left_out, told = Counts(), Told()
    for record, where in rows_of(source, path, log):
        if limit is not None and len(found) >= limit:
            left_out.add(f"beyond the first {limit:,} prompts (--limit)", where)
            continue
        parsed = parsed_row(record, where, lambda value: parse_prompt(value, source, system), left_out, told)
        if parsed is None:
            continue
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
    told.tell(log)
    return list(found.values())


def shown_turns(prompt: Prompt) -> list[tuple[str, str]]:
    """The prompt for who compares its answers, as (speaker, text): the tools that it offers, then each turn with its tool
    calls, as NAME(ARGUMENTS)."""
    tools = [] if prompt.tools is None else [("tools", prompt.tools)]
    return [*tools, *((turn.role, _shown(turn)) for turn in prompt.turns)]


def _shown(turn: Message) -> str:
    calls = [f"{call.name}({call.arguments})" for call in turn.tool_calls]
    return "\n".join([turn.full_content, *calls] if turn.full_content else calls)
