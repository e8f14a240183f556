"""Logs of training runs, of fledge and of other trainers, read into one form."""

from typing import TYPE_CHECKING

from fledge.lazy import lazy_names
from fledge.training_log.kinds import guess_kind
from fledge.training_log.records import Series, TrainingLog, TrainingSettings

if TYPE_CHECKING:
    from fledge.training_log.read import read_logs, with_settings
    from fledge.training_log.settings import read_settings

__all__ = ["Series", "TrainingLog", "TrainingSettings", "guess_kind", "read_logs", "read_settings", "with_settings"]

__getattr__, __dir__ = lazy_names(
    __name__,
    {
        "fledge.training_log.read": ("read_logs", "with_settings"),
        "fledge.training_log.settings": ("read_settings",),
    },
)
