"""From a model and prompts to scores and samples."""

from fledge.evaluate.samples import Sample, chat_batch, sample

__all__ = ["Sample", "chat_batch", "sample"]
