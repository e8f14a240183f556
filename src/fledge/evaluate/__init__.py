"""Evaluation by generated answers: samples of fixed prompts, and prompt tests with rules."""

from fledge.evaluate.samples import ChatAnswer, Sample, chat_batch, sample

__all__ = ["ChatAnswer", "Sample", "chat_batch", "sample"]
