"""Settings that follow from others: rows of an update, updates of a run, warm-up from its share."""

from dataclasses import replace
from typing import Any

from fledge.training_log.records import DERIVED, TrainingSettings

ASSUMED = "assumed"
ONE_PROCESS = "The number of processes is not known: one is assumed for the rows of an update."
ONE_MICRO_BATCH = "The accumulation steps are not known: one is assumed for the rows of an update."


def derived(settings: TrainingSettings) -> TrainingSettings:
    """The settings with what follows from them. What had to be assumed stands in `other["assumed"]`, as sentences. What was
    derived before is derived anew, so that applying it twice gives the same, and later settings count."""
    settings = _as_written(settings)
    found: dict[str, tuple[float, str]] = {}
    assumed = list(settings.other.get(ASSUMED, ()))
    for rule in (_batch, _tokens, _lengths, _warmup):
        found.update(rule(replace(settings, **{name: value for name, (value, _) in found.items()}), assumed))
    other = {name: value for name, value in settings.other.items() if name != ASSUMED}
    if assumed:
        other[ASSUMED] = tuple(dict.fromkeys(assumed))
    origin = {**settings.origin, **{name: f"{DERIVED}{how}" for name, (_, how) in found.items()}}
    return replace(settings, **{name: value for name, (value, _) in found.items()}, other=other, origin=origin)


def _as_written(settings: TrainingSettings) -> TrainingSettings:
    """The settings without what was derived, and without what was assumed for that."""
    names = [name for name, where in settings.origin.items() if where.startswith(DERIVED)]
    origin = {name: where for name, where in settings.origin.items() if name not in names}
    sentences = [one for one in settings.other.get(ASSUMED, ()) if one not in (ONE_PROCESS, ONE_MICRO_BATCH)]
    other = {**settings.other, ASSUMED: tuple(sentences)}
    cleared: dict[str, Any] = dict.fromkeys(names)
    return replace(settings, **cleared, origin=origin, other=other)


Found = dict[str, tuple[float, str]]


def _batch(settings: TrainingSettings, assumed: list[str]) -> Found:
    micro, accumulation, processes = settings.micro_batch_rows, settings.accumulation_steps, settings.processes
    rows = settings.batch_rows
    if not micro:
        return {}
    if rows is None:
        if accumulation is None and processes is None:
            return {}
        if processes is None:
            assumed.append(ONE_PROCESS)
        if accumulation is None:
            assumed.append(ONE_MICRO_BATCH)
        count = micro * (accumulation or 1) * (processes or 1)
        return {"batch_rows": (count, "rows of a micro-batch × accumulation × processes")}
    if processes is None and accumulation and _whole(rows / (micro * accumulation)):
        return {"processes": (rows / (micro * accumulation), "rows of an update ÷ rows of a micro-batch ÷ accumulation")}
    if accumulation is None and processes and _whole(rows / (micro * processes)):
        return {"accumulation_steps": (rows / (micro * processes), "rows of an update ÷ rows of a micro-batch ÷ processes")}
    return {}


def _whole(value: float) -> bool:
    return value >= 1 and abs(value - round(value)) < 1e-9


def _tokens(settings: TrainingSettings, assumed: list[str]) -> Found:
    """Tokens of an update, where its rows are packed full."""
    if settings.batch_tokens is None and settings.batch_rows and settings.context and settings.other.get("packed") is True:
        return {"batch_tokens": (settings.batch_rows * settings.context, "rows of an update × positions")}
    return {}


def _lengths(settings: TrainingSettings, assumed: list[str]) -> Found:
    """Updates or epochs from each other and the rows of an update."""
    rows, batch, epochs, steps = settings.rows, settings.batch_rows, settings.epochs, settings.steps
    if not batch or not rows:
        return {}
    if steps is None and epochs:
        return {"steps": (float(round(rows * epochs / batch)), "epochs × examples ÷ rows of an update")}
    if epochs is None and steps:
        return {"epochs": (steps * batch / rows, "updates × rows of an update ÷ examples")}
    return {}


def _warmup(settings: TrainingSettings, assumed: list[str]) -> Found:
    share = settings.other.get("warmup_share")
    if settings.warmup_steps is None and isinstance(share, int | float) and settings.steps:
        return {"warmup_steps": (float(round(share * settings.steps)), "share of warm-up × updates")}
    return {}
