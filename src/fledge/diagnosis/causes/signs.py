"""What all causes need: numbers read from a case, means of a series, limits by confidence, and signs in one form."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from fledge.diagnosis.case import Case
from fledge.diagnosis.cause import Sign
from fledge.diagnosis.measures import SAMPLED_ANSWERS
from fledge.diagnosis.thresholds import threshold, thresholds
from fledge.findings import Confidence, Finding, Severity
from fledge.training_log import Series

CONFIDENCES: tuple[Confidence, ...] = ("certain", "likely", "possible")


def as_number(value: Any) -> float | None:
    """A value as a finite number; None if it is none."""
    if not isinstance(value, (bool, int, float, np.number, np.bool_)):
        return None
    number = float(value)
    return number if math.isfinite(number) else None


def number(case: Case, name: str) -> float | None:
    """A figure of the case as a finite number; None if it was not measured or is no such number."""
    return as_number(case.value(name))


def count(case: Case, name: str) -> tuple[int, tuple[str, ...]] | None:
    """A figure that counts things or lists their names: how many there are, and the names where they are known. None if it was
    not measured, or if nothing in the list is a name: text that is not empty, or a whole number."""
    value = case.value(name)
    if isinstance(value, Mapping):
        value = list(value)
    if isinstance(value, (list, tuple, set, frozenset)):
        names = tuple(sorted(str(one) for one in value if (one and isinstance(one, str)) or type(one) is int))
        return (len(names), names) if names or not value else None
    found = as_number(value)
    return None if found is None else (max(0, round(found)), ())


def other_setting(case: Case, *names: str) -> Any:
    """The first setting without a field of its own that has one of these names, alone or as the last part of a dotted name;
    None if there is none."""
    for key, value in case.settings.other.items():
        if str(key).rsplit(".", 1)[-1].lower() in names:
            return value
    return None


def updates(case: Case) -> float | None:
    """The step of the last logged training loss: how many updates the log covers. None without a loss, or where steps count
    other things."""
    losses = case.log.series.get("train/loss")
    counts = case.log.step_unit in ("update", "unknown")
    return float(losses.steps[-1]) if counts and losses is not None and len(losses) else None


def probed_updates(case: Case) -> float | None:
    """How many updates the weights had that the probes have looked at, by the log."""
    done = updates(case)
    return done if done is None or case.probed_step is None else min(done, case.probed_step)


def _part(size: int, share: float) -> int:
    return max(1, round(size * share))


def early(series: Series) -> float:
    """The mean of the first quarter of a series (at least one point)."""
    return float(np.mean(series.values[: _part(len(series), threshold("signs", "part"))]))


def late(series: Series) -> float:
    """The mean of the last quarter of a series (at least one point)."""
    return float(np.mean(series.values[-_part(len(series), threshold("signs", "part")) :]))


def late_level(case: Case, name: str) -> float | None:
    """The mean of the last quarter of a figure of the log; None if the log has fewer points than a mean needs."""
    series = case.log.get(name)
    return late(series) if series is not None and len(series) >= threshold("signs", "fewest_points") else None


def is_flat(series: Series) -> bool:
    """Whether the mean of the last quarter is, within a small share, that of the quarter before."""
    size = len(series)
    if size < threshold("signs", "fewest_points"):
        return False
    part = _part(size, threshold("signs", "part"))
    last, before = float(np.mean(series.values[-part:])), float(np.mean(series.values[-2 * part : -part]))
    return abs(last - before) <= threshold("signs", "flat") * max(abs(before), 1e-12)


def span(*series: Series | None) -> tuple[float, float] | None:
    """The first and last step of the series that are there; None without any."""
    there = [one for one in series if one is not None and len(one)]
    return (min(float(one.steps[0]) for one in there), max(float(one.steps[-1]) for one in there)) if there else None


def above(section: str, name: str, value: float | None) -> Confidence | None:
    """How sure a value is that should be small: the strongest confidence whose limit, `<name>_<confidence>` of a section of the
    thresholds, it reaches. None below all limits, or without a value."""
    return None if value is None else _reached(section, name, lambda limit: value >= limit)


def below(section: str, name: str, value: float | None) -> Confidence | None:
    """How sure a value is that should be large: the strongest confidence at or below whose limit it is; see `above`."""
    return None if value is None else _reached(section, name, lambda limit: value <= limit)


def _reached(section: str, name: str, is_past: Callable[[float], bool]) -> Confidence | None:
    limits = thresholds()[section]
    for confidence in CONFIDENCES:
        limit = limits.get(f"{name}_{confidence}")
        if limit is not None and is_past(limit):
            return confidence
    return None


def strongest(*confidences: Confidence | None) -> Confidence | None:
    """The strongest of some confidences; None where all are None."""
    return next((one for one in CONFIDENCES if one in confidences), None)


def at_most(limit: Confidence, confidence: Confidence | None) -> Confidence | None:
    """A confidence, weakened to `limit` where it is stronger."""
    if confidence is None:
        return None
    return CONFIDENCES[max(CONFIDENCES.index(limit), CONFIDENCES.index(confidence))]


def beyond_chance(share: float, own: float) -> bool:
    """Whether a share of the sampled answers is further above the share in the data, `own`, than chance makes it: a model that
    answers as the data do has that share in the mean, and a few answers vary around it."""
    return share > own + threshold("answers", "chance_errors") * math.sqrt(max(0.0, own * (1 - own)) / SAMPLED_ANSWERS)


def patch(case: Case, **values: Any) -> dict[str, Any] | None:
    """A change of the recipe of the stage, from keys with `__` in place of dots; None where a value is not known. Where a log
    has no stages, the kind of stage stands for its name, so that the change can be told in the words of another trainer."""
    if any(value is None for value in values.values()):
        return None
    stage = case.log.stage or case.kind or "train"
    return {f"stages.{stage}.{key.replace('__', '.')}": value for key, value in values.items()}


def sign(
    cause: str,
    confidence: Confidence,
    message: str,
    *,
    hint: str,
    proof: str,
    evidence: Mapping[str, Any],
    severity: Severity = "error",
    patch: Mapping[str, Any] | None = None,
    alternatives: Mapping[str, str] | None = None,
    steps: tuple[float, float] | None = None,
) -> Sign:
    """The sign of a cause; its strength follows from the confidence. A severity of `error` becomes `warning` where it is only
    possible. Evidence that is None is left out."""
    finding = Finding(
        check=cause,
        severity="warning" if confidence == "possible" and severity == "error" else severity,
        message=message,
        hint=hint,
        evidence={name: value for name, value in evidence.items() if value is not None},
        patch=patch,
        confidence=confidence,
    )
    strength = threshold("signs", f"strength_{confidence}")
    return Sign(finding=finding, strength=strength, alternatives=alternatives or {}, proof=proof, steps=steps)
