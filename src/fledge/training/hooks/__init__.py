"""The work between two steps, besides the guards: evaluation, evaluation sets, prompt tests, checkpoints."""

from fledge.training.hooks.checkpointing import Checkpointing
from fledge.training.hooks.evaluation import Evaluation
from fledge.training.hooks.evaluation_sets import EvaluationSets, RunSets
from fledge.training.hooks.hook import Hook, HookContext
from fledge.training.hooks.prompt_tests import PromptTests, RunPromptTests

__all__ = [
    "Checkpointing",
    "Evaluation",
    "EvaluationSets",
    "Hook",
    "HookContext",
    "PromptTests",
    "RunPromptTests",
    "RunSets",
]
