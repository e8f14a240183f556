"""Micro-batches are as large as memory allows; what one update reads is what the recipe says."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fledge.errors import FledgeError
from fledge.model.cost import ModelCost
from fledge.model.decoder import Decoder
from fledge.model.protocol import matrix_layers
from fledge.model.quantization import bytes_per_weight
from fledge.plan import memory as planner
from fledge.plan.memory import (
    MAX_MICRO_BATCH_TOKENS,
    MemoryInputs,
    auto_micro_batch,
    budget,
    estimate,
    memory_inputs,
    memory_of_step,
    merged_micro_batch,
    moments_of_step,
    useful_tokens,
)
from fledge.recipe.schema import (
    AdapterConfig,
    BatchConfig,
    ModelConfig,
    OptimizerConfig,
    PreferenceStage,
    QuantizationConfig,
    RuntimeConfig,
)
from tests.support.packed import pack_pairs, random_pairs

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

    def divided(size: int) -> MemoryInputs:
        return replace(inputs, accumulates=size < rows)

    fits = [size for size in range(1, rows + 1) if rows % size == 0 and estimate(divided(size), runtime, size) <= limit]
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


def test_undecided_settings_count_as_the_larger_case() -> None:
    undecided = RuntimeConfig()
    assert estimate(_inputs(), undecided, 8) == estimate(_inputs(), _runtime(), 8)
    halved, whole = (memory_of_step(_inputs(device=device), undecided, 8).activations for device in ("cuda", "cpu"))
    assert halved < whole


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
        plain = runtime.model_copy(update={"attention": "blocked"})
        return moments_of_step(inputs, runtime, 32)["forward"].total - moments_of_step(inputs, plain, 32)["forward"].total

    tokens = 32 * 512
    masked, varlen = 2 * tokens * (512 + 4 * 2 * (256 - 64)), 4 * 256 * (tokens + 128 * 256)
    assert extra("sdpa") == masked and extra("varlen") == varlen and extra("blocked") == 0
    assert extra("auto") == max(masked, varlen)
    assert extra("sdpa", activation_checkpointing="full") == 2 * tokens * (512 + 2 * (256 - 64))


# -- a GPU ----------------------------------------------------------------------------------------------------------------


@pytest.fixture
def card(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU with the multiprocessors of an H100."""
    monkeypatch.setattr(planner, "multiprocessors", lambda: 132)


def _gpu(gibibytes: float, **model: Any) -> tuple[MemoryInputs, RuntimeConfig]:
    cost = ModelCost(MODEL.model_copy(update={"hidden_size": 512, **model}), 6400)
    inputs = MemoryInputs(cost=cost, row_length=512, optimizer=OptimizerConfig(name="adamw"), device="cuda")
    return inputs, RuntimeConfig(device="cuda", precision="bf16", compile=False, memory_budget=int(gibibytes * 2**30))


@pytest.mark.parametrize(
    ("multiprocessors", "width", "tokens"),
    [(132, 512, 67_584), (132, 768, 45_056), (40, 768, 16_384), (132, 256, 131_072), (132, 4096, 16_384)],
)
def test_a_card_is_full_when_all_multiprocessors_have_enough_tiles(
    multiprocessors: int, width: int, tokens: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(planner, "multiprocessors", lambda: multiprocessors)
    assert useful_tokens("cuda", width) == tokens
    assert useful_tokens("cpu", width) == 16_384


@given(micro=st.integers(1, 40), count=st.integers(1, 40), memory=st.floats(0.9, 40))
def test_merged_micro_batches_keep_the_rows_fit_into_memory_and_never_shrink(micro: int, count: int, memory: float) -> None:
    inputs, runtime = _gpu(memory)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planner, "multiprocessors", lambda: 132)
        batch = BatchConfig(micro_batch_size=micro, gradient_accumulation_steps=count, merge_micro_batches=True)
        merged, notes = merged_micro_batch(batch, inputs, runtime)
        size = merged.micro_batch_rows
        assert size * merged.gradient_accumulation_steps == micro * count and size >= micro
        if size == micro:
            assert merged == batch and not notes
            return
        fits = [rows for rows in range(1, micro * count + 1) if (micro * count) % rows == 0]
        fits = [rows for rows in fits if estimate(inputs, runtime, rows) <= budget(runtime, "cuda") and rows * 512 <= 67_584]
        assert size == max(fits)
        (note,) = notes
        assert f"{size} rows instead of {micro}, {merged.gradient_accumulation_steps} per step" in note
        assert "67,584 tokens fill this GPU (132 multiprocessors)" in note and f"of {memory:.2f} GiB" in note


@pytest.mark.usefixtures("card")
def test_only_an_open_micro_batch_is_merged_and_only_on_a_gpu() -> None:
    inputs, runtime = _gpu(40)
    open_size = BatchConfig(gradient_accumulation_steps=8)
    written = BatchConfig(micro_batch_size=16, gradient_accumulation_steps=8)
    assert open_size.merge_micro_batches and not written.merge_micro_batches
    assert merged_micro_batch(open_size, inputs, runtime)[0].micro_batch_size == 128
    assert merged_micro_batch(written, inputs, runtime) == (written, [])
    assert merged_micro_batch(open_size, replace(inputs, device="cpu"), runtime) == (open_size, [])


MOE: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "num_shared_experts": 1}


@pytest.mark.usefixtures("card")
@pytest.mark.parametrize(
    ("batch", "model", "reason"),
    [
        ({"warmup": {}}, {}, "batch.warmup counts them"),
        ({}, {"dropout": 0.1}, "dropout is drawn for each"),
        ({}, {"moe": MOE}, "router's losses"),
        ({}, {"moe": {**MOE, "load_balancing": "bias"}}, "router's losses"),
        ({}, {"moe": {**MOE, "load_balancing": "bias", "router_z_loss_coef": 0}}, None),
    ],
)
def test_micro_batches_stay_where_merging_would_change_more_than_rounding(
    batch: dict[str, Any], model: dict[str, Any], reason: str | None
) -> None:
    changed = ModelConfig.model_validate({**MODEL.model_dump(), "hidden_size": 512, **model})
    inputs, runtime = _gpu(40)
    inputs = replace(inputs, cost=ModelCost(changed, 6400))
    given = BatchConfig(gradient_accumulation_steps=8, **batch)
    merged, (note,) = merged_micro_batch(given, inputs, runtime)
    if reason is None:
        assert merged.micro_batch_size == 128 and "128 rows instead of 16" in note
    else:
        assert merged == given and note.startswith("micro-batches stay at 16 rows, 8 per step: ") and reason in note


@pytest.mark.usefixtures("card")
def test_auto_takes_what_fills_the_card() -> None:
    inputs, runtime = _gpu(60)
    batch, (note,) = auto_micro_batch(_auto(512 * 512), inputs, runtime)
    assert (batch.micro_batch_size, batch.gradient_accumulation_steps) == (128, 4)
    assert "67,584 tokens fill this GPU" in note


def test_the_live_reference_of_an_adapter_counts_as_a_copy_of_the_adapter_and_not_as_a_second_model() -> None:
    cost, data = ModelCost(MODEL, 6400), pack_pairs(random_pairs(4))

    def size(adapter: AdapterConfig | None, is_table: bool) -> float:
        values = {"kind": "preference", "data": {"train": "x"}, "adapter": adapter, "precompute_ref_log_probs": is_table}
        return estimate(memory_inputs(PreferenceStage.model_validate(values), cost, data, "cpu"), _runtime(), 1)

    adapter = AdapterConfig(r=4)
    assert size(adapter, False) - size(adapter, True) == 4 * cost.adapter_parameters(4)
    assert size(None, False) - size(None, True) == 4 * cost.parameters().total


def test_an_adapter_counts_with_the_layers_that_it_is_on_and_with_the_most_where_the_sizes_do_not_tell() -> None:
    cost, data = ModelCost(MODEL, 6400), pack_pairs(random_pairs(4))

    def parameters(**adapter: Any) -> int | None:
        values = {"kind": "preference", "data": {"train": "x"}, "adapter": adapter}
        return memory_inputs(PreferenceStage.model_validate(values), cost, data, "cpu").adapter

    on_all = cost.adapter_parameters(8)
    assert parameters(r=8) == on_all and parameters(r=8, target_modules=r".*_proj") == on_all
    of_queries = MODEL.num_hidden_layers * (MODEL.hidden_size + MODEL.attention_size)
    assert parameters(r=8, target_modules=["q_proj"]) == 8 * of_queries
    assert parameters(r=4, rank_pattern={"q_proj": 8}) == on_all
    assert (parameters(r=8, use_dora=True) or 0) > on_all


def test_a_second_model_in_half_precision_or_on_another_device_takes_less() -> None:
    cost, data = ModelCost(MODEL, 6400), pack_pairs(random_pairs(4))

    def size(device: str, **placement: str) -> float:
        values = {"kind": "preference", "data": {"train": "x"}, "precompute_ref_log_probs": False, **placement}
        return memory_inputs(PreferenceStage.model_validate(values), cost, data, device).reference

    with torch.device("meta"):
        matrices = sum(layer.weight.numel() for layer in matrix_layers(Decoder(MODEL, 6400)).values())
    assert size("cuda") == size("cuda", reference_precision="fp32") == 4 * cost.parameters().total
    assert size("cuda", reference_precision="bf16") == 4 * cost.parameters().total - 2 * matrices
    assert size("cuda", reference_device="cpu") == 0


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("use_dora", [False, True])
def test_weights_in_4_bits_take_what_they_take(precision: str, use_dora: bool) -> None:
    cost, data = ModelCost(MODEL, 6400), pack_pairs(random_pairs(4))

    def size(quantization: QuantizationConfig | None) -> float:
        """Weights, and what is kept of them for the backward pass."""
        adapter = AdapterConfig(r=4, use_dora=use_dora)
        values = {"kind": "preference", "data": {"train": "x"}, "adapter": adapter, "quantization": quantization}
        runtime = _runtime().model_copy(update={"precision": precision})
        inputs = memory_inputs(PreferenceStage.model_validate(values), cost, data, "cpu")
        memory = moments_of_step(inputs, runtime, 1)["forward"]
        return memory.weights + memory.activations

    with torch.device("meta"):
        numbers = sum(layer.weight.numel() for layer in matrix_layers(Decoder(MODEL, 6400)).values())
    stored, copied = {("bf16", False): (2, 0), ("bf16", True): (4, 2)}.get((precision, use_dora), (4, 0))
    for double in (True, False):
        config = QuantizationConfig(use_double_quant=double)
        saved = (stored + copied - bytes_per_weight(config)) * numbers
        assert size(None) - size(config) == pytest.approx(saved, rel=1e-3)
