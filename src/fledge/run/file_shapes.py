"""The shapes of the JSON files of a stage that are read again after a program has ended: what readers use, with its types.

A file may say more. `read_json` checks a file against its shape, so that no reader meets a value that it cannot use.
"""

from pathlib import PurePosixPath
from typing import Annotated, Any, Literal, NotRequired

from pydantic import AfterValidator, Field, FiniteFloat, NonNegativeFloat, NonNegativeInt, PositiveInt
from typing_extensions import TypedDict


def _inside(path: str) -> str:
    """The path, if it leads from a directory to a place inside it."""
    if not path or PurePosixPath(path).is_absolute() or ".." in PurePosixPath(path).parts or "\0" in path:
        raise ValueError("this is not a path inside the stage")
    return path


class VerdictReason(TypedDict):
    """A figure that speaks for a decision, null where it cannot decide."""

    check: str
    decision: str | None
    message: str
    hint: str
    evidence: dict[str, Any]


class StageVerdict(TypedDict):
    """The verdict in result.json: what to do with the model, what goes on (trained, best, start), and why."""

    decision: Literal["release", "keep training", "roll back"]
    goes_on: Literal["trained", "best", "start"]
    reasons: list[VerdictReason]
    thresholds: dict[str, dict[str, Any]]


class StageResult(TypedDict):
    """result.json of a finished stage. Stages of earlier versions have no verdict."""

    order: NonNegativeInt
    model: Annotated[str, AfterValidator(_inside)]
    step: NonNegativeInt
    seconds: Annotated[FiniteFloat, Field(ge=0)]
    wall_seconds: Annotated[FiniteFloat, Field(ge=0)]
    stop: str | None
    verdict: NotRequired[StageVerdict]


class EvaluatedSample(TypedDict):
    """The answer to one of the fixed prompts."""

    prompt: str
    answer: str
    finish_reason: str


class _Samples(TypedDict):
    samples: list[EvaluatedSample]


class Evaluation(_Samples, total=False):
    """eval/before.json and eval/after.json: the metrics, if there is validation data, and the answers."""

    loss: float | None
    reward: float | None
    exact_match: float | None
    valid_json: float | None
    f1: float | None


class RecordedPlan(TypedDict):
    """plan.json: the choices that a stage keeps when it is resumed."""

    effective_batch_rows: PositiveInt
    micro_batch_size: PositiveInt
    learning_rate: NonNegativeFloat
    betas: tuple[FiniteFloat, FiniteFloat]
    weight_decay: NonNegativeFloat
    select_checkpoint: Literal["last", "best"]
    notes: list[str]


class TimeRange(TypedDict):
    """Seconds, from … to."""

    low: NonNegativeFloat
    high: NonNegativeFloat


class PredictedStage(TypedDict):
    """What a stage was predicted to take: seconds, bytes, updates, and what the prediction rests on."""

    training: TimeRange
    evaluation: TimeRange
    memory: NonNegativeFloat
    updates: PositiveInt
    basis: str


class MeasuredStage(TypedDict):
    """What a stage took: seconds, bytes, updates."""

    training: FiniteFloat
    evaluation: NonNegativeFloat
    memory: NonNegativeInt
    updates: NonNegativeInt


class StagePrediction(TypedDict):
    """prediction.json: predicted before the first step, measured after the last one."""

    predicted: PredictedStage
    measured: MeasuredStage | None


class StartRecord(TypedDict, total=False):
    """start.json: the weights that a stage began with."""

    weights: str
    source: str | None
    files: list[tuple[str, int, int]]


class _PackedSummary(TypedDict):
    fingerprint: str


class StageData(TypedDict):
    """The packed data of a stage, in data_report.json of the stage and in manifest.json of a build."""

    train: _PackedSummary
    validation: _PackedSummary | None
