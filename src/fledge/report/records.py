"""What a run directory holds, read once and never changed afterwards."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Sample:
    prompt: str
    answer: str
    ended: bool | None


@dataclass(frozen=True)
class Evaluation:
    """One pass over the validation split: metrics by name (no `eval/` prefix) and sampled answers."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    samples: tuple[Sample, ...] = ()


@dataclass(frozen=True)
class Scores:
    """Answers to a set of questions with known references; `n` questions."""

    n: float | None = None
    exact_match: float | None = None
    content_match: float | None = None
    habit_rate: float | None = None


@dataclass(frozen=True)
class WorldError:
    task: str
    question: str
    answer: str
    reference: str


@dataclass(frozen=True)
class World:
    overall: Scores
    preference_accuracy: float | None
    interval: tuple[float, float] | None
    tasks: Mapping[str, Scores]
    errors: tuple[WorldError, ...]


@dataclass(frozen=True)
class DroppedExample:
    reason: str
    where: str
    detail: str


@dataclass(frozen=True)
class Source:
    name: str
    path: str
    rows: float | None
    used: float | None
    dropped: tuple[tuple[str, float], ...]
    truncated: float | None
    split: float | None
    shortened: float | None
    tokens: float | None
    target_tokens: float | None
    examples: tuple[DroppedExample, ...]

    @property
    def dropped_total(self) -> float:
        return sum(count for _, count in self.dropped)

    @property
    def unaccounted(self) -> float | None:
        """Rows neither used nor dropped; zero when the account adds up."""
        if self.rows is None or self.used is None:
            return None
        return self.rows - self.used - self.dropped_total


@dataclass(frozen=True)
class Split:
    examples: float | None
    rows: float | None
    tokens: float | None
    target_tokens: float | None
    padding_share: float | None


@dataclass(frozen=True)
class Ledger:
    sources: tuple[Source, ...] = ()
    train: Split | None = None
    validation: Split | None = None


@dataclass(frozen=True)
class Events:
    steps: tuple[Mapping[str, object], ...] = ()
    resources: tuple[Mapping[str, object], ...] = ()
    evals: tuple[Mapping[str, object], ...] = ()
    checkpoints: tuple[Mapping[str, object], ...] = ()
    alerts: tuple[Mapping[str, object], ...] = ()
    stops: tuple[Mapping[str, object], ...] = ()
    regressions: tuple[Mapping[str, object], ...] = ()


@dataclass(frozen=True)
class Stage:
    name: str
    plan: Mapping[str, object]
    ledger: Ledger | None
    events: Events
    before: Evaluation | None
    after: Evaluation | None
    world: World | None

    @property
    def kind(self) -> str:
        """The kind of stage, as its plan says."""
        return str(self.plan.get("kind") or "")

    @property
    def label(self) -> str:
        """What one example of the stage is called, as its plan says."""
        return str(self.plan.get("label") or "")

    @property
    def loss_unit(self) -> str:
        """The unit of the stage's loss, as its plan says."""
        return str(self.plan.get("loss_unit") or "")


@dataclass(frozen=True)
class Problem:
    """A file that could be read only in part: `broken_lines` is None when the whole file was unusable."""

    path: str
    broken_lines: int | None


@dataclass(frozen=True)
class Run:
    name: str
    seconds: float | None
    recipe: str | None
    environment: Mapping[str, object]
    tokenizer: Mapping[str, object]
    stages: tuple[Stage, ...]
    problems: tuple[Problem, ...]
