"""Recipes of grpo stages: short forms, defaults that follow from other keys, and what is refused."""

from typing import Any

import pytest

from fledge.errors import FledgeError
from fledge.recipe import Recipe, load_recipe, recipe_from_dict
from fledge.recipe.schema import GrpoStage
from tests.support import markdown


def stage_of(**changes: Any) -> GrpoStage:
    """A grpo stage with these keys."""
    recipe = recipe_from_dict(tree(**changes))
    stage = recipe.stages["grpo"]
    assert isinstance(stage, GrpoStage)
    assert recipe_from_dict(recipe.model_dump(mode="json")) == recipe
    return stage


def tree(**changes: Any) -> dict[str, Any]:
    """The recipe as plain data."""
    stage = {"data": {"train": "rows.jsonl"}, "rewards": "exact_match", **changes}
    return {"model": {"path": "model"}, "stages": {"grpo": stage}}


def test_a_rule_alone_is_a_reward_and_a_function_implies_its_rule() -> None:
    rewards = stage_of(rewards=["valid_json", {"function": "rewards.text:brevity", "weight": -0.5}]).rewards
    assert [(one.rule, one.label, one.weight) for one in rewards] == [
        ("valid_json", "valid_json", 1.0),
        ("function", "brevity", -0.5),
    ]
    assert [one.label for one in stage_of(rewards="exact_match").rewards] == ["exact_match"]


def test_answers_are_evaluated_as_long_as_they_are_drawn_unless_they_are_switched_off() -> None:
    answers = stage_of(rollout={"max_new_tokens": 30}).evaluation.generated_answers
    assert answers is not None and answers.max_new_tokens == 30
    assert stage_of(evaluation={"generated_answers": None}, metric_for_best_model="loss").evaluation.generated_answers is None
    assert stage_of().metric_for_best_model == "reward" and stage_of().data.train_on_turns == "last"


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"rewards": "regex"}, "the rule regex needs pattern"),
    ({"rewards": []}, "rewards: .* should have at least 1 item"),
    ({"rewards": {"rule": "length"}}, "the rule length needs min_tokens, max_tokens or both"),
    ({"rewards": {"rule": "length", "min_tokens": 5, "max_tokens": 3}}, "min_tokens 5 is above max_tokens 3"),
    ({"rewards": {"rule": "regex", "pattern": "("}}, "not a regular expression"),
    ({"rewards": {"rule": "exact_match", "pattern": "a"}}, "pattern belongs to the rule regex; this rule is exact_match"),
    ({"rewards": {"rule": "exact_match", "weight": 0}}, "a reward of weight 0 has no effect"),
    ({"rewards": {"function": "brevity"}}, "write MODULE:FUNCTION, such as my_rewards:brevity"),
    ({"rewards": ["exact_match", "exact_match"]}, "two rewards are called 'exact_match'"),
    ({"rewards": {"rule": "length", "max_tokns": 3}}, r"rewards\.max_tokns|rewards\.0\.max_tokns"),
    ({"rollout": {"num_generations": 1}}, "greater than or equal to 2"),
    ({"rollout": {"max_new_tokens": 600}}, "rollout.max_new_tokens 600 is above data.max_seq_len 512"),
    ({"batch": {"tokens_per_step": 1024}}, "an update of grpo is a number of prompts"),
    ({"duration": "20M tokens"}, "write epochs or steps"),
    ({"data": {"train": "rows.jsonl", "train_on_turns": "all"}}, "train_on_turns: all has no effect"),
    (
        {"guards": {"validation_increase": "warn"}},
        "guards.validation_increase belongs to a stage of kind pretrain or sft or preference or kto or reward$",
    ),
    ({"evaluation": {"generated_answers": None}}, "metric_for_best_model: reward is a score of answers"),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=[message[:40] for _, message in REFUSED])
def test_what_cannot_work_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(FledgeError, match=message):
        recipe_from_dict(tree(**changes))


def test_only_stages_with_rewards_choose_by_them_and_sharded_models_do_not_draw() -> None:
    with pytest.raises(FledgeError, match="reward is the mean of the rewards of a grpo stage"):
        stage = {"data": {"train": "x"}, "metric_for_best_model": "reward", "evaluation": {"generated_answers": {}}}
        recipe_from_dict({"stages": {"sft": stage}})
    with pytest.raises(FledgeError, match="draws answers, which a sharded model cannot yet"):
        recipe_from_dict({**tree(), "runtime": {"parallelism": "fsdp"}})


def test_the_recipe_for_the_quickstart_loads() -> None:
    recipe: Recipe = load_recipe([str(markdown.ROOT / "recipes" / "grpo-quickstart.yaml")])
    assert isinstance(recipe.stages["grpo"], GrpoStage)
