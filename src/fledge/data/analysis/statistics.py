"""What the data of a stage is like, in numbers: rows, lengths, languages, answers, mixture. Nothing here prints.

They come from what the build recorded, and from what `measure` found in the items.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np

from fledge.data.analysis.build_stats import Part, SourceFacts, training_part
from fledge.data.analysis.pre_tokenization import Measured, NearDuplicates
from fledge.data.build.load import StageDataset
from fledge.data.build.phases import keep_mask
from fledge.data.build.shards import BuildPlan, Shard
from fledge.data.cleaning.duplicates import first_occurrences
from fledge.data.cleaning.languages import LANGUAGES
from fledge.data.dataset.mixing import Mixture, SourceQuota
from fledge.data.report import SourceReport
from fledge.data.storage import load_arrays

PERCENTILES = (1, 5, 25, 50, 75, 95, 99)
OPENINGS_SHOWN = 10
SHORT_ANSWER = 3  # tokens; an answer with fewer is called short
TOO_LONG = ("prompt longer than the context", "answers equal after the cut")  # why encoding drops rows for their length


# -- lengths ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lengths:
    """Many lengths: nearest-rank percentiles, and a histogram of four bins an octave, each [start, stop) with its count."""

    count: int
    mean: float
    percentiles: dict[str, int]
    histogram: tuple[tuple[int, int, int], ...]

    @classmethod
    def of(cls, values: np.ndarray) -> "Lengths | None":
        """None where there are none."""
        if not len(values):
            return None
        points = np.quantile(values, [p / 100 for p in PERCENTILES], method="inverted_cdf").tolist()
        named = {f"p{p}": int(value) for p, value in zip(PERCENTILES, points, strict=True)}
        return cls(len(values), float(values.mean()), {**named, "max": int(values.max())}, tuple(_histogram(values)))


def _histogram(values: np.ndarray) -> Iterator[tuple[int, int, int]]:
    """Bins from the one of the smallest value to that of the largest."""
    octaves = int(values.max()).bit_length() + 1
    edges = np.unique(np.concatenate(([0], np.round(2.0 ** (np.arange(4 * octaves + 1) / 4))))).astype(np.int64)
    counts = np.histogram(values, edges)[0]
    filled = np.flatnonzero(counts)
    for number in range(int(filled[0]), int(filled[-1]) + 1):
        yield int(edges[number]), int(edges[number + 1]), int(counts[number])


@dataclass(frozen=True)
class Opening:
    """How answers begin, how many do, and their share of all answers."""

    text: str
    count: int
    share: float


@dataclass(frozen=True)
class Answers:
    """The answers of the rows that could be read (duplicates included)."""

    count: int
    openings: tuple[Opening, ...]
    distinct_openings: int
    most_frequent_share: float  # of the answer that is given most often
    identity: int
    identity_share: float


@dataclass(frozen=True)
class Training:
    """What training sees of a source in one pass over it."""

    examples: int
    tokens: int
    target_tokens: int
    target_token_fraction: float
    ended_share: float | None  # of the sequences: the end token is supervised; None for documents, which all have it
    short_share: float | None  # of the sequences: fewer than SHORT_ANSWER supervised tokens and an end token


@dataclass(frozen=True)
class Fit:
    """What became of what is longer than the context. Documents go on in the next packed row and are `split`."""

    share: float | None  # of the rows, that fit as they are; None where lengths were not measured
    truncated: int
    shortened: int
    split: int
    dropped: int
    tokens_lost: int


@dataclass(frozen=True)
class SourceStatistics:
    """One source. `characters` and `tokens` are lengths of rows that stay, before anything is cut."""

    name: str
    path: str
    part: str
    rows: int
    used: int
    validation: int
    dropped: dict[str, int]
    changed: dict[str, int]
    noticed: dict[str, int]
    schemas: dict[str, int]
    columns: dict[str, dict[str, int]]  # column -> missing, null, empty
    exact_duplicates: int
    near_duplicates: int | None
    near_examples: tuple[tuple[str, str, float], ...]
    languages: dict[str, int]
    characters: Lengths | None
    tokens: Lengths | None
    answers: Answers | None
    training: Training | None
    fit: Fit | None


@dataclass(frozen=True)
class Epoch:
    """The first epoch: packed rows of `row_length` positions, and what one update sees."""

    examples: int
    rows: int
    row_length: int
    tokens: int
    target_tokens: int
    target_token_fraction: float
    padding_share: float
    steps: int
    batch_rows: int
    batch_tokens: int
    identity_share: float | None


@dataclass(frozen=True)
class Mixed:
    """What the first epoch takes of a source, its shares of that epoch, and how often a row is taken on average."""

    source: str
    examples: int
    tokens: int
    row_share: float
    token_share: float
    passes: float


@dataclass(frozen=True)
class StageStatistics:
    """A stage. `mixture` has an entry for each training source, in their order."""

    stage: str
    kind: str
    context: int
    near_threshold: float | None
    epoch: Epoch
    mixture: tuple[Mixed, ...]
    sources: tuple[SourceStatistics, ...]

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)


class _Stage:
    """The build of one stage, as statistics read it."""

    def __init__(self, data: StageDataset, measured: Measured | None) -> None:
        self.data, self.folder, self.measured = data, data.folder, measured
        self.plan = BuildPlan.read(data.folder / "build_plan.json")
        self.kind = self.plan.stage.kind

    def shards(self, source: int) -> list[Shard]:
        return [shard for shard in self.plan.shards if shard.source == source]

    @cached_property
    def facts(self) -> list[SourceFacts]:
        return [SourceFacts.of(self.folder, self.shards(number)) for number in range(len(self.plan.sources))]

    @cached_property
    def mixture(self) -> Mixture:
        """How an epoch draws from the sources; without quotas, each row once."""
        if self.data.train.mixture is not None:
            return self.data.train.mixture
        examples = self.data.train.examples
        assert examples.source is not None
        quotas = tuple(SourceQuota(item.name) for item in self.plan.sources if item.part == "train")
        return Mixture(examples.source, examples.tokens_per_example(), quotas, self.plan.seed)

    @cached_property
    def mixed(self) -> list[Mixed]:
        """What the first epoch takes of each source."""
        entries = self.mixture.account(0)
        return [
            Mixed(
                entry["source"], entry["examples"], entry["tokens"],
                entry["row_share"], entry["token_share"], entry["passes"],
            )
            for entry in entries
        ]  # fmt: skip

    @cached_property
    def repeats(self) -> list[int]:
        """Rows of each source that equal an earlier row of the same part, whether or not they are left out."""
        counts = [0] * len(self.plan.sources)
        for part in ("train", "validation"):
            shards = self.plan.of_part(part)
            if not shards:
                continue
            hashes = [load_arrays(self.folder / "rows" / shard.folder / "rows.safetensors")["hash"] for shard in shards]
            owner = np.repeat([shard.source for shard in shards], [len(found) for found in hashes])
            first = first_occurrences(np.concatenate(hashes))
            for source, count in Counter(owner[first != np.arange(len(first))].tolist()).items():
                counts[source] = count
        return counts

    def columns_kept(self, source: int, name: str) -> np.ndarray:
        """A column of rows.safetensors over the rows of a source that stay."""
        found = []
        for shard in self.shards(source):
            values = load_arrays(self.folder / "rows" / shard.folder / "rows.safetensors")[name]
            sifted = self.plan.sources[source].part != "evaluation"
            found.append(values[keep_mask(self.folder, shard) > 0] if sifted else values)
        return np.concatenate(found) if found else np.zeros(0, np.int64)

    def source(self, number: int, account: SourceReport) -> SourceStatistics:
        """Everything about one source."""
        planned, facts, measured = self.plan.sources[number], self.facts[number], self.measured
        languages = np.bincount(self.columns_kept(number, "language"), minlength=len(LANGUAGES))
        train = planned.part == "train"
        part = training_part(self.data, self.plan, number) if train else None
        near = NearDuplicates(account.dropped["near duplicate"]) if self.plan.stage.data.clean.near_duplicates else None
        if train and measured is not None and measured.near is not None:
            near = measured.near.get(number, NearDuplicates())
        lengths = self._token_lengths(number, part) if part is not None else None
        return SourceStatistics(
            name=planned.name,
            path=planned.path,
            part=planned.part,
            rows=account.rows,
            used=account.used,
            validation=account.validation,
            dropped=dict(account.dropped.most_common()),
            changed=dict(account.changed.most_common()),
            noticed=dict(account.noticed.most_common()),
            schemas=dict(facts.schemas.most_common()),
            columns=_columns(facts),
            exact_duplicates=self.repeats[number],
            near_duplicates=near.count if near is not None and train else None,
            near_examples=near.examples if near is not None else (),
            languages={LANGUAGES[i]: int(languages[i]) for i in np.argsort(-languages, kind="stable") if languages[i]},
            characters=Lengths.of(self.columns_kept(number, "chars")),
            tokens=None if lengths is None else Lengths.of(lengths),
            answers=_answers(facts) if self.kind != "pretrain" else None,
            training=_training(part, self.kind != "pretrain") if part is not None else None,
            fit=self._fit(account, lengths) if train else None,
        )

    def _token_lengths(self, source: int, part: Part) -> np.ndarray | None:
        """Documents are never cut, so their tokens are as long as they are; None where lengths were not measured."""
        if self.measured is None:
            return None
        if self.kind == "pretrain":
            return part.lengths
        return self.measured.tokens.get(source, np.zeros(0, np.int64))

    def _fit(self, account: SourceReport, lengths: np.ndarray | None) -> Fit:
        limit = self.plan.stage.data.max_seq_len + 1
        share = float((lengths <= limit).mean()) if lengths is not None and len(lengths) else None
        dropped = sum(account.dropped[reason] for reason in TOO_LONG)
        return Fit(share, account.truncated, account.shortened, account.split, dropped, account.tokens_lost)

    def epoch(self) -> Epoch:
        """The first epoch, as it is packed."""
        train, batch = self.data.train, self.plan.stage.batch
        window, account = batch.global_batch_rows(train.row_length), self.data.train.account()
        rows, positions = len(train), train.positions
        return Epoch(
            examples=len(self.mixture.sample_epoch(0)),
            rows=rows,
            row_length=train.row_length,
            tokens=positions,
            target_tokens=train.supervised,
            target_token_fraction=train.supervised / positions if positions else 0.0,
            padding_share=float(account["padding_share"]),
            steps=-(-rows // window),
            batch_rows=window,
            batch_tokens=round(window * positions / rows) if rows else 0,
            identity_share=self._identity_share(),
        )

    def _identity_share(self) -> float | None:
        """Share of the epoch's answers that say who the assistant is, if each source's rows are alike."""
        if self.kind == "pretrain":
            return None
        taken = [entry.examples for entry in self.mixed]
        shares = [_share(facts.numbers["identity"], facts.numbers["answers"]) for facts in self.facts[: len(taken)]]
        return _share(sum(share * count for share, count in zip(shares, taken, strict=True)), sum(taken))


def _share(part: float, whole: float) -> float:
    return part / whole if whole else 0.0


def _columns(facts: SourceFacts) -> dict[str, dict[str, int]]:
    """For each column: rows that lack it, hold null, hold nothing."""
    rows = sum(facts.schemas.values())
    return {
        name: {"missing": rows - present, "null": facts.nulls[name], "empty": facts.empty[name]}
        for name, present in sorted(facts.columns.items())
    }


def _answers(facts: SourceFacts) -> Answers | None:
    count = facts.numbers["answers"]
    if not count:
        return None
    ordered = sorted(facts.openings.items(), key=lambda pair: (-pair[1], pair[0]))[:OPENINGS_SHOWN]
    return Answers(
        count=count,
        openings=tuple(Opening(text, found, found / count) for text, found in ordered),
        distinct_openings=facts.distinct_openings,
        most_frequent_share=max(facts.equal.values(), default=0) / count,
        identity=facts.numbers["identity"],
        identity_share=facts.numbers["identity"] / count,
    )


def _training(part: Part, answers: bool) -> Training:
    supervised, sequences = int(part.supervised.sum()), len(part.lengths)
    short = int((part.supervised <= SHORT_ANSWER).sum())
    return Training(
        examples=len(part.examples),
        tokens=part.tokens,
        target_tokens=supervised,
        target_token_fraction=_share(supervised, part.tokens),
        ended_share=_share(part.ended, sequences) if answers else None,
        short_share=_share(short, sequences) if answers else None,
    )


def stage_statistics(data: StageDataset, measured: Measured | None = None) -> StageStatistics:
    """The numbers of one stage. Without `measured`, near duplicates and lengths in tokens are None."""
    stage = _Stage(data, measured)
    plan, accounts = stage.plan, data.ledger.sources
    config = plan.stage.data.clean.near_duplicates
    return StageStatistics(
        stage=plan.name,
        kind=plan.stage.kind,
        context=plan.stage.data.max_seq_len,
        near_threshold=measured.threshold if measured is not None else config,
        epoch=stage.epoch(),
        mixture=tuple(stage.mixed),
        sources=tuple(stage.source(number, accounts[number]) for number in range(len(plan.sources))),
    )
