"""Micro-batches are as large as memory allows; what one update reads is what the recipe says."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledge.errors import FledgeError
from fledge.model.cost import ModelCost
from fledge.plan.memory import BASELINE_BYTES, MAX_MICRO_BATCH_TOKENS, MemoryInputs, auto_micro_batch, budget, estimate
from fledge.recipe.schema import BatchConfig, ModelConfig, OptimizerConfig, RuntimeConfig

MODEL = ModelConfig(hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=704)


def _inputs(row_length: int = 256, name: str = "adamw", device: str = "cpu") -> MemoryInputs:
    optimizer = OptimizerConfig(name=name)  # type: ignore[arg-type]
    return MemoryInputs(cost=ModelCost(MODEL, 6400), row_length=row_length, optimizer=optimizer, device=device)


def _runtime(memory: int | None = None, **more: Any) -> RuntimeConfig:
    return RuntimeConfig(device="cpu", precision="fp32", compile=False, memory_budget=memory, **more)


def _auto(tokens: int) -> BatchConfig:
    return BatchConfig(micro_batch_size="auto", tokens_per_step=tokens)


@given(rows=st.integers(1, 600), memory=st.floats(0.6, 16), row_length=st.sampled_from([64, 256, 1000]))
def test_micro_batch_is_the_largest_divisor_within_the_budget_and_rows_per_step_stay(
    rows: int, memory: float, row_length: int
) -> None:
    inputs, limit = _inputs(row_length), int(memory * 2**30)
    runtime = _runtime(limit)
    fits = [size for size in range(1, rows + 1) if rows % size == 0 and estimate(inputs, runtime, size) <= limit]
    if not fits:
        with pytest.raises(FledgeError, match="not even one row"):
            auto_micro_batch(_auto(rows * row_length), inputs, runtime)
        return
    batch, notes = auto_micro_batch(_auto(rows * row_length), inputs, runtime)
    assert batch.micro_batch_rows * batch.gradient_accumulation_steps == rows and batch.tokens_per_step is None
    assert batch.micro_batch_rows == max(
        [size for size in fits if size * row_length <= MAX_MICRO_BATCH_TOKENS["cpu"]] or fits[:1]
    )
    (note,) = notes
    assert f"micro-batches of {batch.micro_batch_rows} rows, {batch.gradient_accumulation_steps} per step" in note
    assert f"of {limit / 2**30:.2f} GiB" in note


def test_less_memory_never_gives_larger_micro_batches() -> None:
    one = estimate(_inputs(), _runtime(), 1)
    row = estimate(_inputs(), _runtime(), 2) - one
    budgets = [int(one + extra * row) + 1 for extra in (0, 1, 2, 9, 30, 48)]
    chosen = [auto_micro_batch(_auto(48 * 256), _inputs(), _runtime(limit))[0].micro_batch_rows for limit in budgets]
    assert chosen == sorted(chosen) and chosen[0] == 1 and chosen[-1] == 48 and len(set(chosen)) > 3


def test_estimate_is_the_cost_model_plus_the_baseline() -> None:
    cost = ModelCost(MODEL, 6400)
    for rows in (1, 8):
        tokens = rows * 256
        assert estimate(_inputs(), _runtime(), rows) == BASELINE_BYTES + cost.peak_bytes(tokens, 4, False, "adamw")
        assert estimate(_inputs(name="muon"), _runtime(activation_checkpointing=2), rows) == BASELINE_BYTES + cost.peak_bytes(
            tokens, 4, False, "muon", 2
        )
        half = RuntimeConfig(precision="bf16", compile=True)
        assert estimate(_inputs(), half, rows) == BASELINE_BYTES + cost.peak_bytes(tokens, 2, True, "adamw")
    undecided = RuntimeConfig()  # undecided settings count as the larger case
    assert estimate(_inputs(), undecided, 8) == estimate(_inputs(), _runtime(), 8)
    assert estimate(_inputs(device="cuda"), undecided, 8) < estimate(_inputs(), undecided, 8)


def test_activation_checkpointing_and_8bit_states_allow_more_rows() -> None:
    limit = int(estimate(_inputs(name="adamw8bit"), _runtime(), 5)) + 1
    plain = auto_micro_batch(_auto(60 * 256), _inputs(), _runtime(limit))[0].micro_batch_rows
    recomputed = auto_micro_batch(_auto(60 * 256), _inputs(), _runtime(limit, activation_checkpointing="full"))[
        0
    ].micro_batch_rows
    eight_bit = auto_micro_batch(_auto(60 * 256), _inputs(name="adamw8bit"), _runtime(limit))[0].micro_batch_rows
    assert eight_bit == 5 and plain < eight_bit and recomputed > plain


@pytest.mark.parametrize(
    ("tokens", "nearest"), [(1000, "768 or 1,024"), (255, "256"), (257, "256 or 512"), (10_000, "9,984 or 10,240")]
)
@pytest.mark.parametrize("micro", ["auto", 4])
def test_tokens_per_step_that_are_not_whole_rows_are_an_error_with_the_nearest_values(
    tokens: int, nearest: str, micro: Any
) -> None:
    with pytest.raises(FledgeError, match="not a whole number of rows of 256") as caught:
        auto_micro_batch(BatchConfig(micro_batch_size=micro, tokens_per_step=tokens), _inputs(), _runtime())
    assert caught.value.where == "batch.tokens_per_step" and caught.value.hint == f"write {nearest}"


def test_given_micro_batch_size_stays_and_must_divide_the_rows_per_step() -> None:
    batch, notes = auto_micro_batch(BatchConfig(micro_batch_size=6, tokens_per_step=24 * 256), _inputs(), _runtime())
    assert (batch.micro_batch_size, batch.gradient_accumulation_steps, batch.tokens_per_step, notes) == (6, 4, None, [])
    with pytest.raises(FledgeError, match="24 rows per step are not a multiple of 5") as caught:
        auto_micro_batch(BatchConfig(micro_batch_size=5, tokens_per_step=24 * 256), _inputs(), _runtime())
    assert caught.value.where == "batch.micro_batch_size"
    plain = BatchConfig(micro_batch_size=6, gradient_accumulation_steps=3)
    assert auto_micro_batch(plain, _inputs(), _runtime()) == (plain, [])


def test_row_that_does_not_fit_is_an_error_with_suggestions() -> None:
    with pytest.raises(FledgeError, match=r"not even one row of 256 tokens fits: .* 0\.5\d GiB, 0\.20 GiB") as caught:
        auto_micro_batch(_auto(1024), _inputs(), _runtime(int(0.2 * 2**30)))
    assert caught.value.where == "batch.micro_batch_size"
    assert all(word in str(caught.value.hint) for word in ("checkpointing", "adamw8bit", "max_seq_len"))


def test_rows_above_the_token_limit_are_read_one_at_a_time() -> None:
    length = 2 * MAX_MICRO_BATCH_TOKENS["cpu"]
    batch, _ = auto_micro_batch(_auto(4 * length), _inputs(length), _runtime(64 * 2**30))
    assert (batch.micro_batch_size, batch.gradient_accumulation_steps) == (1, 4)


def test_memory_budget_is_that_of_the_recipe_or_nine_tenths_of_free_memory() -> None:
    import psutil

    assert budget(RuntimeConfig(memory_budget=12345), "cpu") == 12345
    free = psutil.virtual_memory().available
    assert budget(RuntimeConfig(), "cpu") == pytest.approx(0.9 * free, rel=0.1)
    assert RuntimeConfig.model_validate({"memory_budget": "6 GiB"}).memory_budget == 6 * 2**30


def test_processes_on_one_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert (
        budget(RuntimeConfig(memory_budget=12000), "cpu") == 3000
        and budget(RuntimeConfig(memory_budget=12000), "cuda") == 12000
    )


def test_attention_on_cuda_is_part_of_the_estimate() -> None:
    """By hand: 4 layers of width 256 with 4 heads that share 1 key; rows of 512 tokens with 8 documents; bf16."""
    model = MODEL.model_copy(update={"num_key_value_heads": 1})
    cost, optimizer = ModelCost(model, 6400), OptimizerConfig(name="adamw")
    inputs = MemoryInputs(cost=cost, row_length=512, optimizer=optimizer, device="cuda", documents_per_row=8)

    def extra(attention: str, **more: Any) -> float:
        runtime = RuntimeConfig(device="cuda", precision="bf16", compile=False, attention=attention, **more)  # type: ignore[arg-type]
        plain = replace(inputs, device="cpu")
        return estimate(inputs, runtime, 32) - estimate(plain, runtime, 32)

    tokens = 32 * 512
    masked, varlen = 2 * tokens * (512 + 4 * 2 * (256 - 64)), 4 * 256 * (tokens + 128 * 256)
    assert extra("sdpa") == masked and extra("varlen") == varlen and extra("blocked") == 0
    assert extra("auto") == max(masked, varlen)
    assert extra("sdpa", activation_checkpointing="full") == 2 * tokens * (512 + 2 * (256 - 64))
