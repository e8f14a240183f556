"""The records of a build about one source: the sums of its shards' row statistics, and its training sequences."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np

from fledge.data.build.directory import BuildDirectory
from fledge.data.build.load import StageDataset
from fledge.data.build.phase_output import read_rows_result, read_tokens_result


@dataclass(frozen=True, kw_only=True)
class SourceCounts:
    """Row statistics of one source (see RowStatistics), summed over its shards."""

    schemas: Counter[str] = field(default_factory=Counter)
    columns: Counter[str] = field(default_factory=Counter)
    nulls: Counter[str] = field(default_factory=Counter)
    empty: Counter[str] = field(default_factory=Counter)
    openings: Counter[str] = field(default_factory=Counter)
    equal: Counter[str] = field(default_factory=Counter)
    numbers: Counter[str] = field(default_factory=Counter)  # answers, identity, distinct_openings, recorded_openings

    @classmethod
    def of(cls, build: BuildDirectory, source: int) -> "SourceCounts":
        """The counts of the source with this number."""
        counts = cls()
        for shard in build.plan.shards:
            if shard.source != source:
                continue
            recorded = read_rows_result(build.rows(shard))["statistics"]
            for name in ("schemas", "columns", "nulls", "empty", "openings", "equal"):
                getattr(counts, name).update(recorded[name])
            counts.numbers.update({name: recorded[name] for name in ("answers", "identity", "distinct_openings")})
            counts.numbers["recorded_openings"] += len(recorded["openings"])
        return counts

    @property
    def distinct_openings(self) -> int:
        """Number of distinct openings of answers. An upper bound if a shard had more openings than it recorded."""
        complete = self.numbers["recorded_openings"] == self.numbers["distinct_openings"]
        return len(self.openings) if complete else self.numbers["distinct_openings"]


@dataclass(frozen=True)
class TrainingSequences:
    """The training sequences of one source.

    `examples` [E]: numbers of its examples in the stage's training data. `lengths` [S]: tokens of each sequence, int64.
    `target_tokens` [S]: targets with weight in each sequence, int64. `ended`: number of sequences whose end token is a
    target with weight."""

    examples: np.ndarray
    lengths: np.ndarray
    target_tokens: np.ndarray
    ended: int

    @classmethod
    def of(cls, dataset: StageDataset, source: int) -> "TrainingSequences":
        """The training sequences of the source with this number."""
        examples = dataset.train.examples
        assert examples.source is not None
        numbers = np.flatnonzero(examples.source == source)
        sequences = examples.sequences_of(numbers)
        ended = sum(
            read_tokens_result(dataset.build.tokens(shard))["splits"]["train"]["ended"]
            for shard in dataset.plan.shards_of("train")
            if shard.source == source
        )
        return cls(numbers, np.diff(examples.offsets)[sequences], examples.target_tokens[sequences], ended)

    @property
    def tokens(self) -> int:
        """Number of all tokens, the first of each sequence included."""
        return int(self.lengths.sum())
