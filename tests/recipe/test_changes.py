"""Which differences a run may go on with."""

from typing import Any

import pytest

from fledge.recipe import Recipe, recipe_from_dict
from fledge.recipe.changes import judge
from fledge.recipe.load import merge

DATA = {"data": {"train": "rows.jsonl"}, "batch": {"micro": 8, "accumulation": 2}}
TREE = {"stages": {"pretrain": DATA, "sft": DATA, "dpo": DATA}}


def recipe(**changes: Any) -> Recipe:
    return recipe_from_dict(merge(TREE, changes))


def stage(name: str, **changes: Any) -> dict[str, Any]:
    return {"stages": {name: changes}}


CASES = [
    ({"logging": {"every": 3}}, "taken"),
    ({"samples": {"max_new_tokens": 9}}, "taken"),
    ({"output": "elsewhere"}, "taken"),
    (stage("pretrain", checkpoint={"every": 7}), "taken"),
    (stage("pretrain", guards={"divergence": "stop"}), "taken"),
    (stage("dpo", beta=0.3, optimizer={"lr": 1e-6}), "taken"),  # has not begun
    (stage("dpo", data={"train": "others.jsonl"}), "taken"),
    (stage("pretrain", optimizer={"lr": 1e-4}), "on_request"),
    (stage("pretrain", schedule={"warmup": 0.1}), "on_request"),
    (stage("pretrain", length="4 epochs"), "on_request"),
    (stage("pretrain", batch={"micro": 4, "accumulation": 4}), "on_request"),  # the same update, divided otherwise
    ({"machine": {"threads": 1}}, "on_request"),
    (stage("pretrain", batch={"accumulation": 4}), "impossible"),
    (stage("pretrain", optimizer={"name": "adamw"}), "impossible"),
    (stage("pretrain", data={"train": "others.jsonl"}), "impossible"),
    (stage("pretrain", averaging={"decay": 0.9}), "impossible"),
    ({"seed": 7}, "impossible"),
    ({"model": {"hidden_size": 64}}, "impossible"),
    ({"tokenizer": {"vocab_size": 999}}, "impossible"),
]


@pytest.mark.parametrize(("change", "kind"), CASES)
def test_each_key_is_judged(change: dict[str, Any], kind: str) -> None:
    changes = judge(recipe(), recipe(**change), ["pretrain"])
    found = {name: getattr(changes, name) for name in ("taken", "on_request", "impossible")}
    assert found.pop(kind) and not any(found.values())


def test_what_is_asked_for_is_taken_and_the_rest_is_not() -> None:
    new = recipe(**stage("pretrain", optimizer={"lr": 1e-4, "clip": 0.5}, schedule={"warmup": 0.1}))
    some = judge(recipe(), new, ["pretrain"], ["stages.pretrain.optimizer.lr", "stages.pretrain.schedule"])
    assert [change.key for change in some.taken] == ["stages.pretrain.optimizer.lr", "stages.pretrain.schedule.warmup"]
    assert [str(change) for change in some.on_request] == ["stages.pretrain.optimizer.clip: 1.0 -> 0.5"]
    whole = judge(recipe(), new, ["pretrain"], ["stages.pretrain.optimizer", "stages.pretrain.schedule"])
    assert len(whole.taken) == 3 and not whole.on_request


def test_a_prefix_is_a_whole_key() -> None:
    new = recipe(**stage("pretrain", length="4 epochs"))
    assert judge(recipe(), new, ["pretrain"], ["stages.pretrain.len"]).on_request


def test_what_is_impossible_cannot_be_asked_for() -> None:
    assert judge(recipe(), recipe(seed=7), ["pretrain"], ["seed"]).impossible


def test_stages_that_have_begun_stay_in_their_order() -> None:
    new = recipe_from_dict({"stages": {"sft": DATA, "pretrain": DATA, "dpo": DATA}})
    assert judge(recipe(), new, ["pretrain"]).impossible
    shorter = recipe_from_dict({"stages": {"pretrain": DATA, "dpo": DATA}})
    changes = judge(recipe(), shorter, ["pretrain"])
    assert changes.taken and not changes.impossible
