"""Where the batches of each kind of stage come from."""

from collections.abc import Callable
from functools import partial

from fledge.objective.policy import PolicyObjective
from fledge.recipe.sections.policy import PolicySettings
from fledge.tokenizer import Tokenizer
from fledge.training.batch_source import BatchSource
from fledge.training.context import MakeSource, TrainContext, dataset_source
from fledge.training.rollout import RewardTable
from fledge.training.rollout_source import RolloutInputs, RolloutSource


def source_maker(tokenizer: Tokenizer, rewards: RewardTable | None) -> MakeSource:
    """The function that makes the source of a stage: of its data's rows, or, with `rewards`, of answers to its prompts."""
    return dataset_source if rewards is None else partial(rollout_source, tokenizer, rewards)


def rollout_source(
    tokenizer: Tokenizer, rewards: RewardTable, context: TrainContext, micro_batch_size: int, stop: Callable[[], bool]
) -> BatchSource:
    """The source of answers that the model of a policy stage draws."""
    assert isinstance(context.stage, PolicySettings)
    assert isinstance(context.objective, PolicyObjective)
    inputs = RolloutInputs(
        stage=context.stage,
        data=context.data,
        horizon=context.horizon,
        model=context.model,
        objective=context.objective,
        tokenizer=tokenizer,
        rewards=rewards,
        seed=context.seed,
        ranks=context.ranks,
        stop_requested=stop,
    )
    return RolloutSource(inputs, micro_batch_size)
