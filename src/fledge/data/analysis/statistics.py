"""The statistics of a stage's data as values: rows, lengths, languages, answers, mixture. `stage_statistics` computes them."""

from dataclasses import asdict, dataclass
from typing import Any

from fledge.data.analysis.lengths import Lengths

SHORT_ANSWER = 3  # tokens; an answer with fewer is called short


@dataclass(frozen=True)
class Opening:
    """A beginning that answers have in common, the number of answers that begin so, and their share of all answers."""

    text: str
    count: int
    share: float


@dataclass(frozen=True, kw_only=True)
class AnswerStatistics:
    """Statistics of the answers of all parsed rows, duplicates included.

    `most_frequent_share`: share of the most frequent answer. `identity`: number of answers that say who the assistant is."""

    count: int
    openings: tuple[Opening, ...]
    distinct_openings: int
    most_frequent_share: float
    identity: int
    identity_share: float


@dataclass(frozen=True, kw_only=True)
class TrainingStatistics:
    """The training examples of a source, each counted once.

    `ended_share`: share of the sequences whose end token is supervised. `short_share`: share of the sequences with fewer
    than SHORT_ANSWER supervised tokens and an end token. Both are None for documents, which have no answers."""

    examples: int
    tokens: int
    target_tokens: int
    target_token_fraction: float
    ended_share: float | None
    short_share: float | None


@dataclass(frozen=True, kw_only=True)
class ContextFit:
    """How many rows fit the context, and how the longer ones were treated. A document that is too long continues in the next
    packed row and counts as split.

    `share`: share of the rows that fit unchanged; None if lengths were not measured. `lost_tokens`: tokens cut away."""

    share: float | None
    truncated_rows: int
    shortened_rows: int
    split_rows: int
    dropped_rows: int
    lost_tokens: int


@dataclass(frozen=True, kw_only=True)
class SourceStatistics:
    """The statistics of one source. `characters` and `tokens` are lengths of the kept rows before truncation.

    `dropped`, `changed`, `noticed`: reason -> rows. `columns`: column -> number of rows in which it is missing, null, empty.
    `near_examples`: (FILE:LINE, FILE:LINE of the earlier row, Jaccard overlap)."""

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
    """Statistics of the first epoch: packed rows of `packed_length` positions, and the size of one update's batch
    (`batch_rows`, `batch_tokens`)."""

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
    """The rows that the first epoch draws from one source: examples, tokens, shares of the epoch's rows and tokens, and
    `passes`, how often a row is drawn on average."""

    source: str
    examples: int
    tokens: int
    row_share: float
    token_share: float
    passes: float


@dataclass(frozen=True, kw_only=True)
class StageStatistics:
    """The statistics of a stage. `context`: data.max_seq_len. `mixture` and `sources` are in the order of the recipe;
    `mixture` has training sources only."""

    stage: str
    kind: str
    context: int
    near_threshold: float | None
    epoch: EpochStatistics
    mixture: tuple[MixtureStatistics, ...]
    sources: tuple[SourceStatistics, ...]

    def as_dict(self) -> dict[str, Any]:
        """The statistics as JSON values."""
        return asdict(self)
