"""Which differences a run may go on with."""

from typing import Any

import pytest

from fledge.recipe import Recipe, recipe_from_dict
from fledge.recipe.load import merge
from fledge.recipe.resume_policy import compare_recipes

DATA = {"data": {"train": "rows.jsonl"}, "batch": {"micro_batch_size": 8, "gradient_accumulation_steps": 2}}
TREE = {"stages": {"pretrain": DATA, "sft": DATA, "dpo": DATA}}


def recipe(**changes: Any) -> Recipe:
    return recipe_from_dict(merge(TREE, changes))


def stage(name: str, **changes: Any) -> dict[str, Any]:
    return {"stages": {name: changes}}


CASES = [
    ({"logging": {"every_steps": 3}}, "applied"),
    ({"generation_samples": {"max_new_tokens": 9}}, "applied"),
    ({"output": "elsewhere"}, "applied"),
    (stage("pretrain", checkpoint={"every_steps": 7}), "applied"),
    (stage("pretrain", guards={"divergence": "stop"}), "applied"),
    (stage("dpo", beta=0.3, optimizer={"learning_rate": 1e-6}), "applied"),  # has not begun
    (stage("dpo", data={"train": "others.jsonl"}), "applied"),
    (stage("pretrain", optimizer={"learning_rate": 1e-4}), "needs_allow"),
    (stage("pretrain", schedule={"warmup": 0.1}), "needs_allow"),
    (stage("pretrain", duration="4 epochs"), "needs_allow"),
    (
        stage("pretrain", batch={"micro_batch_size": 4, "gradient_accumulation_steps": 4}),
        "needs_allow",
    ),  # the same update, divided otherwise
    ({"runtime": {"threads": 1}}, "needs_allow"),
    (stage("pretrain", batch={"gradient_accumulation_steps": 4}), "rejected"),
    (stage("pretrain", optimizer={"name": "adamw"}), "rejected"),
    (stage("pretrain", data={"train": "others.jsonl"}), "rejected"),
    (stage("pretrain", ema={"decay": 0.9}), "rejected"),
    ({"seed": 7}, "rejected"),
    ({"model": {"hidden_size": 64}}, "rejected"),
    ({"tokenizer": {"vocab_size": 999}}, "rejected"),
]


@pytest.mark.parametrize(("change", "kind"), CASES)
def test_each_key_is_judged(change: dict[str, Any], kind: str) -> None:
    changes = compare_recipes(recipe(), recipe(**change), ["pretrain"])
    found = {name: getattr(changes, name) for name in ("applied", "needs_allow", "rejected")}
    assert found.pop(kind) and not any(found.values())


def test_what_is_asked_for_is_taken_and_the_rest_is_not() -> None:
    new = recipe(**stage("pretrain", optimizer={"learning_rate": 1e-4, "max_grad_norm": 0.5}, schedule={"warmup": 0.1}))
    some = compare_recipes(recipe(), new, ["pretrain"], ["stages.pretrain.optimizer.learning_rate", "stages.pretrain.schedule"])
    assert [change.key for change in some.applied] == [
        "stages.pretrain.optimizer.learning_rate",
        "stages.pretrain.schedule.warmup",
    ]
    assert [str(change) for change in some.needs_allow] == ["stages.pretrain.optimizer.max_grad_norm: 1.0 -> 0.5"]
    whole = compare_recipes(recipe(), new, ["pretrain"], ["stages.pretrain.optimizer", "stages.pretrain.schedule"])
    assert len(whole.applied) == 3 and not whole.needs_allow


def test_a_prefix_is_a_whole_key() -> None:
    new = recipe(**stage("pretrain", duration="4 epochs"))
    assert compare_recipes(recipe(), new, ["pretrain"], ["stages.pretrain.len"]).needs_allow


def test_what_is_impossible_cannot_be_asked_for() -> None:
    assert compare_recipes(recipe(), recipe(seed=7), ["pretrain"], ["seed"]).rejected


def test_stages_that_have_begun_stay_in_their_order() -> None:
    new = recipe_from_dict({"stages": {"sft": DATA, "pretrain": DATA, "dpo": DATA}})
    assert compare_recipes(recipe(), new, ["pretrain"]).rejected
    shorter = recipe_from_dict({"stages": {"pretrain": DATA, "dpo": DATA}})
    changes = compare_recipes(recipe(), shorter, ["pretrain"])
    assert changes.applied and not changes.rejected


def test_a_preference_stage_that_has_begun_keeps_its_loss_while_its_beta_may_be_asked_for() -> None:
    """The losses have no common scale: the best evaluation so far would mean nothing."""
    changes = compare_recipes(recipe(), recipe(**stage("dpo", loss_type="ipo", beta=0.3)), ["pretrain", "sft", "dpo"])
    assert [change.key for change in changes.rejected] == ["stages.dpo.loss_type"]
    assert [change.key for change in changes.needs_allow] == ["stages.dpo.beta"]
