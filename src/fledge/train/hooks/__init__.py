"""What a stage does between two steps, besides guarding: evaluation, prompt tests, checkpoints."""

from fledge.train.hooks.checkpointing import Checkpointing
from fledge.train.hooks.evaluation import Evaluation, evaluation_interval
from fledge.train.hooks.hook import Hook, HookContext
from fledge.train.hooks.prompt_tests import PromptTests, RunPromptTests

__all__ = [
    "Checkpointing",
    "Evaluation",
    "Hook",
    "HookContext",
    "PromptTests",
    "RunPromptTests",
    "evaluation_interval",
]
