"""The reward models of a grpo stage: their sizes, whether answers are too long for them, and whether they have changed."""

from collections.abc import Callable, Mapping

from fledge.data import PackedDataset, StageDataset
from fledge.errors import FledgeError
from fledge.evaluate.generated import last_question
from fledge.model.cost import ModelCost
from fledge.model.loading import describe_model
from fledge.model.locate import locate_model
from fledge.recipe.earlier_stages import reward_stages_before
from fledge.recipe.schema import Recipe
from fledge.recipe.sections.policy import PolicySettings
from fledge.run import StageDirectory, read_json, write_json
from fledge.tokenizer import Tokenizer
from fledge.training.rollout import RewardTable


def reward_model_costs(recipe: Recipe, name: str, cost_of_stage: Callable[[str], ModelCost]) -> dict[str, ModelCost]:
    """The sizes of the reward models of a stage, by reward. `cost_of_stage`: those of the model of a stage. Raises FledgeError
    for what is no reward model."""
    stage, earlier = recipe.stages[name], reward_stages_before(recipe, name)
    models = {one.label: one.model for one in stage.rewards} if isinstance(stage, PolicySettings) else {}
    return {
        label: cost_of_stage(model)
        if model in earlier
        else describe_model(locate_model(model), purpose="rewards").cost.of_reward_model()
        for label, model in models.items()
        if model is not None
    }


def check_positions(
    costs: Mapping[str, ModelCost], stage: PolicySettings, name: str, data: StageDataset, tokenizer: Tokenizer
) -> None:
    """Raise FledgeError if a prompt with its answer can be longer than a reward model of the stage has positions."""
    for label, cost in costs.items():
        positions = cost.config.max_position_embeddings
        for key, needed in _longest(stage, data, tokenizer, above=positions).items():
            raise FledgeError(
                f"a prompt with its answer can have {needed:,} tokens, and the reward model has {positions:,} positions",
                where=f"stages.{name}.rewards.{label}.model",
                hint=f"write a smaller stages.{name}.{key}.max_new_tokens, or stages.{name}.data.max_seq_len: {positions - 1}",
            )


def _longest(stage: PolicySettings, data: StageDataset, tokenizer: Tokenizer, above: int) -> dict[str, int]:
    """The most tokens of a prompt with its answer, by the section that limits the answer, where they are more than `above`."""
    answers = stage.evaluation.generated_answers
    found = {}
    if data.train.packed_length + 1 > above:
        most = _longest_prompt(data.train, tokenizer) + stage.rollout.max_new_tokens
        found["rollout"] = min(data.train.packed_length + 1, most)
    if answers is not None and data.validation is not None and data.validation.packed_length + answers.max_new_tokens > above:
        found["evaluation.generated_answers"] = _longest_prompt(data.validation, tokenizer) + answers.max_new_tokens
    return {key: tokens for key, tokens in found.items() if tokens > above}


def _longest_prompt(data: PackedDataset, tokenizer: Tokenizer) -> int:
    questions = (last_question(data.examples, number, tokenizer.stop_ids) for number in range(data.examples.count))
    return max((len(question[0]) for question in questions if question is not None), default=0)


def check_reward_models(directory: StageDirectory, rewards: RewardTable | None, *, begins: bool) -> None:
    """Record which weights the reward models of a stage have when it `begins`. Raises FledgeError if a stage that has begun
    would go on with other ones, so that its rewards would not be those of an uninterrupted run."""
    if rewards is None or not rewards.models:
        return
    file = directory.root / "reward_models.json"
    if begins or not file.exists():
        write_json(file, dict(rewards.models))
        return
    recorded = read_json(file, dict[str, str])
    changed = [name for name, weights in rewards.models.items() if recorded.get(name) != weights]
    if changed:
        raise FledgeError(
            f"the reward model of '{changed[0]}' has other weights than when this stage began",
            where=str(file),
            hint="put it back as it was, or start under another --name",
        )
