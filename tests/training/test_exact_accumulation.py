"""Every optimisation of speed or memory gives the loss and the gradients of the plain computation."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from fledge.autotune.compile import compile_blocks, compiled_kernel
from fledge.data import Batch, PackedDataset
from fledge.model.attention import BACKENDS
from fledge.model.decoder import Decoder
from fledge.objective import CausalLMObjective
from fledge.optim.build import build_optimizers
from fledge.plan.horizon import TrainingHorizon
from fledge.recipe.schema import OptimizerConfig
from fledge.tokenizer import train_tokenizer
from fledge.training.batch_source import DatasetSource
from fledge.training.train_step import TrainStep
from fledge.world import Sizes, build
from tests.support.decoders import assert_same_gradients, gradients, make_config, make_decoder
from tests.support.packed import Sequence, pack, random_sequences

LENGTHS = [32, 9, 20, 33, 5, 17, 30, 28, 25, 31, 12, 39]
KINDS: dict[str, dict[str, Any]] = {
    "dense": {"qk_norm": True},
    "a head of its own": {"tie_word_embeddings": False, "num_key_value_heads": 1},
    "mixture": {"qk_norm": True, "moe": {"num_experts": 4, "num_experts_per_tok": 2}},
    "mixture with a shared network": {"moe": {"num_experts": 3, "num_experts_per_tok": 2, "num_shared_experts": 1}},
}
EACH_KIND = pytest.mark.parametrize("kind", KINDS)
LossAndGradients = tuple[float, dict[str, Tensor]]


def _data() -> PackedDataset:
    return pack(random_sequences(LENGTHS), packed_length=40)


def _model(kind: str, backend: str = "reference", every: int = 0, **more: Any) -> Decoder:
    model = make_decoder(num_hidden_layers=3, **{**KINDS[kind], **more}).train()
    model.set_attention_backend(backend)
    model.activation_checkpoint_every = every
    return model


def _learn(model: Decoder, batch: Batch, kernel: Any = None) -> LossAndGradients:
    """Mean loss of a batch, and its gradients with the auxiliary loss of a mixture."""
    torch.manual_seed(11)
    outcome = CausalLMObjective(0.0, kernel)(model, batch)
    trained = outcome.loss if outcome.aux_loss is None else outcome.loss + outcome.aux_loss
    (trained / batch.weight).backward()
    return float(outcome.loss.detach()) / batch.weight, gradients(model)


def _assert_equal(got: LossAndGradients, expected: LossAndGradients, bound: float = 1e-5) -> None:
    assert got[0] == pytest.approx(expected[0], abs=bound)
    assert_same_gradients(got[1], expected[1], atol=bound, rtol=bound)


@EACH_KIND
def test_the_fused_head_gives_the_loss_and_the_gradients_of_the_plain_one(kind: str) -> None:
    model, batch = _model(kind), _data().batch(0, 8)
    hidden, routing = model.forward_with_router_stats(batch.input_ids, batch.position_ids, batch.documents)
    each = F.cross_entropy(model.logits(hidden).flatten(0, 1), batch.targets.flatten(), reduction="none")
    loss = (each * batch.loss_weights.flatten()).sum() / batch.weight
    penalty = routing.penalty(model.config.moe) if routing is not None and model.config.moe is not None else 0.0
    (loss + penalty).backward()
    plain = float(loss.detach()), gradients(model)
    _assert_equal(_learn(model, batch), plain)


@EACH_KIND
@pytest.mark.parametrize("every", [1, 2])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_activation_checkpointing_changes_neither_loss_nor_gradients(kind: str, every: int, dropout: float) -> None:
    batch = _data().batch(0, 8)
    kept = _learn(_model(kind, "blocked", dropout=dropout), batch)
    _assert_equal(_learn(_model(kind, "blocked", every, dropout=dropout), batch), kept, 1e-6)
    if dropout:
        assert kept[0] != _learn(_model(kind, "blocked"), batch)[0]


@EACH_KIND
@pytest.mark.parametrize("backend", sorted(set(BACKENDS) - {"reference"}))
def test_every_attention_backend_gives_the_loss_and_the_gradients_of_the_definition(kind: str, backend: str) -> None:
    data = pack(random_sequences([150, 40, 9, 130, 129, 33, 60]), packed_length=300)
    batch: Batch = data.batch(0, len(data))
    more: dict[str, Any] = {"max_position_embeddings": 300}
    assert int(batch.documents.max()) > 1 and bool((batch.documents == 0).any())
    _assert_equal(_learn(_model(kind, backend, **more), batch), _learn(_model(kind, **more), batch))


@EACH_KIND
@pytest.mark.parametrize("backend", sorted(BACKENDS))
@pytest.mark.parametrize("every", [0, 1])
def test_packed_documents_give_the_gradients_of_each_document_alone(kind: str, backend: str, every: int) -> None:
    """Penalties of a mixture are left out: they belong to the batch as a whole."""
    model, sequences = _model(kind, backend, every), random_sequences(LENGTHS)
    batch = _data().batch(0, 8)
    (CausalLMObjective()(model, batch).loss / batch.weight).backward()
    packed, total = gradients(model), 0.0
    for one in sequences:
        each = F.cross_entropy(model.logits(model(one.tokens[None, :-1]))[0], one.tokens[1:], reduction="none")
        loss = (each * one.weights[1:]).sum() / batch.weight
        loss.backward()
        total += float(loss.detach())
    assert total == pytest.approx(float(CausalLMObjective()(model, batch).loss.detach()) / batch.weight, abs=1e-5)
    assert_same_gradients(packed, gradients(model), atol=1e-5, rtol=1e-5)


@EACH_KIND
def test_bfloat16_gradients_are_near_the_exact_ones(kind: str) -> None:
    """|g − g'| / |g| of all gradients as one vector, over five seeds of these models: dense 0.023 to 0.035, mixtures 0.046 to
    0.126, where rounding also changes which experts some tokens choose."""
    batch = _data().batch(0, 8)
    exact, model = _learn(_model(kind, "blocked"), batch), _model(kind, "blocked")
    model.compute_dtype = torch.bfloat16
    rounded = _learn(model, batch)
    assert rounded[0] == pytest.approx(exact[0], rel=0.01)
    distance = sum(float((rounded[1][name] - gradient).square().sum()) for name, gradient in exact[1].items()) ** 0.5
    size = sum(float(gradient.square().sum()) for gradient in exact[1].values()) ** 0.5
    assert 1e-4 < distance / size < (0.2 if "mixture" in kind else 0.05)


@pytest.mark.slow
def test_a_compiled_mixture_and_head_give_the_loss_and_the_gradients_of_the_plain_ones() -> None:
    """The dense decoder is compiled in tests/model/test_compiled.py."""
    torch._dynamo.reset()
    batch = _data().batch(0, 8)
    plain, model = _learn(_model("mixture", "blocked"), batch), _model("mixture", "blocked")
    compile_blocks(model)
    for model.activation_checkpoint_every in (0, 2):
        _assert_equal(_learn(model, batch, compiled_kernel()), plain)


# -- the curve of a whole run ------------------------------------------------------------------------------------------


def _world_text(folder: Path) -> PackedDataset:
    """The generated world's pretraining text in rows of 32."""
    import json

    build(5, folder, Sizes(pretrain=1200, sft=1, preference=1, validation=1, questions=1))
    texts = [json.loads(line)["text"] for line in (folder / "pretrain.jsonl").read_text(encoding="utf-8").splitlines()]
    tokenizer = train_tokenizer(texts, 400, "chatml")
    encoded = [torch.tensor(tokenizer.encode_document(text)[:33]) for text in texts]
    return pack([Sequence(tokens, torch.ones(len(tokens))) for tokens in encoded], packed_length=32)


def _final_loss(data: PackedDataset, seed: int, change: Callable[[Decoder], Any] = lambda model: None, micro: int = 8) -> float:
    """Mean loss of the last 40 of 200 steps. `change` changes the compute configuration; it may return a head kernel."""
    model = Decoder(make_config(initializer_range=0.02), 400)
    model.init_weights(seed)
    model.set_attention_backend("blocked")
    kernel = change(model)
    optimizers = build_optimizers(model.train(), OptimizerConfig(learning_rate=3e-3))
    train_step = TrainStep(model, CausalLMObjective(0.0, kernel), optimizers, max_grad_norm=1.0, seed=seed)
    horizon = TrainingHorizon(
        steps=200,
        rows=1600,
        micro_batch_size=micro,
        gradient_accumulation_steps=8 // micro,
        initial_accumulation_steps=8 // micro,
    )
    source = DatasetSource(data, horizon, micro, lambda batch: batch.weight)
    losses = [float(train_step(source.batch(step), 3e-3 * min(1, (step + 1) / 20)).loss) for step in range(200)]
    assert losses[0] > 5.5 and losses[-1] < 0.8 * losses[0]
    return sum(losses[-40:]) / 40


def _bf16(model: Decoder) -> None:
    model.compute_dtype = torch.bfloat16


def _small(model: Decoder) -> None:
    model.activation_checkpoint_every = 1
    model.set_attention_backend("sdpa")


def _compiled(model: Decoder) -> Any:
    torch._dynamo.reset()
    compile_blocks(model)
    return compiled_kernel()


@pytest.mark.slow
def test_every_compute_configuration_reaches_an_equal_loss_within_the_spread_of_seeds(tmp_path: Path) -> None:
    data = _world_text(tmp_path / "world")
    seeds = [_final_loss(data, seed) for seed in range(4)]
    spread = max(seeds) - min(seeds)
    engines = {
        "bf16": _final_loss(data, 0, _bf16),
        "checkpointing, micro-batches of 4, fused attention": _final_loss(data, 0, _small, micro=4),
        "compiled": _final_loss(data, 0, _compiled),
    }
    assert 0.001 < spread < 0.5, seeds
    for name, loss in engines.items():
        assert abs(loss - seeds[0]) < spread, f"{name}: {loss:.4f} against {seeds[0]:.4f}; seeds {seeds}"
