"""The first rows of a stage's training files, read and encoded again, beside what was built of them."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from fledge.data import StageDataset
from fledge.data.build.plan import BuildPlan, Shard
from fledge.data.build.read_phase import read_records
from fledge.data.cleaning.cleaning import CleaningSteps, clean_item
from fledge.data.encoding.examples import Encoded
from fledge.data.parsing.columns import RowError
from fledge.data.parsing.items import Item
from fledge.data.parsing.rows import parse_row
from fledge.diagnosis.case import Figure
from fledge.tokenizer import Tokenizer

MOST_SHARDS = 4
MOST_ROWS = 96  # that are read again, of all shards together
MOVED = ("shortened", "split", "truncated", "changed")  # states of rows whose examples are not their whole text


@dataclass(frozen=True)
class RowAgain:
    """A row that was read again: its item, its encoding by this code, and the sequences that were built of it, tokens and
    weights each; `is_whole`: the examples hold the row as it is, neither cut nor changed."""

    item: Item
    encoded: Encoded
    built: tuple[tuple[np.ndarray, np.ndarray], ...]
    is_whole: bool

    @property
    def differs(self) -> bool:
        """Whether what was built is not what this code makes of the row."""
        fresh = [sequence for example in self.encoded.examples for sequence in example]
        if len(fresh) != len(self.built):
            return True
        return any(
            not np.array_equal(tokens, built_tokens) or not np.array_equal(weights, built_weights)
            for (tokens, weights), (built_tokens, built_weights) in zip(fresh, self.built, strict=True)
        )


def rows_again(data: StageDataset, tokenizer: Tokenizer) -> tuple[list[RowAgain], str]:
    """The first rows of the training files that were trained on, and a sentence about what could not be read again; empty if
    nothing. Files that have changed since, and data of a hub, are not read."""
    plan, examples = data.plan, data.train.examples
    if examples.shard is None or examples.row is None or examples.labels is not None:
        return [], "the rows of this format depend on their neighbours"
    stamps = {path: (size, time) for path, size, time in plan.stamps}
    shards = plan.shards_of("train")[:MOST_SHARDS]
    readable = [shard for shard in shards if _is_unchanged(shard, stamps)]
    found = [row for shard in readable for row in _of_shard(data, shard, tokenizer, MOST_ROWS // max(1, len(readable)))]
    left = len(shards) - len(readable)
    return found, f"{left} of {len(shards)} files are gone, changed since, or of a hub" if left else ""


def _is_unchanged(shard: Shard, stamps: dict[str, tuple[int, int]]) -> bool:
    for span in shard.spans:
        try:
            state = Path(span.file).stat()
        except OSError:
            return False
        if stamps.get(span.file) != (state.st_size, state.st_mtime_ns):
            return False
    return bool(shard.spans)


def _of_shard(data: StageDataset, shard: Shard, tokenizer: Tokenizer, most: int) -> Iterator[RowAgain]:
    plan, examples = data.plan, data.train.examples
    assert examples.shard is not None and examples.row is not None
    own = np.flatnonzero(examples.shard == shard.number)
    numbers = {int(row): own[examples.row[own] == row] for row in np.unique(examples.row[own])[:most]}
    if not numbers:
        return
    encoding = tokenizer.parsing_special_tokens() if plan.parses_special_tokens(shard) else tokenizer
    config = plan.format.encoding_config(plan.data, plan.seed)
    items = {row: item for row, item in _items(plan, shard, max(numbers)) if row in numbers}
    for (row, item), encoded in zip(items.items(), plan.format.encode(items.values(), encoding, config), strict=True):
        built = tuple(examples.sequence(int(number)) for number in examples.sequences_of(numbers[row]))
        is_whole = len(encoded.examples) == 1 and not any(event.state in MOVED for event in encoded.events)
        yield RowAgain(item, encoded, built, is_whole)


def _items(plan: BuildPlan, shard: Shard, last: int) -> Iterator[tuple[int, Item]]:
    """(row, item) of the rows of a shard up to row `last`, parsed and cleaned."""
    source, steps = plan.source_of(shard), CleaningSteps.of(plan.data.clean, plan.format.strips_html)
    for position, record in islice(read_records(source, shard), last + 1):
        if not record.broken:
            with suppress(RowError):  # rows that the build has dropped, too
                item = parse_row(record.value, source.source, plan.format.parse, plan.data.system)
                yield position.row, clean_item(item, steps)[0]


def built_figures(rows: list[RowAgain], untold: str) -> dict[str, Figure]:
    """`data/built_differs`, of rows that were read again."""
    if not rows:
        return {}
    note = f"{len(rows)} rows read and encoded again" + (f"; {untold}" if untold else "")
    return {"data/built_differs": Figure(float(np.mean([row.differs for row in rows])), "data", note=note)}
