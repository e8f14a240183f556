"""Single figures of a stage, from its events and evaluations."""

import math
import statistics

from fledge.report.read_run import mapping, number
from fledge.report.records import Stage
from fledge.report.series import Points, last_value, points


def metric(stage: Stage, name: str, moment: str) -> float | None:
    """A validation metric `before` or `after` a stage. The last evaluation during training stands in for a missing `after`."""
    evaluation = stage.before if moment == "before" else stage.after
    value = evaluation.metrics.get(name) if evaluation else None
    if value is None and moment == "after":
        return last_value(stage.events.evals, f"eval/{name}")
    return value


def stage_seconds(stage: Stage) -> float | None:
    """The training time in seconds."""
    return last_value(stage.events.resources, "system/seconds")


def stage_tokens(stage: Stage) -> float | None:
    """The number of tokens that the stage was trained on."""
    return last_value(stage.events.steps, "train/tokens")


def stage_speed(stage: Stage) -> float | None:
    """The median speed in tokens per second, or tokens over seconds when no speed was recorded."""
    speeds = [number(row.get("system/tokens_per_second")) for row in stage.events.resources]
    known = [speed for speed in speeds if speed is not None and math.isfinite(speed)]
    if known:
        return statistics.median(known)
    seconds, tokens = stage_seconds(stage), stage_tokens(stage)
    return tokens / seconds if seconds and tokens else None


def stage_mfu(stage: Stage) -> float | None:
    """The median model FLOPs utilisation: a fraction of the machine's measured matrix-product peak."""
    shares = [number(row.get("system/mfu")) for row in stage.events.resources]
    known = [share for share in shares if share is not None and math.isfinite(share)]
    return statistics.median(known) if known else None


def stage_memory(stage: Stage) -> float | None:
    """The largest recorded memory use in bytes."""
    sizes = [number(row.get("system/peak_memory_bytes", row.get("system/memory_bytes"))) for row in stage.events.resources]
    return max((size for size in sizes if size is not None), default=None)


def preference_accuracy(stage: Stage, moment: str) -> float | None:
    """The fraction of pairs whose chosen answer gets the higher reward, `before` or `after` a stage.

    None as long as policy and reference agree: every pair is then a tie, which must not be shown as 0 %.
    """
    accuracy = metric(stage, "rewards/accuracies", moment)
    if accuracy == 0.0 and abs(metric(stage, "rewards/margins", moment) or 0.0) < 1e-6:
        return None
    if accuracy is None and moment == "after" and stage.world:
        return stage.world.preference_accuracy
    return accuracy


def with_first_evaluation(stage: Stage, name: str) -> Points:
    """The evaluations during training, preceded by the evaluation before the first step (at step 0) when there is one."""
    curve = points(stage.events.evals, f"eval/{name}")
    start = preference_accuracy(stage, "before") if name == "rewards/accuracies" else metric(stage, name, "before")
    if start is not None and math.isfinite(start) and not any(step <= 0 for step, _ in curve):
        return [(0.0, start), *curve]
    return curve


def predicted_seconds(stage: Stage) -> tuple[float, float] | None:
    """The seconds that training and its evaluations were predicted to take, from … to; None without a prediction."""
    predicted = mapping(stage.prediction.get("predicted"))
    parts = [mapping(predicted.get(name)) for name in ("training", "evaluation")]
    lows, highs = ([number(part.get(end)) for part in parts] for end in ("low", "high"))
    low, high = (None if None in ends else sum(end or 0.0 for end in ends) for ends in (lows, highs))
    return None if low is None or high is None else (low, high)


def predicted_memory(stage: Stage) -> float | None:
    """The bytes of memory that a step was predicted to take."""
    return number(mapping(stage.prediction.get("predicted")).get("memory"))
