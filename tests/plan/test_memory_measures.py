"""Measures that would make a stage fit: that a recipe takes them, and what limits a micro-batch."""

from copy import deepcopy
from typing import Any

import pytest

from fledge.data import FORMATS
from fledge.model.cost import ModelCost
from fledge.plan.memory import MemoryInputs, memory_inputs, needed_bytes
from fledge.plan.memory_measures import Fit, Plan, what_would_fit
from fledge.plan.memory_moments import MIB
from fledge.plan.row_length import keys_of_length
from fledge.recipe import Recipe, recipe_from_dict
from fledge.recipe.schema import ModelConfig, OptimizerConfig, RuntimeConfig
from tests.support.packed import pack, random_sequences

SIZES = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 704}
COST = ModelCost(ModelConfig.model_validate(SIZES), 6400)
RUNTIME = RuntimeConfig(device="cpu", precision="fp32", compile=False, attention="blocked")


def _inputs(row_length: int = 256) -> MemoryInputs:
    return MemoryInputs(cost=COST, row_length=row_length, device="cpu", accumulates=False, optimizer=OptimizerConfig())


def _patched(fit: Fit, **written: Any) -> list[Recipe]:
    """A recipe with each of the measures, put over what the recipe had."""
    recipes = []
    for measure in fit.measures:
        batch = dict(written.get("batch", {}))
        stage: dict[str, Any] = {"kind": "sft", "data": {"train": "b"}, "batch": batch}
        tree = {
            "model": SIZES,
            "runtime": dict(written.get("runtime", {})),
            "stages": {"before": {"kind": "pretrain", "data": {"train": "a"}}, "sft": stage},
        }
        recipes.append(recipe_from_dict(_with(tree, measure.of_stage("sft"))))
    return recipes


def _with(tree: dict[str, Any], patch: dict[str, Any]) -> dict[str, Any]:
    """A recipe as plain data with the keys of a patch."""
    whole = deepcopy(tree)
    for key, value in patch.items():
        *path, last = key.split(".")
        place: dict[str, Any] = whole
        for name in path:
            place = place.setdefault(name, {})
        place[last] = value
    return whole


LONG = {"train": "b", "max_seq_len": 1024}
STAGES: dict[str, dict[str, Any]] = {
    "a second model in half precision": {
        "kind": "preference", "data": LONG, "precompute_ref_log_probs": False, "reference_precision": "bf16",
    },
    "a second model on a CPU": {
        "kind": "preference", "data": LONG, "precompute_ref_log_probs": False, "reference_device": "cpu",
    },
    "a second model of single answers": {
        "kind": "kto", "data": LONG, "precompute_ref_log_probs": False, "reference_precision": "fp16",
    },
    "a second model of drawn answers": {
        "kind": "grpo", "data": LONG, "rewards": ["exact_match"], "beta": 0.1, "reference_precision": "bf16",
    },
    "drawn answers that fill a row": {
        "kind": "grpo", "data": LONG, "rewards": ["exact_match"], "rollout": {"max_new_tokens": 1000},
    },
    "adafactor": {"kind": "sft", "data": LONG, "optimizer": {"name": "adafactor", "learning_rate": 1e-3}},
    "adafactor with a minimum": {
        "kind": "sft", "data": LONG, "optimizer": {"name": "adafactor", "learning_rate": 1e-3}, "schedule": {"min_lr": 5e-4},
    },
    "limits of prompts and answers": {
        "kind": "preference", "data": {**LONG, "max_prompt_length": 600, "max_completion_length": 300},
    },
    "an odd length and tokens of an update": {
        "kind": "sft", "data": {"train": "b", "max_seq_len": 1023},
        "batch": {"micro_batch_size": 16, "tokens_per_step": 64 * 1023},
    },
    "pairs of an odd length and tokens of an update": {
        "kind": "preference", "data": {"train": "b", "max_seq_len": 1023},
        "batch": {"micro_batch_size": 16, "tokens_per_step": 64 * 2046},
    },
}  # fmt: skip


@pytest.mark.parametrize("name", STAGES)
@pytest.mark.parametrize("share", [0.9, 0.4, 0.15])
def test_every_measure_that_is_offered_is_one_that_the_recipe_takes(name: str, share: float) -> None:
    before = {"kind": "pretrain", "data": {"train": "a"}}
    model = {**SIZES, "max_position_embeddings": 1024}
    tree = {"model": model, "built_dataset": "built", "stages": {"before": before, "x": STAGES[name]}}
    stage = recipe_from_dict(tree).stages["x"]
    form = FORMATS[stage.kind]
    packed = form.packed_length(stage.data.max_seq_len)
    data = pack(random_sequences([100] * 8), packed, form.sequences_per_example)
    inputs = memory_inputs(stage, COST, data, "cpu")
    tokens = stage.batch.tokens_per_step
    plan = Plan(inputs=inputs, runtime=RUNTIME, micro=16, rows=64, has_tokens_per_step=tokens is not None)
    fit = what_would_fit(plan, share * plan.needs)
    assert fit.measures
    for measure in fit.measures:
        recipe = recipe_from_dict(_with(tree, measure.of_stage("x")))
        changed = recipe.stages["x"]
        rows = changed.batch.global_batch_rows(form.packed_length(changed.data.max_seq_len))
        assert rows % changed.batch.micro_batch_rows == 0
        if changed.data.max_seq_len != stage.data.max_seq_len:
            assert recipe.built_dataset is None  # it holds the longer rows


def test_drawn_answers_leave_room_for_their_prompts_in_shorter_rows() -> None:
    def drawn(of: int, length: int) -> int | None:
        stage = {
            "kind": "grpo",
            "data": {**LONG, "max_seq_len": 512},
            "rewards": ["exact_match"],
            "rollout": {"max_new_tokens": of},
        }
        tree = {"model": SIZES, "stages": {"before": {"kind": "pretrain", "data": {"train": "a"}}, "x": stage}}
        return keys_of_length(recipe_from_dict(tree).stages["x"], length, None, None).get("rollout.max_new_tokens")

    assert [drawn(of, 256) for of in (64, 128, 200, 300, 512)] == [None, None, 128, 150, 256]
    assert [drawn(of, 1024) for of in (64, 512)] == [None, None]


def test_a_smaller_micro_batch_takes_the_place_of_tokens_per_step() -> None:
    plan = Plan(inputs=_inputs(), runtime=RUNTIME, micro=64, rows=64, has_tokens_per_step=True)
    fit = what_would_fit(plan, 0.5 * plan.needs)
    batch = _patched(fit, batch={"tokens_per_step": 64 * 256})[0].stages["sft"].batch
    assert batch.tokens_per_step is None and batch.micro_batch_rows == fit.largest
    assert batch.micro_batch_rows * batch.gradient_accumulation_steps == 64
    without = what_would_fit(Plan(inputs=_inputs(), runtime=RUNTIME, micro=64, rows=64), fit.available)
    assert not any("tokens_per_step" in key for measure in without.measures for key in measure.patch)


def test_with_fsdp_nothing_is_offered_that_cannot_be_divided() -> None:
    sharded = RUNTIME.model_copy(update={"parallelism": "fsdp"})
    fit = what_would_fit(Plan(inputs=_inputs(), runtime=sharded, micro=2, rows=2), 300 * MIB)
    keys = {key for measure in fit.measures for key in measure.patch}
    assert "runtime.activation_checkpointing" in keys and "stage.data.max_seq_len" in keys
    assert not keys & {"stage.adapter.r", "stage.quantization.quant_type", "stage.optimizer.name"}
    assert len(_patched(fit, runtime={"parallelism": "fsdp"})) == len(fit.measures)
    divided = {
        key
        for measure in what_would_fit(Plan(inputs=_inputs(), runtime=RUNTIME, micro=2, rows=2), 300 * MIB).measures
        for key in measure.patch
    }
    assert {"stage.adapter.r", "stage.quantization.quant_type", "stage.optimizer.name"} <= divided


def test_what_limits_a_micro_batch_is_memory_the_update_or_its_use() -> None:
    inputs, available = _inputs(), 64 * 2**30
    whole = what_would_fit(Plan(inputs=inputs, runtime=RUNTIME, micro=8, rows=32), available)
    assert (whole.largest, whole.limit) == (32, "rows")
    useful = what_would_fit(Plan(inputs=inputs, runtime=RUNTIME, micro=8, rows=128), available)
    assert (useful.largest, useful.limit) == (64, "speed")  # 16,384 tokens on a CPU
    short = needed_bytes(inputs, RUNTIME, 16, 32) + 1
    tight = what_would_fit(Plan(inputs=inputs, runtime=RUNTIME, micro=8, rows=32), short)
    assert (tight.largest, tight.limit) == (16, "memory")
    nothing = what_would_fit(Plan(inputs=inputs, runtime=RUNTIME, micro=8, rows=32), 10 * MIB)
    assert (nothing.largest, nothing.limit) == (None, "memory")


@pytest.mark.parametrize("rows", [1, 7])
def test_an_update_without_divisors_is_limited_by_its_rows_or_by_memory(rows: int) -> None:
    fit = what_would_fit(
        Plan(inputs=_inputs(), runtime=RUNTIME, micro=1, rows=rows), needed_bytes(_inputs(), RUNTIME, 1, rows) + 1
    )
    assert (fit.largest, fit.limit) == (1, "rows" if rows == 1 else "memory")


def test_each_of_several_cards_has_its_share_of_an_update() -> None:
    inputs = _inputs()
    fit = what_would_fit(Plan(inputs=inputs, runtime=RUNTIME, micro=8, rows=64, count=2), 64 * 2**30)
    assert (fit.largest, fit.limit) == (32, "rows")
    plan = Plan(inputs=inputs, runtime=RUNTIME, micro=4, rows=10, count=3)
    patch = what_would_fit(plan, needed_bytes(inputs, RUNTIME, 2, 4) + 1).measures[0].patch
    micro, steps = patch["stage.batch.micro_batch_size"], patch["stage.batch.gradient_accumulation_steps"]
    assert (micro, steps) == (2, 5)  # a recipe has the rows of all cards
