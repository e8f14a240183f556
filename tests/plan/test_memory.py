"""Micro-batches are as large as memory allows; what one update reads is what the recipe says."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledge.errors import FledgeError
from fledge.model.cost import ModelCost
from fledge.plan.memory import BASELINE_BYTES, MOST_TOKENS, MemoryInputs, auto_micro_batch, budget, estimate
from fledge.recipe.schema import BatchConfig, ModelConfig, OptimizerConfig, RuntimeConfig

MODEL = ModelConfig(hidden_size=256, num_hidden_layers=4, num_attention_heads=4, intermediate_size=704)


def _need(row_length: int = 256, name: str = "adamw", device: str = "cpu") -> MemoryInputs:
    return MemoryInputs(ModelCost(MODEL, 6400), row_length, OptimizerConfig(name=name), device)  # type: ignore[arg-type]


def _machine(memory: int | None = None, **more: Any) -> RuntimeConfig:
    return RuntimeConfig(device="cpu", precision="fp32", compile=False, memory_budget=memory, **more)


def _auto(tokens: int) -> BatchConfig:
    return BatchConfig(micro_batch_size="auto", tokens_per_step=tokens)


@given(rows=st.integers(1, 600), memory=st.floats(0.6, 16), row_length=st.sampled_from([64, 256, 1000]))
def test_the_largest_divisor_within_the_budget_is_taken_and_the_rows_stay(rows: int, memory: float, row_length: int) -> None:
    need, limit = _need(row_length), int(memory * 2**30)
    machine = _machine(limit)
    fits = [part for part in range(1, rows + 1) if rows % part == 0 and estimate(need, machine, part) <= limit]
    if not fits:
        with pytest.raises(FledgeError, match="not even one row"):
            auto_micro_batch(_auto(rows * row_length), need, machine)
        return
    batch, notes = auto_micro_batch(_auto(rows * row_length), need, machine)
    assert batch.micro_batch_rows * batch.gradient_accumulation_steps == rows and batch.tokens_per_step is None
    assert batch.micro_batch_rows == max([part for part in fits if part * row_length <= MOST_TOKENS["cpu"]] or fits[:1])
    (note,) = notes
    assert f"micro-batches of {batch.micro_batch_rows} rows, {batch.gradient_accumulation_steps} for each update" in note
    assert f"of {limit / 2**30:.2f} GiB" in note


def test_less_memory_never_gives_larger_micro_batches_and_some_budgets_differ() -> None:
    one = estimate(_need(), _machine(), 1)
    row = estimate(_need(), _machine(), 2) - one
    budgets = [int(one + extra * row) + 1 for extra in (0, 1, 2, 9, 30, 48)]
    chosen = [auto_micro_batch(_auto(48 * 256), _need(), _machine(limit))[0].micro_batch_rows for limit in budgets]
    assert chosen == sorted(chosen) and chosen[0] == 1 and chosen[-1] == 48 and len(set(chosen)) > 3


def test_the_estimate_is_the_cost_model_and_the_program() -> None:
    cost = ModelCost(MODEL, 6400)
    for rows in (1, 8):
        tokens = rows * 256
        assert estimate(_need(), _machine(), rows) == BASELINE_BYTES + cost.peak_bytes(tokens, 4, False, "adamw")
        assert estimate(_need(name="muon"), _machine(activation_checkpointing=2), rows) == BASELINE_BYTES + cost.peak_bytes(
            tokens, 4, False, "muon", 2
        )
        half = RuntimeConfig(precision="bf16", compile=True)
        assert estimate(_need(), half, rows) == BASELINE_BYTES + cost.peak_bytes(tokens, 2, True, "adamw")
    undecided = RuntimeConfig()  # what is still to be measured counts as the larger
    assert estimate(_need(), undecided, 8) == estimate(_need(), _machine(), 8)
    assert estimate(_need(device="cuda"), undecided, 8) < estimate(_need(), undecided, 8)


def test_checkpointing_and_small_optimizer_states_leave_room_for_more_rows() -> None:
    limit = int(estimate(_need(name="adamw8bit"), _machine(), 5)) + 1
    plain = auto_micro_batch(_auto(60 * 256), _need(), _machine(limit))[0].micro_batch_rows
    again = auto_micro_batch(_auto(60 * 256), _need(), _machine(limit, activation_checkpointing="full"))[0].micro_batch_rows
    small = auto_micro_batch(_auto(60 * 256), _need(name="adamw8bit"), _machine(limit))[0].micro_batch_rows
    assert small == 5 and plain < small and again > plain


@pytest.mark.parametrize(
    ("tokens", "nearest"), [(1000, "768 or 1,024"), (255, "256"), (257, "256 or 512"), (10_000, "9,984 or 10,240")]
)
@pytest.mark.parametrize("micro", ["auto", 4])
def test_tokens_that_are_no_whole_rows_are_refused_with_the_two_nearest(tokens: int, nearest: str, micro: Any) -> None:
    with pytest.raises(FledgeError, match="no whole number of rows of 256") as caught:
        auto_micro_batch(BatchConfig(micro_batch_size=micro, tokens_per_step=tokens), _need(), _machine())
    assert caught.value.where == "batch.tokens_per_step" and caught.value.hint == f"write {nearest}"


def test_a_given_micro_batch_stays_and_must_divide_the_update() -> None:
    batch, notes = auto_micro_batch(BatchConfig(micro_batch_size=6, tokens_per_step=24 * 256), _need(), _machine())
    assert (batch.micro_batch_size, batch.gradient_accumulation_steps, batch.tokens_per_step, notes) == (6, 4, None, [])
    with pytest.raises(FledgeError, match="24 rows of an update are no multiple of 5") as caught:
        auto_micro_batch(BatchConfig(micro_batch_size=5, tokens_per_step=24 * 256), _need(), _machine())
    assert caught.value.where == "batch.micro_batch_size"
    plain = BatchConfig(micro_batch_size=6, gradient_accumulation_steps=3)
    assert auto_micro_batch(plain, _need(), _machine()) == (plain, [])


def test_a_row_that_does_not_fit_is_refused_with_what_would_help() -> None:
    with pytest.raises(FledgeError, match=r"not even one row of 256 tokens fits: .* 0\.5\d GiB, 0\.20 GiB") as caught:
        auto_micro_batch(_auto(1024), _need(), _machine(int(0.2 * 2**30)))
    assert caught.value.where == "batch.micro_batch_size"
    assert all(word in str(caught.value.hint) for word in ("checkpointing", "adamw8bit", "context"))


def test_a_row_longer_than_is_useful_is_still_read_one_at_a_time() -> None:
    length = 2 * MOST_TOKENS["cpu"]
    batch, _ = auto_micro_batch(_auto(4 * length), _need(length), _machine(64 * 2**30))
    assert (batch.micro_batch_size, batch.gradient_accumulation_steps) == (1, 4)


def test_the_budget_is_the_recipes_or_nine_tenths_of_what_is_free() -> None:
    import psutil

    assert budget(RuntimeConfig(memory_budget=12345), "cpu") == 12345
    free = psutil.virtual_memory().available
    assert budget(RuntimeConfig(), "cpu") == pytest.approx(0.9 * free, rel=0.1)
    assert RuntimeConfig.model_validate({"memory_budget": "6 GiB"}).memory_budget == 6 * 2**30


def test_processes_of_one_machine_share_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    assert (
        budget(RuntimeConfig(memory_budget=12000), "cpu") == 3000
        and budget(RuntimeConfig(memory_budget=12000), "cuda") == 12000
    )
