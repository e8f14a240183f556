"""Memory by component: what each setting of a recipe adds or saves, at the moment at which it is held."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledge.model.cost import ModelCost
from fledge.model.linear_cross_entropy import CHUNK
from fledge.model.product_shapes import padded_lengths
from fledge.plan.memory import MemoryInputs, estimate, memory_of_stage, memory_of_step, moments_of_step
from fledge.plan.memory_components import MOST_RESERVED, SPREAD, highest_peak
from fledge.plan.memory_measures import Plan, what_would_fit
from fledge.plan.memory_moments import KEPT_SHARE, MIB, PROGRAM_BYTES
from fledge.plan.memory_probe import MemoryProbe
from fledge.recipe import recipe_from_dict
from fledge.recipe.schema import ModelConfig, MoeConfig, OptimizerConfig, RuntimeConfig

MODEL = ModelConfig(hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=704)
COST = ModelCost(MODEL, 6400)
TOTAL = COST.parameters().total


def _inputs(**more: Any) -> MemoryInputs:
    name = more.pop("optimizer", "adamw")
    values = {"cost": COST, "row_length": 256, "device": "cpu", "accumulates": False, **more}
    return MemoryInputs(optimizer=OptimizerConfig(name=name), **values)


def _runtime(**more: Any) -> RuntimeConfig:
    return RuntimeConfig(**{"device": "cpu", "precision": "fp32", "compile": False, "attention": "blocked", **more})


def test_components_by_hand_of_a_model_that_adamw_trains() -> None:
    moments = moments_of_step(_inputs(), _runtime(), 4)
    tables = 4 * 6400 * 256
    for memory in moments.values():
        assert memory.weights == 4 * TOTAL and memory.optimizer_state == 8 * TOTAL
        assert memory.reference == memory.reward_models == 0
    forward, end, update = moments["forward"], moments["gradients"], moments["update"]
    mask = 4 * 4 * 256 * 256
    assert forward.gradients == 0 and forward.activations == COST.kept_bytes(1024, 4, False) + mask
    assert forward.head == tables + 4 * 512 * 6400  # the gradient of the matrix, and a chunk of 512 rows of logits
    assert end.gradients == 4 * TOTAL and end.head == tables and end.activations == 0  # a tied matrix has two gradients
    assert update.gradients == 4 * TOTAL and update.copies == 4 * TOTAL


def test_the_total_is_the_sum_and_the_step_is_its_worst_moment() -> None:
    few, many = moments_of_step(_inputs(row_length=16), _runtime(), 1), moments_of_step(_inputs(), _runtime(), 32)
    assert max(few, key=lambda name: few[name].total) == "update"
    assert max(many, key=lambda name: many[name].total) == "backward"
    memory = memory_of_step(_inputs(), _runtime(), 32)
    assert memory == many["backward"]
    parts = (memory.weights, memory.gradients, memory.optimizer_state, memory.activations, memory.head, memory.copies)
    assert memory.total == pytest.approx(sum(parts) + memory.reserve)
    assert memory.allocated == pytest.approx(sum(parts))
    assert memory.reserve > PROGRAM_BYTES


def test_a_peak_may_lie_above_the_estimate_by_what_the_allocator_of_the_device_holds() -> None:
    memory = memory_of_step(_inputs(), _runtime(), 32)
    assert highest_peak(100.0, memory, "cpu", is_measured=False) == pytest.approx(100 * (1 + SPREAD))
    on_card = highest_peak(100.0, memory, "cuda", is_measured=False)
    assert on_card == memory.reserve + MOST_RESERVED * memory.allocated
    assert highest_peak(100.0, memory, "cuda", is_measured=True) == pytest.approx(100 * (1 + SPREAD))


def test_an_allocator_keeps_a_share_of_what_the_passes_have_freed_when_the_optimizer_works() -> None:
    few, many = (moments_of_step(_inputs(), _runtime(), rows) for rows in (1, 32))
    freed = max(memory.fleeting for memory in many.values()) - max(memory.fleeting for memory in few.values())
    assert many["update"].allocated == few["update"].allocated
    assert many["update"].total - few["update"].total == pytest.approx(KEPT_SHARE * freed)
    on_card = moments_of_step(_inputs(device="cuda"), _runtime(), 32)
    assert on_card["update"].total == moments_of_step(_inputs(device="cuda"), _runtime(), 1)["update"].total


def test_gradients_of_earlier_micro_batches_are_held_in_the_forward_pass() -> None:
    alone, summed = (moments_of_step(_inputs(accumulates=value), _runtime(), 8)["forward"] for value in (False, True))
    assert summed.total - alone.total == 4 * TOTAL == summed.gradients


def test_a_checkpoint_on_a_cpu_is_a_copy_beside_training_and_on_a_gpu_it_is_not() -> None:
    for optimizer, state in (("adamw", 8 * TOTAL), ("muon", COST.optimizer_bytes("muon"))):
        for averaged, averages in ((False, 0), (True, 8 * TOTAL)):
            stage = memory_of_stage(_inputs(optimizer=optimizer, averaged=averaged), _runtime(), 4)
            more = stage["saving"].total - stage["training step"].total
            assert more == pytest.approx(4 * TOTAL + state + averages)
    on_gpu = memory_of_stage(_inputs(device="cuda"), _runtime(device="cuda"), 4)
    assert on_gpu["saving"] == on_gpu["training step"]


def test_an_evaluation_has_the_states_but_no_gradients_and_fewer_activations() -> None:
    stage = memory_of_stage(_inputs(), _runtime(), 32)
    step, evaluation = stage["training step"], stage["evaluation"]
    assert evaluation.gradients == 0 and evaluation.optimizer_state == step.optimizer_state
    assert 0 < evaluation.activations < step.activations / 2
    assert "reference" not in stage


def test_a_reference_that_is_computed_before_has_no_optimizer_and_a_live_one_is_a_second_model() -> None:
    before = memory_of_stage(_inputs(precomputes_reference=True), _runtime(), 4)
    assert before["reference"].optimizer_state == before["reference"].gradients == 0
    live, table = (memory_of_step(_inputs(reference=size), _runtime(), 4) for size in (4.0 * TOTAL, 0.0))
    assert live.total - table.total == live.reference == 4 * TOTAL


def test_adapters_train_their_own_weights_and_quantized_matrices_take_half_a_byte() -> None:
    own = COST.adapter_parameters(16)
    full, lora, qlora = (
        moments_of_step(_inputs(**more), _runtime(), 4)["gradients"]
        for more in ({}, {"adapter": own}, {"adapter": own, "quantized": 0.5})
    )
    assert lora.gradients == 4 * own and lora.optimizer_state == 8 * own and lora.head == 0
    assert lora.weights == full.weights + 4 * own
    matrices = TOTAL - COST.table_parameters - 256 * (2 * 4 + 1)
    assert lora.weights - qlora.weights == 3.5 * matrices
    rounded = moments_of_step(_inputs(adapter=own, rounded=True), _runtime(precision="bf16"), 4)["gradients"]
    assert lora.weights - rounded.weights == 2 * matrices


def test_answers_that_are_drawn_make_several_micro_batches() -> None:
    alone = moments_of_step(_inputs(accumulates=False), _runtime(), 4)["forward"]
    drawn = moments_of_step(_inputs(accumulates=False, answers_per_row=8), _runtime(), 4)["forward"]
    assert alone.gradients == 0 and drawn.gradients == 4 * TOTAL


def test_fsdp_divides_the_states_and_ddp_adds_the_copies_that_are_exchanged() -> None:
    alone = moments_of_step(_inputs(), _runtime(), 4)["gradients"]
    ddp = moments_of_step(_inputs(ranks=4), _runtime(), 4)["gradients"]
    assert ddp.gradients - alone.gradients == 4 * TOTAL
    fsdp = moments_of_step(_inputs(ranks=4, sharded=True), _runtime(), 4)["update"]
    assert fsdp.optimizer_state == 2 * TOTAL and fsdp.gradients == TOTAL
    blocks = (TOTAL - COST.table_parameters) / 4
    assert fsdp.weights == TOTAL + 4 * (COST.table_parameters + 2 * blocks)  # gathered: embedding, and two blocks

    stage = memory_of_stage(_inputs(ranks=4, sharded=True), _runtime(), 4)
    assert stage["start"].allocated == 4 * TOTAL  # each rank has the whole model before it is divided
    assert "start" not in memory_of_stage(_inputs(ranks=4), _runtime(), 4)


def test_kernels_of_low_precision_are_kept_for_every_shape_that_rows_can_have() -> None:
    def reserve(precision: str = "bf16", **more: Any) -> float:
        moments = moments_of_step(_inputs(**more), _runtime(precision=precision), 4)
        kept = KEPT_SHARE * max(memory.fleeting for memory in moments.values())
        return (moments["update"].reserve - kept) / MIB

    assert reserve("fp32") == pytest.approx(PROGRAM_BYTES / MIB)
    few, many = reserve(partial=True, updates=2), reserve(partial=True)
    lengths = padded_lengths(CHUNK)
    assert few - reserve(updates=2) == pytest.approx(0.6 * 3 * 2) and many == pytest.approx(350 + 0.6 * (60 + 3 * lengths))
    moe = MoeConfig(num_experts=4, num_experts_per_tok=2)
    sparse = replace(COST, config=MODEL.model_copy(update={"moe": moe}))
    assert reserve(cost=sparse, updates=2) > reserve(updates=2) + 20


@given(rows=st.integers(1, 64), every=st.sampled_from([0, 1, 2, 4]), accumulates=st.booleans(), half=st.booleans())
def test_more_rows_never_take_less_and_the_stage_takes_at_least_a_step(
    rows: int, every: int, accumulates: bool, half: bool
) -> None:
    runtime = _runtime(activation_checkpointing=every or "none", precision="bf16" if half else "fp32")
    inputs = _inputs(accumulates=accumulates)
    step, more = (memory_of_step(inputs, runtime, size).total for size in (rows, rows + 1))
    assert 0 < step <= more and estimate(inputs, runtime, rows) >= step


# -- one measured peak -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gap", [-60 * MIB, 0, 90 * MIB])
def test_a_probe_is_met_exactly_and_only_a_gap_that_was_too_low_grows(gap: int) -> None:
    inputs, runtime = _inputs(), _runtime()
    probe = MemoryProbe(inputs, runtime, 8, gap)
    added = [probe.correction(inputs, runtime, rows) for rows in (8, 16, 32)]
    assert added[0] == pytest.approx(gap)
    if gap > 0:
        assert added[0] < added[1] < added[2] < 4 * gap
    else:
        assert added == pytest.approx([gap] * 3)


def test_a_probe_decides_what_fits() -> None:
    inputs, runtime = _inputs(accumulates=False), _runtime()
    available = estimate(inputs, runtime, 8) + 10 * MIB
    fits = what_would_fit(Plan(inputs=inputs, runtime=runtime, micro=8, rows=8), available)
    probe = MemoryProbe(inputs, runtime, 8, 30 * MIB)
    probed = what_would_fit(Plan(inputs=inputs, runtime=runtime, micro=8, rows=8, probe=probe), available)
    assert fits.fits and fits.largest == 8
    assert not probed.fits and probed.needs == pytest.approx(available + 20 * MIB)
    assert probed.largest is not None and probed.largest < 8
    assert probed.measures[0].patch["stage.batch.micro_batch_size"] == probed.largest


# -- what would fit --------------------------------------------------------------------------------------------------------


def test_what_fits_needs_no_measure() -> None:
    fit = what_would_fit(Plan(inputs=_inputs(), runtime=_runtime(), micro=4, rows=8), 64 * 2**30)
    assert fit.fits and fit.measures == [] and fit.largest == 8


def test_measures_come_from_the_cheapest_on_with_what_they_need_and_patches_that_a_recipe_accepts() -> None:
    inputs = _inputs(reference=4.0 * TOTAL, can_precompute=True)
    wanted = estimate(inputs, _runtime(), 64)
    fit = what_would_fit(Plan(inputs=inputs, runtime=_runtime(), micro=64, rows=64), 0.9 * wanted)
    assert not fit.fits and fit.needs == wanted and fit.largest in (1, 2, 4, 8, 16, 32)
    keys = [next(iter(measure.patch)) for measure in fit.measures]
    assert keys[:2] == ["stage.batch.micro_batch_size", "stage.precompute_ref_log_probs"]
    assert all(measure.needs < wanted and measure.fits == (measure.needs <= fit.available) for measure in fit.measures)
    first = fit.measures[0]
    assert first.fits and first.patch["stage.batch.micro_batch_size"] == fit.largest
    assert first.patch["stage.batch.gradient_accumulation_steps"] * fit.largest == 64
    for measure in fit.measures:
        _apply(measure.of_stage("prefer"))


def test_measures_are_taken_together_where_none_is_enough() -> None:
    inputs, runtime = _inputs(row_length=2048), _runtime()
    available = 450 * MIB
    fit = what_would_fit(Plan(inputs=inputs, runtime=runtime, micro=8, rows=8), available)
    assert fit.largest is None and not any(measure.fits for measure in fit.measures if not measure.together)
    last = fit.measures[-1]
    assert last.together and last.fits and last.needs <= available and len(last.patch) > 2
    _apply(last.of_stage("prefer"))
    hopeless = what_would_fit(Plan(inputs=inputs, runtime=runtime, micro=8, rows=8), 100 * MIB)
    assert not any(measure.fits for measure in hopeless.measures)


def test_a_stage_without_weights_to_adapt_is_offered_no_adapter() -> None:
    fit = what_would_fit(Plan(inputs=_inputs(can_adapt=False), runtime=_runtime(), micro=64, rows=64), 500 * MIB)
    assert fit.measures and not any("adapter" in key for measure in fit.measures for key in measure.patch)


def _apply(patch: dict[str, Any]) -> None:
    """Validate a recipe with the keys of a patch."""
    tree: dict[str, Any] = {
        "model": {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4},
        "stages": {
            "before": {"kind": "pretrain", "data": {"train": "a"}},
            "prefer": {"kind": "preference", "data": {"train": "b"}},
        },
    }
    for key, value in patch.items():
        node, *path = key.split(".")[::-1]
        place = tree
        for name in reversed(path):
            place = place.setdefault(name, {})
        place[node] = value
    recipe_from_dict(tree)
