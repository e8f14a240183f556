"""What a build recorded of its sources: the workers' facts summed up, the training sequences, the places of examples."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np

from fledge.data.build.load import StageDataset
from fledge.data.build.phases import phase_result
from fledge.data.build.shard_items import ShardRows
from fledge.data.build.shards import BuildPlan, Shard


@dataclass(frozen=True)
class SourceFacts:
    """Sums of what the workers noted of the rows of one source."""

    schemas: Counter[str] = field(default_factory=Counter)
    columns: Counter[str] = field(default_factory=Counter)
    nulls: Counter[str] = field(default_factory=Counter)
    empty: Counter[str] = field(default_factory=Counter)
    openings: Counter[str] = field(default_factory=Counter)
    equal: Counter[str] = field(default_factory=Counter)
    numbers: Counter[str] = field(default_factory=Counter)  # sums over the shards

    @classmethod
    def of(cls, folder: Path, shards: Iterable[Shard]) -> "SourceFacts":
        """The facts of these shards."""
        made = cls()
        for shard in shards:
            noted = phase_result(folder / "rows" / shard.folder)["facts"]
            for name in ("schemas", "columns", "nulls", "empty", "openings", "equal"):
                getattr(made, name).update(noted[name])
            made.numbers.update({name: noted[name] for name in ("answers", "identity", "distinct_openings")})
            made.numbers["noted_openings"] += len(noted["openings"])
        return made

    @property
    def distinct_openings(self) -> int:
        """How many ways answers begin; where a shard had more than it noted, at most so many."""
        all_noted = self.numbers["noted_openings"] == self.numbers["distinct_openings"]
        return len(self.openings) if all_noted else self.numbers["distinct_openings"]


@dataclass(frozen=True)
class Part:
    """The training sequences of one source."""

    examples: np.ndarray  # numbers of its examples in the stage's training data
    lengths: np.ndarray  # tokens of each sequence, int64
    supervised: np.ndarray  # of them targets with weight, int64
    ended: int  # sequences whose end token is a target with weight

    @property
    def tokens(self) -> int:
        """All its tokens, the first of each sequence included."""
        return int(self.lengths.sum())


def training_part(data: StageDataset, plan: BuildPlan, source: int) -> Part:
    """What training sees of a source."""
    examples = data.train.examples
    assert examples.source is not None
    mine = np.flatnonzero(examples.source == source)
    sequences = (mine[:, None] * examples.per_example + np.arange(examples.per_example)).ravel()
    ended = 0
    for shard in plan.of_part("train"):
        if shard.source == source:
            ended += phase_result(data.folder / "tokens" / shard.folder)["parts"]["train"]["ended"]
    return Part(mine, np.diff(examples.offsets)[sequences], examples.supervised[sequences], ended)


class RowLocator:
    """file:line of the training examples."""

    def __init__(self, data: StageDataset, plan: BuildPlan) -> None:
        self.folder, self.plan, self.examples = data.folder, plan, data.train.examples

    @lru_cache(maxsize=64)  # noqa: B019  lives as long as the data
    def _rows(self, shard: int) -> ShardRows:
        return ShardRows.of(self.folder, self.plan.shards[shard])

    def example(self, number: int) -> str:
        """Where the row of an example stands."""
        assert self.examples.shard is not None and self.examples.row is not None
        rows = self._rows(int(self.examples.shard[number]))
        return rows.where(int(np.searchsorted(rows.arrays["row"], int(self.examples.row[number]))))
