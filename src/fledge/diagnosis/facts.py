"""What is known about the size of a run, from its settings and its log together."""

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from fledge.diagnosis.case import Case
from fledge.diagnosis.curves.loss import training_loss
from fledge.diagnosis.thresholds import threshold
from fledge.training_log.records import Series

TOKEN_KINDS = frozenset({None, "pretrain", "sft"})
"""Kinds of stage whose loss is in nats a token."""
FRESH_LOSS, TRAINED_LOSS = 0.9, 0.75  # first loss ÷ ln(vocabulary), above and below which the start is told
LAYERS_PER_WIDTH = 1 / 64  # of usual models, to tell a width from a number of parameters
FEW_COUNTS = 8  # counts of tokens, of which a rise alone does not tell that they are a running total
FALLS = 0.05  # share of the steps at which a running total may begin anew
UPDATES = frozenset({"update", "unknown"})
"""Units of the steps of a log that are taken for updates."""


def end_of_loss(case: Case) -> Literal["falls", "stands still", "rises"] | None:
    """What the training loss does over the last half of the log, beyond its noise; None where it has too few points."""
    z = case.value("curve/late_z")
    if z is None:
        return None
    limit = threshold("facts", "trend_z")
    return "falls" if z <= -limit else "rises" if z >= limit else "stands still"


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The size of a run; None: not known. `steps`: updates up to the end of the log; `planned_steps`: of the whole stage;
    `progress`: their ratio; `is_done`: whether nothing more will come; `is_fresh`: whether it began with fresh weights;
    `batch_tokens`, `tokens`: positions of an update and of the whole stage; `epochs`: as read or planned; `rows_per_update`.
    """

    steps: float | None
    planned_steps: float | None
    progress: float | None
    is_done: bool
    is_fresh: bool | None
    log_vocabulary: float | None
    width: float | None
    parameters: float | None
    batch_tokens: float | None
    rows_per_update: float | None
    tokens: float | None
    epochs: float | None
    updates_per_epoch: float | None
    has_adapter: bool

    @property
    def whole_steps(self) -> float | None:
        """The steps of the whole stage: as planned, else as far as the log goes."""
        return self.planned_steps or self.steps


def facts_of(case: Case) -> Facts:
    """The facts of a case."""
    settings, log = case.settings, case.log
    losses = training_loss(log)
    steps = float(losses.steps[-1]) if losses is not None and log.step_unit in UPDATES else None
    planned = settings.steps
    progress = steps / planned if steps is not None and planned else None
    vocabulary = settings.vocab_size or case.value("data/vocab_size")
    log_vocabulary = math.log(vocabulary) if isinstance(vocabulary, int | float) and vocabulary > 1 else None
    batch_tokens = _batch_tokens(case, steps)
    whole = planned or steps
    return Facts(
        steps=steps,
        planned_steps=planned,
        progress=progress,
        is_done=bool(log.ended) or (progress is not None and progress >= threshold("facts", "done")),
        is_fresh=_is_fresh(case, log_vocabulary),
        log_vocabulary=log_vocabulary,
        width=settings.hidden_size or _width(settings.parameters),
        parameters=settings.parameters,
        batch_tokens=batch_tokens,
        rows_per_update=settings.batch_rows,
        tokens=settings.tokens or (batch_tokens * whole if batch_tokens and whole else None),
        epochs=settings.epochs or case.value("curve/epochs_read"),
        updates_per_epoch=_updates_per_epoch(case, whole),
        has_adapter=settings.method not in (None, "full") or bool(settings.adapter_rank),
    )


def _is_fresh(case: Case, log_vocabulary: float | None) -> bool | None:
    """Whether the run began with fresh weights: as it says, else from its first loss against that of a uniform guess."""
    if case.settings.initial is not None:
        return case.settings.initial == "fresh"
    first, step = case.value("curve/first_loss"), case.value("curve/first_step")
    if first is None or log_vocabulary is None or case.kind not in TOKEN_KINDS:
        return None
    share = first / log_vocabulary
    if share >= FRESH_LOSS:
        return True
    return False if share <= TRAINED_LOSS and step is not None and step <= threshold("facts", "early_step") else None


def _width(parameters: float | None) -> float | None:
    """The hidden size that a usual model of so many parameters has: N = 12 · layers · width²."""
    return None if not parameters else (parameters / 12 / LAYERS_PER_WIDTH) ** (1 / 3)


def _batch_tokens(case: Case, steps: float | None) -> float | None:
    settings = case.settings
    if settings.batch_tokens:
        return settings.batch_tokens
    if settings.tokens and settings.steps:
        return settings.tokens / settings.steps
    tokens = case.log.get("train/tokens")
    if tokens is not None and steps and (logged := tokens_of_update(tokens)):
        return logged
    return settings.batch_rows * settings.context if settings.batch_rows and settings.context else None


def tokens_of_update(series: Series) -> float | None:
    """Tokens of an update from a column of tokens: of a running total its rise from step to step, else its median. None where
    a single point or a few do not tell which of them it is."""
    known = np.append(True, np.diff(series.steps) > 0)
    steps, values = series.steps[known], series.values[known]
    if len(values) < 2:
        return None
    rises = np.diff(values)
    is_few, doubles = len(values) < FEW_COUNTS, bool(values[-1] >= 2 * values[0])
    grows = (rises > 0).mean() >= 0.5 or (doubles and np.median(values) <= 0.75 * values[-1])
    if grows and (rises < 0).mean() <= FALLS and (doubles or not is_few):
        kept = rises >= 0  # a total that begins anew where a run went on falls there
        found = float(rises[kept].sum() / np.diff(steps)[kept].sum())
    elif is_few and rises.min() >= 0 < rises.max():
        return None
    else:
        found = float(np.median(values))
    return found if found > 0 else None


def _updates_per_epoch(case: Case, whole: float | None) -> float | None:
    """Updates of an epoch: from the whole stage, else from what was read, else from rows, which are no updates where several
    are packed into one."""
    settings = case.settings
    if whole and settings.epochs:
        return whole / settings.epochs
    read, last = case.value("curve/epochs_read"), case.value("curve/last_step")
    if read and last and read > 0:
        return last / read
    return settings.rows / settings.batch_rows if settings.rows and settings.batch_rows else None
