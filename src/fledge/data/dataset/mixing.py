"""The mixture of sources: the examples that each epoch draws from each source, a pure function of (seed, epoch).

"Row" here is a row of a file: all examples of a row are drawn together.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from fledge.data.dataset.packing import permutation
from fledge.recipe.schema import Source


@dataclass(frozen=True, kw_only=True)
class SourceQuota:
    """The amount of one source that an epoch draws. `token_fraction`: fraction of the epoch's tokens; `ratio`: fraction of the
    source's rows; `max_rows`, `max_tokens`: upper limits; `repeat`: how often the drawn rows are read. None: no limit."""

    name: str
    token_fraction: float | None = None
    ratio: float | None = None
    max_rows: int | None = None
    max_tokens: int | None = None
    repeat: float = 1.0

    @classmethod
    def of(cls, source: Source, name: str) -> "SourceQuota":
        """The quota of a source of the recipe."""
        return cls(
            name=name,
            token_fraction=source.token_fraction,
            ratio=source.ratio,
            max_rows=source.max_rows,
            max_tokens=source.max_tokens,
            repeat=source.repeat,
        )


@dataclass(frozen=True)
class Mixture:
    """E examples by source, and the quotas of the sources.

    `source` [E]: number of each example's source. `tokens` [E]: its length. `row` [E]: number of the row that it comes from
    (None: every example is a row)."""

    source: np.ndarray
    tokens: np.ndarray
    quotas: tuple[SourceQuota, ...]
    seed: int
    row: np.ndarray | None = None

    @cached_property
    def _first(self) -> np.ndarray:
        """Number of the first example of each row, and E at the end: int64 [R + 1]."""
        if self.row is None:
            return np.arange(len(self.source) + 1)
        return np.concatenate((np.flatnonzero(np.diff(self.row, prepend=-1)), [len(self.row)]))

    @cached_property
    def _row_tokens(self) -> np.ndarray:
        """Tokens of each row [R]."""
        ends = np.concatenate(([0], np.cumsum(self.tokens)))
        return ends[self._first[1:]] - ends[self._first[:-1]]

    @cached_property
    def _rows_of_source(self) -> list[np.ndarray]:
        """The rows of each source."""
        source = self.source[self._first[:-1]]
        return [np.flatnonzero(source == number) for number in range(len(self.quotas))]

    def sample_epoch(self, epoch: int) -> np.ndarray:
        """Numbers of the examples of an epoch, int64; an example that is drawn k times occurs k times."""
        rows = self._sample_rows(epoch)
        counts = self._first[rows + 1] - self._first[rows]
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return np.repeat(self._first[rows], counts) + within

    def _sample_rows(self, epoch: int) -> np.ndarray:
        """Numbers of the rows of an epoch, int64; a row that is drawn k times occurs k times."""
        without_shares = [self._by_quota(number, epoch) for number in range(len(self.quotas))]
        total = self._epoch_tokens(without_shares)
        sampled = [
            rows if quota.token_fraction is None else self._by_token_fraction(number, epoch, quota.token_fraction * total)
            for number, (quota, rows) in enumerate(zip(self.quotas, without_shares, strict=True))
        ]
        return np.concatenate(sampled) if sampled else np.zeros(0, np.int64)

    def _shuffled(self, number: int, epoch: int, draw: int = 0) -> np.ndarray:
        """The rows of a source, shuffled for this epoch; each `draw` gives another order."""
        rows = self._rows_of_source[number]
        return rows[permutation(len(rows), self.seed, number, epoch, draw)]

    def _by_quota(self, number: int, epoch: int) -> np.ndarray:
        """What ratio, max_rows and max_tokens leave of a source, `repeat` times. A source with a share: all of it."""
        quota, rows = self.quotas[number], self._rows_of_source[number]
        if not len(rows):
            return rows
        count = len(rows)
        if quota.ratio is not None:
            count = max(1, round(quota.ratio * count))
        if quota.max_rows is not None:
            count = min(count, quota.max_rows)
        chosen = rows
        if count < len(rows) or quota.max_tokens is not None:
            chosen = self._shuffled(number, epoch)[:count]
        if quota.max_tokens is not None:
            fitting = int(np.searchsorted(np.cumsum(self._row_tokens[chosen]), quota.max_tokens, side="right"))
            chosen = chosen[: max(1, fitting)]
        passes, fraction = divmod(quota.repeat, 1)
        extra = max(round(fraction * len(chosen)), 0 if passes else 1)
        extra_rows = chosen[permutation(len(chosen), self.seed, number, epoch, 1)[:extra]]
        return np.concatenate([np.tile(chosen, int(passes)), extra_rows])

    def _epoch_tokens(self, without_shares: Sequence[np.ndarray]) -> float:
        """Tokens of an epoch, determined by the sources without a share; if all have a share, the tokens of all sources."""
        tokens = [int(self._row_tokens[rows].sum()) for rows in without_shares]
        shares = sum(quota.token_fraction or 0.0 for quota in self.quotas)
        free = sum(count for count, quota in zip(tokens, self.quotas, strict=True) if quota.token_fraction is None)
        return free / (1 - shares) if any(quota.token_fraction is None for quota in self.quotas) else float(sum(tokens))

    def _by_token_fraction(self, number: int, epoch: int, target_tokens: float) -> np.ndarray:
        """The rows of a source whose tokens come nearest to the target: complete passes, then a part of one."""
        rows = self._rows_of_source[number]
        size = int(self._row_tokens[rows].sum())
        if not size:
            return rows
        passes = int(target_tokens // size)
        last_pass = self._shuffled(number, epoch, 2)
        ends = np.concatenate(([0], np.cumsum(self._row_tokens[last_pass])))
        count = int(np.abs(ends - (target_tokens - passes * size)).argmin())
        if passes + count == 0:
            count = 1
        return np.concatenate([np.tile(rows, passes), last_pass[:count]])

    def summary(self, epoch: int) -> list[dict[str, Any]]:
        """The rows, examples and tokens that an epoch draws from each source, their shares of the epoch, and `passes`, how
        often a row is drawn on average."""
        examples, rows = self.sample_epoch(epoch), self._sample_rows(epoch)
        sources = len(self.quotas)
        row_counts = np.bincount(self.source[self._first[rows]], minlength=sources)
        example_counts = np.bincount(self.source[examples], minlength=sources)
        tokens = np.bincount(self.source[examples], weights=self.tokens[examples], minlength=sources)
        return [
            {
                "source": quota.name,
                "rows": int(row_counts[number]),
                "examples": int(example_counts[number]),
                "tokens": int(tokens[number]),
                "row_share": float(row_counts[number] / max(1, row_counts.sum())),
                "token_share": float(tokens[number] / max(1.0, tokens.sum())),
                "passes": float(row_counts[number] / max(1, len(self._rows_of_source[number]))),
            }
            for number, quota in enumerate(self.quotas)
        ]
