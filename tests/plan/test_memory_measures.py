"""Measures that would make a stage fit: that a recipe takes them, and what limits a micro-batch."""

from typing import Any

import pytest

from fledge.model.cost import ModelCost
from fledge.plan.memory import MemoryInputs, needed_bytes
from fledge.plan.memory_measures import Fit, Plan, what_would_fit
from fledge.plan.memory_moments import MIB
from fledge.recipe import Recipe, recipe_from_dict
from fledge.recipe.schema import ModelConfig, OptimizerConfig, RuntimeConfig

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
        for key, value in measure.of_stage("sft").items():
            *path, last = key.split(".")
            place: dict[str, Any] = tree
            for name in path:
                place = place.setdefault(name, {})
            place[last] = value
        recipes.append(recipe_from_dict(tree))
    return recipes


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
