"""The content of a run directory as immutable records."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Sample:
    """One sampled answer to a prompt. `ended` is False when the answer was cut off at the length limit, None when unknown."""

    prompt: str
    answer: str
    ended: bool | None


@dataclass(frozen=True)
class Evaluation:
    """One pass over the validation split: metrics by name (without the prefix `eval/`), sampled answers, and how the losses of
    tokens are distributed (the `loss_…` tables of the file)."""

    metrics: Mapping[str, float] = field(default_factory=dict)
    samples: tuple[Sample, ...] = ()
    losses: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class Scores:
    """Scores on a set of questions with known answers: the number of questions `n`, and fractions in [0, 1]."""

    n: float | None = None
    exact_match: float | None = None
    content_match: float | None = None
    habit_rate: float | None = None


@dataclass(frozen=True)
class WrongAnswer:
    """One question that the model answered wrongly, with its reference answer."""

    task: str
    question: str
    answer: str
    reference: str


@dataclass(frozen=True)
class NaturalAnswers:
    """The answers of a stage to `n` prompts in natural words: fractions of acceptable answers in [0, 1], overall and by group,
    with the 95 % interval, and the answers that are not acceptable."""

    n: float | None
    acceptable: float
    interval: tuple[float, float] | None
    groups: Mapping[str, float]
    errors: tuple[WrongAnswer, ...]


@dataclass(frozen=True, kw_only=True)
class World:
    """The scores of a stage on questions with known answers.

    `interval` is the 95 % confidence interval of the overall exact match, as (low, high) fractions. `natural`: the answers to
    prompts in natural words.
    """

    overall: Scores
    preference_accuracy: float | None
    interval: tuple[float, float] | None
    tasks: Mapping[str, Scores]
    errors: tuple[WrongAnswer, ...]
    natural: NaturalAnswers | None = None


@dataclass(frozen=True)
class DroppedRow:
    """One row that was dropped or changed: the reason, the row's location (`file:line`), and details."""

    reason: str
    location: str
    detail: str


@dataclass(frozen=True, kw_only=True)
class Source:
    """Row and token counts of one data source. `dropped` holds (reason, rows) pairs."""

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
    examples: tuple[DroppedRow, ...]

    @property
    def dropped_total(self) -> float:
        """The number of dropped rows, over all reasons."""
        return sum(count for _, count in self.dropped)

    @property
    def unaccounted(self) -> float | None:
        """The number of rows that are neither used nor dropped: zero when the counts add up, None when they are unknown."""
        if self.rows is None or self.used is None:
            return None
        return self.rows - self.used - self.dropped_total


@dataclass(frozen=True)
class Split:
    """Totals of the training or the validation split. `padding_share` is a fraction of all packed positions."""

    examples: float | None
    packed_rows: float | None
    tokens: float | None
    target_tokens: float | None
    padding_share: float | None


@dataclass(frozen=True)
class DataReport:
    """The data report of one stage: each source, and the totals of both splits."""

    sources: tuple[Source, ...] = ()
    train: Split | None = None
    validation: Split | None = None


@dataclass(frozen=True, kw_only=True)
class Events:
    """The events of one stage, sorted by kind; each event is a mapping as written in `events.jsonl`. `alerts`: those of guards
    and the findings of the doctor among them."""

    steps: tuple[Mapping[str, object], ...] = ()
    resources: tuple[Mapping[str, object], ...] = ()
    evals: tuple[Mapping[str, object], ...] = ()
    checkpoints: tuple[Mapping[str, object], ...] = ()
    alerts: tuple[Mapping[str, object], ...] = ()
    stops: tuple[Mapping[str, object], ...] = ()
    prompt_tests: tuple[Mapping[str, object], ...] = ()


@dataclass(frozen=True)
class WorstCase:
    """A validation row with a high loss: its source, its loss (None for one that is no number), where it is, its text, and the
    part of it that the model is trained on."""

    source: str
    loss: float | None
    where: str
    text: str
    targets: str


@dataclass(frozen=True, kw_only=True)
class Stage:
    """One stage of a run: its plan, data report, events, evaluations, scores, and the findings about its result (`verdicts`, as
    result.json has them). None stands for a missing file. `trained`: numbers of trained and of all parameters; None before the
    stage is finished. `worst`: validation rows with the highest losses, by source. `decision`: the verdict
    of result.json, with its reasons; empty without one. `prediction`: what prediction.json says; empty without it."""

    name: str
    plan: Mapping[str, object]
    data_report: DataReport | None
    events: Events
    before: Evaluation | None
    after: Evaluation | None
    world: World | None
    verdicts: tuple[Mapping[str, object], ...] = ()
    trained: tuple[float, float] | None = None
    worst: tuple[WorstCase, ...] = ()
    decision: Mapping[str, object] = field(default_factory=dict)
    prediction: Mapping[str, object] = field(default_factory=dict)

    @property
    def kind(self) -> str:
        """The stage's kind as the plan names it, or an empty string."""
        return str(self.plan.get("kind") or "")

    @property
    def label(self) -> str:
        """The name of one example as the plan says it, or an empty string."""
        return str(self.plan.get("label") or "")

    @property
    def loss_unit(self) -> str:
        """The unit of the stage's loss as the plan says it, or an empty string."""
        return str(self.plan.get("loss_unit") or "")


@dataclass(frozen=True)
class Problem:
    """A file that could not be read completely: `broken_lines` lines were left out, or None when the whole file was
    unusable."""

    path: str
    broken_lines: int | None


@dataclass(frozen=True, kw_only=True)
class Run:
    """One run: its name, duration in seconds, recipe text, environment, tokenizer facts and stages."""

    name: str
    seconds: float | None
    recipe: str | None
    environment: Mapping[str, object]
    tokenizer: Mapping[str, object]
    stages: tuple[Stage, ...]
    problems: tuple[Problem, ...]
