"""Logs of training runs, of fledge and of other trainers, read into one form."""

from fledge.training_log.records import Series, TrainingLog, TrainingSettings

__all__ = ["Series", "TrainingLog", "TrainingSettings"]
