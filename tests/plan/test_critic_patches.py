"""Every patch of the critic is one that the recipe takes and the plan can be made of, whatever else the recipe says."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from fledge.errors import FledgeError
from fledge.findings import Finding
from fledge.recipe import recipe_from_dict
from tests.plan.critic_data import Critic, changed, entries, tree_of, write_data

BASES = entries("bases.yaml")
RAMP = {"initial_accumulation_steps": 1, "ramp_steps": 10}
FILES = {
    "pretrain": ["texts.jsonl"], "sft": ["chats.jsonl", "dozen.jsonl", "many.jsonl"], "preference": ["pairs.jsonl"],
    "kto": ["labels.jsonl", "skewed.jsonl"], "grpo": ["chats.jsonl", "dozen.jsonl"],
}  # fmt: skip
COUNTED = st.fixed_dictionaries(
    {"micro_batch_size": st.sampled_from([1, 4, 8, 16, 32, "auto"]), "gradient_accumulation_steps": st.sampled_from([1, 2, 8])},
    optional={"warmup": st.sampled_from([RAMP, {"ramp_steps": 0.3}, {"ramp_steps": 2}])},
)
IN_TOKENS = st.fixed_dictionaries(
    {"tokens_per_step": st.sampled_from([512, 1024, 4096, 8192])}, optional={"micro_batch_size": st.sampled_from([1, 2, 4])}
)
KEYS: dict[str, st.SearchStrategy[Any]] = {
    "data.max_seq_len": st.sampled_from([32, 36, 48, 64, 128, 512, 1024]),
    "data.validation": st.sampled_from([0, 0.02, 0.1, 0.4]),
    "duration": st.sampled_from(
        ["2 steps", "5 steps", "12 steps", "60 steps", "1 epochs", "2 epochs", "40 epochs", "40k tokens"]
    ),
    "batch": COUNTED | IN_TOKENS,
    "optimizer.learning_rate": st.sampled_from([1e-7, 1e-5, 1e-3, 3e-2, 1.0]),
    "optimizer.weight_decay": st.sampled_from([0.0, 0.1, 5.0]),
    "schedule.warmup": st.sampled_from([0, 1, 4, 11, 40, 0.1, 0.7]),
    "schedule.min_lr": st.sampled_from([0.0, 1e-4, "95%"]),
    "evaluation.every_steps": st.sampled_from([1, 3, 50]),
    "evaluation.max_packed_rows": st.sampled_from([1, 64]),
    "early_stopping.patience": st.sampled_from([1, 2, 3, 20]),
    "data.max_prompt_length": st.sampled_from([8, 40, 500]),
    "data.max_completion_length": st.sampled_from([8, 40, 500]),
    "rollout.max_new_tokens": st.sampled_from([8, 40, 90]),
    "rollout.temperature": st.sampled_from([0.1, 1.0]),
    "beta": st.sampled_from([0.0005, 2.0]),
    "adapter": st.sampled_from([{"r": 4, "lora_alpha": 8}, {"r": 64, "lora_alpha": 8}]),
    "model.max_position_embeddings": st.sampled_from([64, 512, 1024]),
}


@pytest.fixture(scope="module")
def critic(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Critic]:
    """A critic in the folder of the data."""
    folder, before = tmp_path_factory.mktemp("patches"), Path.cwd()
    write_data(folder)
    os.chdir(folder)
    yield Critic()
    os.chdir(before)


def findings(critic: Critic, tree: dict[str, Any]) -> list[Finding]:
    return critic.findings(recipe_from_dict(tree))


def left(critic: Critic, base: str, check: str, **keys: Any) -> tuple[Finding, set[str]]:
    """The finding of a check about a recipe with other keys of its stage, and the checks that tell something of the patched
    recipe, which must be one that can be planned."""
    entry = {"base": base, "set": {f"stages.{next(iter(BASES[base]['stages']))}.{key}": value for key, value in keys.items()}}
    found = next(one for one in findings(critic, tree_of(entry)) if one.check == check)
    assert found.patch is not None
    return found, {one.check for one in findings(critic, changed(tree_of(entry), found.patch))}


def test_a_smaller_batch_has_no_warm_up_of_its_accumulation(critic: Critic) -> None:
    batch = {"micro_batch_size": 4, "gradient_accumulation_steps": 12, "warmup": {"ramp_steps": 3}}
    for check, duration in (("batch above data", "12 steps"), ("few updates", "4 steps")):
        keys = {"data.train": "dozen.jsonl", "batch": batch, "duration": duration}
        found, after = left(critic, "tuned", check, **keys)
        assert found.patch is not None and found.patch["stages.sft.batch.warmup"] is None and check not in after


def test_fewer_epochs_have_a_warm_up_of_the_batch_that_ends_before_they_do(critic: Critic) -> None:
    batch = {"micro_batch_size": 1, "gradient_accumulation_steps": 4, "warmup": {"ramp_steps": 500}}
    keys = {"duration": "30 epochs", "select_checkpoint": "last", "batch": batch}
    found, after = left(critic, "tuned", "many epochs", **keys)
    assert found.patch is not None and found.patch["stages.sft.batch.warmup.ramp_steps"] == 0.1 and "many epochs" not in after


def test_limits_of_prompts_and_answers_do_not_stand_above_a_shorter_context(critic: Critic) -> None:
    keys = {"data.max_seq_len": 512, "data.max_prompt_length": 300, "data.max_completion_length": 20}
    found, after = left(critic, "dpo", "long context", **keys)
    assert found.patch is not None and found.patch["stages.dpo.data.max_seq_len"] < 300 and "long context" not in after
    assert found.patch["stages.dpo.data.max_prompt_length"] is None
    assert "stages.dpo.data.max_completion_length" not in found.patch


@pytest.mark.parametrize(
    ("tokens", "micro", "after"),
    [(576, 16, (None, 1)), (36 * 32, 16, (None, 2)), (36 * 25, 5, (64 * 14, 1)), (36 * 16, "auto", (None, None))],
)
def test_an_update_of_tokens_is_whole_rows_of_a_longer_context(
    critic: Critic, tokens: int, micro: int | str, after: tuple[int | None, int | None]
) -> None:
    keys = {"data.max_seq_len": 36, "batch": {"tokens_per_step": tokens, "micro_batch_size": micro}}
    found, left_over = left(critic, "sft", "short context", **keys)
    assert found.patch is not None and found.patch["stages.sft.data.max_seq_len"] == 64
    changes = tuple(found.patch.get(f"stages.sft.batch.{name}") for name in ("tokens_per_step", "micro_batch_size"))
    assert changes == after and "short context" not in left_over


def test_a_longer_context_leaves_a_warm_up_that_ends_in_fewer_steps(critic: Critic) -> None:
    found, after = left(
        critic, "sft", "short context", **{"data.max_seq_len": 36, "duration": "1 epochs", "schedule.warmup": 60}
    )
    assert found.patch is not None and found.patch["stages.sft.schedule.warmup"] == 0.05 and "long warm-up" not in after


def test_a_longer_stage_keeps_the_rows_of_its_updates(critic: Critic) -> None:
    keys = {"data.train": "dozen.jsonl", "batch": {"micro_batch_size": "auto"}, "duration": "0.5 epochs"}
    found, after = left(critic, "tuned", "few updates", **keys)
    steps = {"stages.sft.duration": "30 steps", "stages.sft.batch.micro_batch_size": 1}
    assert found.patch == steps and "few updates" not in after  # `auto` would be 16 rows of a stage in steps
    keys = {"batch": {"micro_batch_size": "auto"}, "duration": "0.02 epochs", "optimizer.learning_rate": 1e-7}
    found, _ = left(critic, "dpo", "small rate", **keys)
    assert found.patch is not None and found.patch["stages.dpo.batch.micro_batch_size"] == 1
    assert set(found.patch) == {"stages.dpo.duration", "stages.dpo.batch.micro_batch_size"}


@pytest.mark.parametrize(
    ("keys", "hint", "patch"),
    [
        ({"patience": 1, "every": 30, "steps": 30}, "set evaluation.every_steps to 10", {"evaluation.every_steps": 10}),
        ({"patience": 1, "every": 1, "steps": 1}, "leave early_stopping.patience out: the stage is too short to stop early",
         {"early_stopping.patience": None}),
        ({"patience": 20, "every": 1, "steps": 15}, "set early_stopping.patience to 5", {"early_stopping.patience": 5}),
        ({"patience": 9, "every": 10, "steps": 60}, "set early_stopping.patience to 2, or evaluation.every_steps to 2",
         {"early_stopping.patience": 2}),
    ],
)  # fmt: skip
def test_a_patience_is_never_told_to_be_raised(critic: Critic, keys: dict[str, int], hint: str, patch: dict[str, Any]) -> None:
    given_keys = {"early_stopping.patience": keys["patience"], "evaluation.every_steps": keys["every"],
                  "duration": f"{keys['steps']} steps", "schedule.warmup": 0}  # fmt: skip
    found, after = left(critic, "sft", "idle early stopping", **given_keys)
    assert found.hint == hint and found.patch == {f"stages.sft.{key}": value for key, value in patch.items()}
    assert "idle early stopping" not in after


def test_stages_that_train_one_adapter_get_one_rank(critic: Critic) -> None:
    tree = tree_of({"base": "lora", "set": {"stages.sft.adapter.r": 64}})
    pairs = tree_of({"base": "dpo", "set": {"stages.dpo.adapter": {"r": 64, "lora_alpha": 16}}})
    tree["stages"] |= pairs["stages"]
    found = [one for one in findings(critic, tree) if one.check == "rank above width"]
    assert [one.patch for one in found] == [{"stages.sft.adapter.r": 4, "stages.dpo.adapter.r": 4}] * 2
    assert "rank above width" not in {one.check for one in findings(critic, changed(tree, found[0].patch or {}))}


@st.composite
def recipes(draw: st.DrawFn) -> dict[str, Any]:
    """A base with other values of some of its keys; not each of them can be planned."""
    base = BASES[draw(st.sampled_from(sorted(BASES)))]
    name, stage = next(iter(base["stages"].items()))
    kind = {"dpo": "preference"}.get(name, name)
    keys = draw(st.lists(st.sampled_from(sorted(KEYS)), min_size=1, max_size=6, unique=True))
    drawn = {key if key.startswith("model.") else f"stages.{name}.{key}": draw(KEYS[key]) for key in keys}
    train = draw(st.sampled_from(FILES[stage.get("kind", kind)]))
    return changed(base, {f"stages.{name}.data.train": train, **drawn})


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(tree=recipes())
def test_every_patch_can_be_planned(critic: Critic, tree: dict[str, Any]) -> None:
    try:
        found = findings(critic, tree)
    except FledgeError:
        assume(False)
        return
    for one in found:
        if one.patch is not None:
            after = {other.check for other in findings(critic, changed(tree, one.patch))}
            assert one.check not in after or one.confidence != "certain", (one.check, one.patch)
