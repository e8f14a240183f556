"""The input of the checks: the build of a stage with its statistics, and one scan over its tokens."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from fledge.data.analysis.source_counts import TrainingSequences
from fledge.data.analysis.statistics import SourceStatistics, StageStatistics
from fledge.data.build.load import StageDataset
from fledge.data.build.row_locator import RowLocator
from fledge.data.report import SourceReport
from fledge.data.storage import ConcatenatedArrays
from fledge.findings import Finding, Severity
from fledge.tokenizer import Tokenizer

BLOCK = 2**22  # tokens scanned together


@dataclass(frozen=True)
class TokenScan:
    """The result of scanning one file of training tokens, which belongs to one source.

    `source`: its number. `largest`: the largest token id. `unknown` of the `size` tokens are the tokenizer's unknown token;
    `first_unknown` is the number of the first sequence with one, -1 if there is none."""

    source: int
    largest: int
    unknown: int
    size: int
    first_unknown: int


@dataclass(frozen=True)
class TrainingSource:
    """A source that is trained on: its statistics, the report of its rows, and its sequences."""

    statistics: SourceStatistics
    report: SourceReport
    sequences: TrainingSequences

    @property
    def name(self) -> str:
        """The name of the source."""
        return self.statistics.name


class CheckContext:
    """The build of a stage as the checks read it.

    `vocab_size`: size of the model's embedding. `max_drop_fraction`: largest fraction of a source's rows that may be
    dropped. `max_positions`: longest sequence that the model can process. None stands for no limit."""

    def __init__(
        self,
        dataset: StageDataset,
        statistics: StageStatistics,
        tokenizer: Tokenizer,
        *,
        vocab_size: int | None = None,
        max_drop_fraction: float | None = None,
        max_positions: int | None = None,
    ) -> None:
        self.dataset, self.statistics, self.tokenizer = dataset, statistics, tokenizer
        self.vocab_size, self.max_drop_fraction, self.max_positions = vocab_size, max_drop_fraction, max_positions
        self.build, self.plan, self.format = dataset.build, dataset.plan, dataset.plan.format
        self.reports = dataset.report.sources
        self._locator = RowLocator(dataset)

    @cached_property
    def training_sources(self) -> list[TrainingSource]:
        """The training sources, in the order of the recipe."""
        return [
            TrainingSource(statistics, self.reports[number], TrainingSequences.of(self.dataset, number))
            for number, statistics in enumerate(self.statistics.sources)
            if statistics.split == "train"
        ]

    def first_location(self, source: TrainingSource) -> str:
        """FILE:LINE of the row of a source's first training example; empty if it has none."""
        examples = source.sequences.examples
        return self._locator.example(int(examples[0])) if len(examples) else ""

    def example_location(self, example: int) -> str:
        """FILE:LINE of the row of a training example."""
        return self._locator.example(example)

    def patch(self, key: str, value: Any) -> dict[str, Any]:
        """A recipe patch of one key of the stage."""
        return {f"stages.{self.statistics.stage}.{key}": value}

    def longer_rows(self) -> dict[str, Any] | None:
        """A recipe patch that doubles data.max_seq_len, at most to `max_positions`; None if it is that long already."""
        length = self.statistics.context
        longer = 2 * length if self.max_positions is None else min(2 * length, self.max_positions)
        return self.patch("data.max_seq_len", longer) if longer > length else None

    @cached_property
    def scans(self) -> list[TokenScan]:
        """The scan of each file of training tokens."""
        tokens = self.dataset.train.examples.tokens
        assert isinstance(tokens, ConcatenatedArrays)
        return [self._scan(array, int(start)) for array, start in zip(tokens.arrays, tokens.starts[:-1], strict=True)]

    def _scan(self, array: np.ndarray, start: int) -> TokenScan:
        examples, unknown = self.dataset.train.examples, unknown_token(self.tokenizer)
        assert examples.source is not None
        largest, count, first = 0, 0, -1
        for begin in range(0, len(array), BLOCK):
            block = array[begin : begin + BLOCK]
            largest = max(largest, int(block.max()))
            positions = np.flatnonzero(block == (-1 if unknown is None else unknown))
            if len(positions) and first < 0:
                first = start + begin + int(positions[0])
            count += len(positions)
        source = int(examples.source[self._sequence_at(start) // examples.sequences_per_example])
        return TokenScan(source, largest, count, len(array), self._sequence_at(first) if first >= 0 else -1)

    def _sequence_at(self, token: int) -> int:
        """Number of the training sequence that contains token number `token` of the training data."""
        return int(np.searchsorted(self.dataset.train.examples.offsets, token, side="right")) - 1

    def sequence_location(self, sequence: int) -> str:
        """FILE:LINE of the row of a training sequence."""
        return self._locator.example(sequence // self.dataset.train.examples.sequences_per_example)


def unknown_token(tokenizer: Tokenizer) -> int | None:
    """The id of the tokenizer's unknown token; None if it has none, because it can encode every text."""
    model = tokenizer.core.model
    number = getattr(model, "unk_id", None)
    if number is not None:
        return int(number)
    text = getattr(model, "unk_token", None)
    return None if text is None else tokenizer.core.token_to_id(text)


def source_finding(*, source: str, check: str, severity: Severity, message: str, **more: Any) -> Finding:
    """A finding about one source of rows; the name of the source is its evidence."""
    return Finding(check=check, severity=severity, message=message, evidence={"source": source}, **more)


def first_event(report: SourceReport, reason: str) -> tuple[str, str]:
    """Location and detail of the first event with this reason; two empty strings if there is none."""
    events = report.first_events.get(reason)
    return (events[0]["where"], events[0]["detail"]) if events else ("", "")


def count_of_rows(count: int, total: int) -> str:
    """`3 of 12 rows (25.0%)`."""
    return f"{count:,} of {total:,} rows ({count / total:.1%})" if total else f"{count:,} rows"
