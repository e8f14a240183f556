"""Evaluation: metrics of answers, evaluation sets and their results, samples of fixed prompts, and prompt tests with rules."""

from typing import TYPE_CHECKING

from fledge.lazy import lazy_names

if TYPE_CHECKING:
    from fledge.evaluate.samples import ChatAnswer, Sample, chat_batch, sample

__all__ = ["ChatAnswer", "Sample", "chat_batch", "sample"]

__getattr__, __dir__ = lazy_names(__name__, {"fledge.evaluate.samples": ("ChatAnswer", "Sample", "chat_batch", "sample")})
