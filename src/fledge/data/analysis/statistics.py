"""The statistics of a stage's data as values: rows, lengths, languages, answers, mixture. `stage_statistics` computes them."""

from dataclasses import asdict, dataclass
from typing import Any

from fledge.data.analysis.lengths import Lengths

SHORT_ANSWER = 3  # tokens; an answer with fewer is called short


@dataclass(frozen=True)
class Opening:
    """How answers begin, how many do, and their share of all answers."""

    text: str
    count: int
    share: float


@dataclass(frozen=True, kw_only=True)
class AnswerStatistics:
    """The answers of the rows that could be read (duplicates included). `most_frequent_share`: of the answer that is given most
    often. `identity`: answers that say who the assistant is."""

    count: int
    openings: tuple[Opening, ...]
    distinct_openings: int
    most_frequent_share: float
    identity: int
    identity_share: float


@dataclass(frozen=True, kw_only=True)
class TrainingStatistics:
    """What training sees of a source in one pass over it.

    `ended_share`: of the sequences, those whose end token is supervised. `short_share`: of the sequences, those with fewer than
    SHORT_ANSWER supervised tokens and an end token. Both are None where every token counts: there are no answers."""

    examples: int
    tokens: int
    target_tokens: int
    target_token_fraction: float
    ended_share: float | None
    short_share: float | None


@dataclass(frozen=True, kw_only=True)
class ContextFit:
    """What became of rows that are longer than the context. Documents continue in the next packed row and are split.

    `share`: of the rows that fit as they are; None where lengths were not measured."""

    share: float | None
    truncated_rows: int
    shortened_rows: int
    split_rows: int
    dropped_rows: int
    lost_tokens: int


@dataclass(frozen=True, kw_only=True)
class SourceStatistics:
    """One source. `characters` and `tokens` are lengths of rows that stay, before anything is cut.

    `columns`: column -> rows in which it is missing, null, empty. `near_examples`: (row, earlier row, overlap)."""

    name: str
    path: str
    split: str
    rows: int
    used_rows: int
    validation_rows: int
    dropped: dict[str, int]
    changed: dict[str, int]
    noticed: dict[str, int]
    schemas: dict[str, int]
    columns: dict[str, dict[str, int]]
    exact_duplicates: int
    near_duplicates: int | None
    near_examples: tuple[tuple[str, str, float], ...]
    languages: dict[str, int]
    characters: Lengths | None
    tokens: Lengths | None
    answers: AnswerStatistics | None
    training: TrainingStatistics | None
    fit: ContextFit | None


@dataclass(frozen=True, kw_only=True)
class EpochStatistics:
    """The first epoch: packed rows of `packed_length` positions, and what one update sees (batch_rows, batch_tokens)."""

    examples: int
    packed_rows: int
    packed_length: int
    tokens: int
    target_tokens: int
    target_token_fraction: float
    padding_share: float
    steps: int
    batch_rows: int
    batch_tokens: int
    identity_share: float | None


@dataclass(frozen=True, kw_only=True)
class MixtureStatistics:
    """What the first epoch takes of a source, its shares of that epoch, and how often a row is taken on average."""

    source: str
    examples: int
    tokens: int
    row_share: float
    token_share: float
    passes: float


@dataclass(frozen=True, kw_only=True)
class StageStatistics:
    """A stage. `mixture` has an entry for each training source, in their order."""

    stage: str
    kind: str
    context: int
    near_threshold: float | None
    epoch: EpochStatistics
    mixture: tuple[MixtureStatistics, ...]
    sources: tuple[SourceStatistics, ...]

    def as_dict(self) -> dict[str, Any]:
        """As JSON."""
        return asdict(self)
