"""From a model and prompts to scores and samples."""

from fledge.evaluate.samples import Sample, answer_conversations, sample

__all__ = ["Sample", "answer_conversations", "sample"]
