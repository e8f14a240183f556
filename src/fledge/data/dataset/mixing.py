"""Which examples an epoch takes from each source. A pure function of (seed, epoch): drawn afresh for every epoch."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np

from fledge.data.dataset.packing import permutation
from fledge.recipe.schema import Source


@dataclass(frozen=True)
class SourceQuota:
    """How much of one source an epoch takes; as the recipe's source says."""

    name: str
    share: float | None = None
    ratio: float | None = None
    max_rows: int | None = None
    max_tokens: int | None = None
    repeat: float = 1.0

    @classmethod
    def of(cls, source: Source, name: str) -> "SourceQuota":
        """The quota of a recipe's source."""
        return cls(name, source.token_fraction, source.ratio, source.max_rows, source.max_tokens, source.repeat)


@dataclass(frozen=True)
class Mixture:
    """Examples by source, and the quotas. `source`, `tokens` and `row` are [E]: of each example its source, its length, and the
    number of the row that it comes from (None: each is a row). A row is drawn as a whole."""

    source: np.ndarray
    tokens: np.ndarray
    quotas: tuple[SourceQuota, ...]
    seed: int
    row: np.ndarray | None = None

    @cached_property
    def _first(self) -> np.ndarray:
        """The first example of each row, and the end: int64 [R + 1]."""
        if self.row is None:
            return np.arange(len(self.source) + 1)
        return np.concatenate((np.flatnonzero(np.diff(self.row, prepend=-1)), [len(self.row)]))

    @cached_property
    def _sizes(self) -> np.ndarray:
        """Tokens of each row."""
        ends = np.concatenate(([0], np.cumsum(self.tokens)))
        return ends[self._first[1:]] - ends[self._first[:-1]]

    @cached_property
    def _members(self) -> list[np.ndarray]:
        """The rows of each source."""
        source = self.source[self._first[:-1]]
        return [np.flatnonzero(source == number) for number in range(len(self.quotas))]

    def sample_epoch(self, epoch: int) -> np.ndarray:
        """The examples of an epoch, int64; one that is taken k times stands there k times."""
        rows = self._draw_rows(epoch)
        counts = self._first[rows + 1] - self._first[rows]
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        return np.repeat(self._first[rows], counts) + within

    def _draw_rows(self, epoch: int) -> np.ndarray:
        natural = [self._by_rules(number, epoch) for number in range(len(self.quotas))]
        total = self._epoch_tokens(natural)
        taken = [
            chosen if quota.share is None else self._by_share(number, epoch, quota.share * total)
            for number, (quota, chosen) in enumerate(zip(self.quotas, natural, strict=True))
        ]
        return np.concatenate(taken) if taken else np.zeros(0, np.int64)

    def _shuffled(self, number: int, epoch: int, round_: int = 0) -> np.ndarray:
        members = self._members[number]
        return members[permutation(len(members), self.seed, number, epoch, round_)]

    def _by_rules(self, number: int, epoch: int) -> np.ndarray:
        """What ratio, max_rows and max_tokens leave of a source, `repeat` times. A source with a share: all of it."""
        quota, members = self.quotas[number], self._members[number]
        if not len(members):
            return members
        count = len(members)
        if quota.ratio is not None:
            count = max(1, round(quota.ratio * count))
        if quota.max_rows is not None:
            count = min(count, quota.max_rows)
        chosen = members
        if count < len(members) or quota.max_tokens is not None:
            chosen = self._shuffled(number, epoch)[:count]
        if quota.max_tokens is not None:
            fits = int(np.searchsorted(np.cumsum(self._sizes[chosen]), quota.max_tokens, side="right"))
            chosen = chosen[: max(1, fits)]
        whole, part = divmod(quota.repeat, 1)
        more = max(round(part * len(chosen)), 0 if whole else 1)
        again = chosen[permutation(len(chosen), self.seed, number, epoch, 1)[:more]]
        return np.concatenate([np.tile(chosen, int(whole)), again])

    def _epoch_tokens(self, natural: Sequence[np.ndarray]) -> float:
        """Tokens of an epoch: what the sources without a share give decides; where all have one, what there is."""
        given = [int(self._sizes[chosen].sum()) for chosen in natural]
        shares = sum(quota.share or 0.0 for quota in self.quotas)
        free = sum(tokens for tokens, quota in zip(given, self.quotas, strict=True) if quota.share is None)
        return free / (1 - shares) if any(quota.share is None for quota in self.quotas) else float(sum(given))

    def _by_share(self, number: int, epoch: int, target: float) -> np.ndarray:
        """So many examples that their tokens come nearest to the target; whole passes first, then a part of one."""
        members = self._members[number]
        size = int(self._sizes[members].sum())
        if not size:
            return members
        whole = int(target // size)
        last = self._shuffled(number, epoch, 2)
        ends = np.concatenate(([0], np.cumsum(self._sizes[last])))
        count = int(np.abs(ends - (target - whole * size)).argmin())
        if whole + count == 0:
            count = 1
        return np.concatenate([np.tile(members, whole), last[:count]])

    def account(self, epoch: int) -> list[dict[str, Any]]:
        """What an epoch takes of each source: rows, tokens, their shares, and how often a row is taken on average."""
        drawn = self.sample_epoch(epoch)
        taken = self._draw_rows(epoch)
        rows = np.bincount(self.source[self._first[taken]], minlength=len(self.quotas))
        examples = np.bincount(self.source[drawn], minlength=len(self.quotas))
        tokens = np.bincount(self.source[drawn], weights=self.tokens[drawn], minlength=len(self.quotas))
        return [
            {
                "source": quota.name,
                "rows": int(rows[number]),
                "examples": int(examples[number]),
                "tokens": int(tokens[number]),
                "row_share": float(rows[number] / max(1, rows.sum())),
                "token_share": float(tokens[number] / max(1.0, tokens.sum())),
                "passes": float(rows[number] / max(1, len(self._members[number]))),
            }
            for number, quota in enumerate(self.quotas)
        ]
