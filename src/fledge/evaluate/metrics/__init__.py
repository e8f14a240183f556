"""Metrics of answers: what each one is called, how the value of one answer is made, and how answers make that of a set."""

from fledge.evaluate.metrics.answer import Answer
from fledge.evaluate.metrics.likelihood import with_gains
from fledge.evaluate.metrics.table import (
    METRICS,
    AnswerMetric,
    check_metrics,
    measure_answers,
    measure_set,
    needs_gain,
    needs_sacrebleu,
)

__all__ = [
    "METRICS",
    "Answer",
    "AnswerMetric",
    "check_metrics",
    "measure_answers",
    "measure_set",
    "needs_gain",
    "needs_sacrebleu",
    "with_gains",
]
