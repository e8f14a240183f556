"""Work and time of a stage, and the published runs that the ranges are held against."""

import subprocess
import sys
from dataclasses import asdict
from json import loads
from pathlib import Path

import pytest

from fledge.model.cost import ModelCost
from fledge.plan.time import Hardware, Range, seconds_of_exchange, seconds_of_work
from fledge.plan.work import Amounts, Work, stage_work
from fledge.recipe import recipe_from_dict
from fledge.recipe.schema import ModelConfig, Stage

ROOT = Path(__file__).parents[2]
MODEL = ModelConfig(hidden_size=512, num_hidden_layers=8, num_attention_heads=8, num_key_value_heads=2, intermediate_size=1408)
COST = ModelCost(MODEL, 6400)
AMOUNTS = Amounts(tokens=10_000, target_tokens=4_000, positions=12_000, updates=10, epochs=2.0, mean_context=100.0)


def _stage(**settings: object) -> Stage:
    base = {"kind": "sft", "data": {"train": "x.jsonl"}, "duration": "1 epoch"}
    return recipe_from_dict({"stages": {"base": base, "s": {**base, **settings}}}).stages["s"]


def _work(stage: Stage, every: int = 0) -> Work:
    return stage_work(stage, COST, AMOUNTS, checkpoint_every=every, size=2)


def test_the_parts_are_the_operations_of_training_that_mfu_counts() -> None:
    work, matrices = _work(_stage()), COST.body_flops(0.0)
    assert work.blocks == 3 * matrices * AMOUNTS.positions
    assert work.attention == pytest.approx(3 * (COST.body_flops(100.0) - matrices) * AMOUNTS.tokens)
    assert work.head == COST.training_head_flops() * AMOUNTS.target_tokens
    assert work.recomputed == work.reference == 0.0
    unpadded = Amounts(**{**asdict(AMOUNTS), "positions": AMOUNTS.tokens})
    same = stage_work(_stage(), COST, unpadded, checkpoint_every=0, size=2)
    assert same.flops == pytest.approx(
        AMOUNTS.tokens * COST.training_body_flops(100.0) + AMOUNTS.target_tokens * COST.training_head_flops()
    )


def test_checkpointing_computes_the_blocks_once_more_and_an_adapter_leaves_out_one_product_of_three() -> None:
    plain, full, half = _work(_stage()), _work(_stage(), every=1), _work(_stage(), every=2)
    assert full.recomputed == pytest.approx((plain.blocks + plain.attention) / 3)
    assert half.recomputed == pytest.approx(full.recomputed / 2)
    adapted = _work(_stage(adapter={"r": 8}))
    assert adapted.blocks == pytest.approx(plain.blocks * 2 / 3) and adapted.attention == plain.attention


def test_a_reference_is_a_forward_pass_of_each_token_or_of_each_epoch_once() -> None:
    live = _work(_stage(kind="preference", precompute_ref_log_probs=False))
    once = _work(_stage(kind="preference"))
    free = _work(_stage(kind="preference", loss_type="orpo"))
    assert free.reference == 0.0
    assert live.reference == pytest.approx((live.blocks + live.attention + live.head) / 3)
    assert once.reference == once.precomputed == pytest.approx(live.reference / AMOUNTS.epochs)
    assert live.precomputed == 0.0
    half = Amounts(**{**asdict(AMOUNTS), "epochs": 0.5})
    all_examples = stage_work(_stage(kind="preference"), COST, half, checkpoint_every=0, size=2)
    assert all_examples.reference == pytest.approx(2 * live.reference), "of all examples, also where half of them are read"


def test_a_precomputed_reference_is_not_divided() -> None:
    live, once = (_work(_stage(kind="preference", precompute_ref_log_probs=is_once)) for is_once in (False, True))
    of_four = once.divided(4)
    assert live.divided(4).reference == live.reference / 4 and of_four.blocks == once.blocks / 4
    assert of_four.reference == of_four.precomputed == once.reference
    assert of_four.flops == pytest.approx((once.flops - once.reference) / 4 + once.reference)


def test_a_card_takes_products_and_bytes_and_at_least_its_launches() -> None:
    work = Work(blocks=1e15, attention=0, head=0, recomputed=0, reference=0, traffic=0)
    card = Hardware(flops=1e14, bandwidth=1e12)
    only_products = seconds_of_work(work, card)
    assert 10 < only_products.low < only_products.high < 40
    with_bytes = seconds_of_work(Work(**{**asdict(work), "traffic": 1e13}), card)
    assert with_bytes.low > only_products.low + 10
    tiny = Work(**{name: value / 1e9 for name, value in asdict(work).items()})
    assert seconds_of_work(tiny, card, launches=1e4).low == pytest.approx(1.0)
    assert seconds_of_work(work, Hardware(flops=1e12)).high > 1e3, "a processor: all of it is a share of the products"


def test_devices_divide_the_work_and_pay_for_the_exchange() -> None:
    two = Hardware(flops=1e14, bandwidth=1e12, link=1e10, count=2)
    ring = seconds_of_exchange(two, 4e9, updates=10, micro_batches=3)
    assert ring == Range(0.0, pytest.approx(2 * 0.5 * 4e9 * 10 / 1e10))
    sharded = seconds_of_exchange(Hardware(flops=1e14, link=1e10, count=2, is_sharded=True), 4e9, updates=10, micro_batches=3)
    assert sharded.high == pytest.approx(3 * 0.5 * 4e9 * 30 / 1e10)
    assert seconds_of_exchange(Hardware(flops=1e14), 4e9, updates=10, micro_batches=1) == Range(0.0, 0.0)


def test_the_ranges_hold_for_nine_of_ten_published_runs() -> None:
    script = ROOT / "benchmarks" / "plan_published.py"
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, check=True, cwd=ROOT)
    result = loads(done.stdout.splitlines()[-1])
    assert result["runs"] >= 120 and result["inside"] >= 0.88 and 0.9 <= result["median_ratio"] <= 1.1
    assert result["median_width"] <= 3.5
