"""Which changes of a recipe a resumed run accepts."""

from typing import Any

import pytest

from fledge.recipe import Recipe, recipe_from_dict
from fledge.recipe.load import merge
from fledge.recipe.resume_policy import compare_recipes

DATA = {"data": {"train": "rows.jsonl"}, "batch": {"micro_batch_size": 8, "gradient_accumulation_steps": 2}}
TREE = {"stages": {"pretrain": DATA, "sft": DATA, "dpo": DATA}}


def recipe(**changes: Any) -> Recipe:
    """The recipe of the run with these changes."""
    return recipe_from_dict(merge(TREE, changes))


def stage(name: str, **changes: Any) -> dict[str, Any]:
    """Changes of one stage."""
    return {"stages": {name: changes}}


CASES = [
    ({"logging": {"every_steps": 3}}, "applied"),
    ({"generation_samples": {"max_new_tokens": 9}}, "applied"),
    ({"output": "elsewhere"}, "applied"),
    (stage("pretrain", checkpoint={"every_steps": 7}), "applied"),
    (stage("pretrain", guards={"divergence": "stop"}), "applied"),
    (stage("pretrain", doctor=False), "applied"),
    (stage("dpo", beta=0.3, optimizer={"learning_rate": 1e-6}), "applied"),  # has not started
    (stage("dpo", data={"train": "others.jsonl"}), "applied"),
    (stage("pretrain", optimizer={"learning_rate": 1e-4}), "needs_allow"),
    (stage("pretrain", schedule={"warmup": 0.1}), "needs_allow"),
    (stage("pretrain", duration="4 epochs"), "needs_allow"),
    (
        stage("pretrain", batch={"micro_batch_size": 4, "gradient_accumulation_steps": 4}),
        "needs_allow",
    ),  # equal rows per step in other micro-batches
    (stage("pretrain", batch={"merge_micro_batches": True}), "needs_allow"),
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
def test_each_changed_key_is_classified(change: dict[str, Any], kind: str) -> None:
    changes = compare_recipes(recipe(), recipe(**change), ["pretrain"])
    classes = {name: getattr(changes, name) for name in ("applied", "needs_allow", "rejected")}
    assert classes.pop(kind) and not any(classes.values())


def test_allowed_changes_are_applied_and_others_still_need_permission() -> None:
    new = recipe(**stage("pretrain", optimizer={"learning_rate": 1e-4, "max_grad_norm": 0.5}, schedule={"warmup": 0.1}))
    partly_allowed = compare_recipes(
        recipe(), new, ["pretrain"], ["stages.pretrain.optimizer.learning_rate", "stages.pretrain.schedule"]
    )
    assert [change.key for change in partly_allowed.applied] == [
        "stages.pretrain.optimizer.learning_rate",
        "stages.pretrain.schedule.warmup",
    ]
    assert [str(change) for change in partly_allowed.needs_allow] == ["stages.pretrain.optimizer.max_grad_norm: 1.0 -> 0.5"]
    all_allowed = compare_recipes(recipe(), new, ["pretrain"], ["stages.pretrain.optimizer", "stages.pretrain.schedule"])
    assert len(all_allowed.applied) == 3 and not all_allowed.needs_allow


def test_allowed_prefix_must_end_at_a_key() -> None:
    new = recipe(**stage("pretrain", duration="4 epochs"))
    assert compare_recipes(recipe(), new, ["pretrain"], ["stages.pretrain.dur"]).needs_allow


def test_rejected_change_cannot_be_allowed() -> None:
    assert compare_recipes(recipe(), recipe(seed=7), ["pretrain"], ["seed"]).rejected


def test_started_stages_must_keep_their_order() -> None:
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
