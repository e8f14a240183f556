"""Every number of the `step` and `system` events, computed a second time."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fledge.checkpoint.state import TrainState
from fledge.model.cost import ModelCost
from fledge.model.decoder import Decoder
from fledge.model.moe import update_biases
from fledge.monitor.phase_timer import PhaseTimer
from fledge.monitor.update_ratio import UpdateRatioMonitor
from fledge.objective import CausalLMObjective
from fledge.optim.build import build_optimizers
from fledge.optim.grad_scaler import GradScaler
from fledge.plan.horizon import TrainingHorizon
from fledge.recipe.schema import OptimizerConfig
from fledge.run import memory_bytes
from fledge.training.batch_source import DatasetSource, StepBatch
from fledge.training.metrics import step_metrics, system_metrics
from fledge.training.train_step import StepOutput, TrainStep
from tests.support.decoders import make_decoder
from tests.support.packed import pack, random_sequences

CPU = torch.device("cpu")
LENGTHS = [32, 9, 20, 33, 5, 17, 30, 28, 25, 31, 12, 39]  # eight rows of 40
CLOCKS = ("seconds", "time", "eta", "memory", "per_second", "phases", "mfu")


def _batch() -> StepBatch:
    data = pack(random_sequences(LENGTHS), packed_length=40)
    return DatasetSource(
        data,
        TrainingHorizon(steps=1, rows=8, micro_batch_size=2, gradient_accumulation_steps=4, initial_accumulation_steps=4),
        2,
        lambda batch: batch.weight,
    ).batch(0)


def _train_step(model: Decoder, max_grad_norm: float | None = None, grad_scaler: GradScaler | None = None) -> TrainStep:
    optimizers = build_optimizers(model, OptimizerConfig(learning_rate=0.01))
    return TrainStep(model, CausalLMObjective(), optimizers, max_grad_norm=max_grad_norm, seed=7, grad_scaler=grad_scaler)


def _output(**sizes: Any) -> tuple[StepOutput, Decoder, Decoder]:
    """The output of an update with details, the model before and the model after the update."""
    model = make_decoder(**sizes).train()
    before = make_decoder(**sizes)
    return _train_step(model)(_batch(), 0.01, 0.25, log_details=True), before, model


def _system_metrics(output: StepOutput, state: TrainState, model: Decoder, **changes: Any) -> dict[str, Any]:
    """The `system` event; 40 positions a row."""
    arguments: dict[str, Any] = {
        "total_steps": 40,
        "device": "cpu",
        "seconds_before": 0.0,
        "other_seconds": {},
        "peak_flops": 0.0,
        **changes,
    }
    cost = ModelCost(model.config, model.vocab_size)
    return system_metrics(output, state, cost=cost, mean_context=40, folder=Path("."), **arguments)


def _state(output: StepOutput, **more: Any) -> TrainState:
    batch = output.batch
    values = {"step": 1, "tokens": batch.num_tokens, "target_tokens": batch.num_target_tokens, "seconds": 2.0}
    return TrainState(**{**values, **more})


def test_a_step_event_holds_tokens_loss_gradient_norm_and_learning_rate() -> None:
    output, before, _ = _output()
    sequences = random_sequences(LENGTHS)
    loss, total = torch.zeros(()), 0.0
    for one in sequences:
        logs = before.logits(before(one.tokens[None, :-1]))[0].log_softmax(-1)
        picked = logs.gather(-1, one.tokens[1:, None])[:, 0]
        loss, total = loss - (picked * one.weights[1:]).sum(), total + float(one.weights[1:].sum())
    (loss / total).backward()
    norm = math.sqrt(sum(float(p.grad.double().square().sum()) for p in before.parameters() if p.grad is not None))
    values = step_metrics(output, _state(output, clipped_steps=0), ("text",), True)
    supervised, tokens = sum(int((s.weights[1:] > 0).sum()) for s in sequences), sum(LENGTHS) - len(LENGTHS)
    mean = float(loss.detach() / total)
    assert values["train/loss"] == pytest.approx(mean, rel=1e-5)
    assert values["train/perplexity"] == pytest.approx(math.exp(mean), rel=1e-4)
    assert values["train/grad_norm"] == pytest.approx(norm, rel=1e-4)
    assert (values["train/tokens"], values["train/target_tokens"]) == (tokens, supervised)
    assert (
        values["train/target_token_fraction"] == pytest.approx(supervised / tokens, abs=1e-6)
        and 0.4 < supervised / tokens < 0.9
    )
    assert (values["train/epoch"], values["train/lr"], values["train/clip_fraction"]) == (1.0, 0.01, 0.0)
    assert "train/tokens_by_source" not in values and "train/loss_scale" not in values and "router/load" not in values


def test_clip_fraction_and_tokens_by_source_count_the_whole_run_so_far() -> None:
    output, _, _ = _output()
    state = _state(output, step=7, clipped_steps=3, by_source=[120, 33], tokens=153)
    values = step_metrics(output, state, ("old", "new"), False)
    assert values["train/clip_fraction"] == round(3 / 7, 6)
    assert values["train/tokens_by_source"] == {"old": 120, "new": 33} and values["train/tokens"] == 153
    assert "train/perplexity" not in values


def test_update_ratios_of_a_known_update_are_exact() -> None:
    model = make_decoder(tie_word_embeddings=False)
    watch = UpdateRatioMonitor(model)
    watch.before()
    sizes = {"embed": 0.01, "attention": 0.02, "mlp": 0.0, "norm": 0.5, "head": 0.003}

    def group(name: str) -> str:
        groups = {"embed_tokens": "embed", "lm_head": "head", "norm": "norm", "mlp": "mlp", "self_attn": "attention"}
        return next(kind for word, kind in groups.items() if word in name.removeprefix("layers."))

    with torch.no_grad():
        for name, parameter in model.named_parameters():
            kind = "norm" if "norm" in name else group(name)
            parameter.mul_(1 - sizes[kind])
    assert {name: float(value) for name, value in watch.after().items()} == pytest.approx(sizes, rel=1e-4, abs=1e-9)


def test_update_ratios_of_a_step_are_the_change_between_the_models_before_and_after() -> None:
    output, before, after = _output()
    values = step_metrics(output, _state(output), ("text",), True)
    ratios = {name.removeprefix("update_ratio/"): value for name, value in values.items() if name.startswith("update_ratio/")}
    assert set(ratios) == {"embed", "attention", "mlp", "norm"}
    kinds = {"embed": "embed_tokens", "attention": "proj.weight", "mlp": "mlp."}
    for kind, word in kinds.items():
        pairs = [
            (old.detach(), new.detach())
            for (name, old), new in zip(before.named_parameters(), after.parameters(), strict=True)
            if word in name and (kind != "attention" or "self_attn" in name)
        ]
        change = math.sqrt(sum(float((a - b).square().sum()) for a, b in pairs))
        assert ratios[kind] == pytest.approx(change / math.sqrt(sum(float(a.square().sum()) for a, _ in pairs)), rel=1e-4)


def test_the_routing_of_a_mixture_is_counted_over_the_whole_step_batch() -> None:
    moe = {"num_experts": 4, "num_experts_per_tok": 2, "load_balancing": "bias", "bias_update_rate": 0.01}
    output, before, after = _output(qk_norm=True, moe=moe)
    assert output.router_stats is not None
    values = step_metrics(output, _state(output), ("text",), True)
    load = torch.tensor(values["router/load"])
    counts = torch.zeros(2, 4)
    with torch.no_grad():
        for micro_batch in output.batch.batches:
            inputs = (micro_batch.input_ids, micro_batch.position_ids, micro_batch.documents)
            routing = before.forward_with_router_stats(*inputs)[1]
            assert routing is not None
            counts += routing.counts
    assert (
        int(counts.sum()) == 2 * 2 * output.batch.num_tokens
    )  # two experts in each of two layers for each token, padding for none
    torch.testing.assert_close(load, 4 * counts / counts.sum(1, keepdim=True), atol=6e-5, rtol=0)
    assert values["router/max_load"] == pytest.approx(float(load.max()), abs=1e-4)
    assert values["router/min_load"] == pytest.approx(float(load.min()), abs=1e-4)
    assert 0 < values["router/entropy"] < math.log(4) and values["train/router_z_loss"] > 0
    update_biases(after, output.router_stats)
    biases = torch.stack([block.mlp.gate.e_score_correction_bias for block in after.blocks()])  # type: ignore[union-attr]
    torch.testing.assert_close(biases, 0.01 * (counts.mean(1, keepdim=True) - counts).sign())


def test_a_step_that_overflowed_is_written_without_nan_or_infinity() -> None:
    model = make_decoder().train()
    train_step = _train_step(model, 1.0, GradScaler(CPU, skipped=2))
    model.norm.weight.register_hook(lambda gradient: gradient * math.inf)
    output = train_step(_batch(), 0.01, log_details=True)
    values = step_metrics(output, _state(output), ("text",), True)
    json.dumps(values, allow_nan=False)
    assert values["train/grad_norm"] is None and values["grad_noise/scale"] is None
    assert values["train/loss_scale"] == 65536 and values["train/skipped_steps"] == 3
    assert set(value for name, value in values.items() if name.startswith("update_ratio")) == {0.0}


@pytest.mark.parametrize("loss", [math.inf, math.nan, 800.0])
def test_an_event_is_valid_json_for_any_loss(loss: float) -> None:
    output, _, _ = _output()
    output = replace(output, loss=torch.tensor(loss), grad_norm=torch.tensor(math.nan))
    values = step_metrics(output, _state(output), ("text",), True)
    event = json.loads(json.dumps(values, allow_nan=False))
    assert event["train/loss"] == (loss if math.isfinite(loss) else None) and event["train/grad_norm"] is None


def test_a_step_event_holds_nothing_that_depends_on_time_or_memory() -> None:
    moe = {"num_experts": 4, "num_experts_per_tok": 2}
    output, _, _ = _output(qk_norm=True, moe=moe)
    values = step_metrics(output, _state(output, by_source=[1, 2]), ("one", "two"), True)
    assert not [name for name in values for word in CLOCKS if word in name]
    again, _, _ = _output(qk_norm=True, moe=moe)
    again.timer.add("data", 3.0)
    assert values == step_metrics(again, _state(again, by_source=[1, 2], seconds=99.0), ("one", "two"), True)


def test_a_system_event_holds_time_by_phase_throughput_memory_and_mfu() -> None:
    output, _, model = _output()
    timer = PhaseTimer(CPU)
    for name, seconds in (("data", 0.5), ("forward", 1.0), ("backward", 2.0), ("optimizer", 0.5)):
        timer.add(name, seconds)
    output = replace(output, timer=timer)
    batch = output.batch
    state = _state(output, step=10, seconds=20.0, tokens=1000)
    timing = {"seconds_before": 14.0, "other_seconds": {"save": 1.5}, "peak_flops": 1e6}
    values = _system_metrics(output, state, model, **timing)
    phases = {"data": 0.5, "forward": 1.0, "backward": 2.0, "optimizer": 0.5, "save": 1.5}
    assert values["system/phases"] == phases and values["system/seconds"] == 20 and values["system/step_seconds"] == 6
    assert values["system/tokens_per_second"] == 50 and values["system/eta_seconds"] == 60
    training_seconds = 6 - 1.5  # the half second between updates counts; saving does not
    assert values["system/step_tokens_per_second"] == round(batch.num_tokens / training_seconds, 1)
    matrices = sum(p.numel() for name, p in model.named_parameters() if p.dim() == 2 and "embed" not in name)
    body, head = 6 * matrices + 3 * 4 * 2 * 32 * 40 / 2, 6 * model.lm_head_weight.numel()
    flops = batch.num_tokens * body + batch.num_target_tokens * head
    assert values["system/mfu"] == pytest.approx(flops / training_seconds / 1e6, abs=1e-4)
    assert "system/mfu" not in _system_metrics(output, state, model, seconds_before=14.0)
    json.dumps(values, allow_nan=False)


def test_memory_is_measured_for_the_process_and_its_peak_is_not_lower() -> None:
    output, _, model = _output()
    ballast = np.ones(30 << 20, np.uint8)
    held = memory_bytes()
    values = _system_metrics(output, _state(output), model)
    assert values["system/memory_bytes"] == pytest.approx(held, rel=0.05)
    assert values["system/memory_bytes"] >= ballast.nbytes
    assert values["system/peak_memory_bytes"] >= 0.98 * values["system/memory_bytes"]


def test_every_phase_of_an_update_is_timed() -> None:
    output, _, _ = _output()
    phases = output.timer.seconds()
    assert list(phases) == ["data", "forward", "backward", "optimizer"]
    assert phases["data"] == 0.25 and all(seconds > 0 for seconds in phases.values())
