"""Models of transformers behind `LanguageModel` compute as the native decoder does, for any architecture."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fledge.errors import FledgeError
from fledge.model.huggingface import TransformersModel
from fledge.model.loading import describe_model, load_model
from fledge.objective import CausalLMObjective
from fledge.optim.build import build_optimizers
from fledge.optim.muon import Muon
from fledge.recipe.schema import OptimizerConfig
from tests.support.decoders import assert_same_gradients, gradients, random_tokens
from tests.support.packed import pack, random_sequences
from tests.support.transformers_models import KINDS, both, native_name, write_kind, write_model

SHAPES = [
    pytest.param({"tie_word_embeddings": True}, id="llama tied"),
    pytest.param({"tie_word_embeddings": False}, id="llama untied"),
    pytest.param({"qk_norm": True}, id="qwen3"),
    pytest.param({"moe": {"num_experts": 4, "num_experts_per_tok": 2, "num_shared_experts": 1}}, id="qwen2-moe"),
]
DENSE = SHAPES[:3]


def _batch() -> Any:
    """Packed rows of several documents each, with padding."""
    data = pack(random_sequences([20, 9, 31, 5, 17, 30, 12, 3]), packed_length=40)
    batch = data.batch(0, len(data))
    assert int(batch.documents.max()) > 1 and (batch.documents == 0).any()
    return batch


def _native_names(named: dict[str, Tensor]) -> dict[str, Tensor]:
    return {native_name(name): tensor for name, tensor in named.items()}


@pytest.mark.parametrize("changes", SHAPES)
def test_logits_of_packed_rows_equal_the_native_decoders(tmp_path: Path, changes: dict[str, Any]) -> None:
    native, bridge = both(tmp_path, num_hidden_layers=3, rope_theta=250_000.0, **changes)
    batch = _batch()
    with torch.no_grad():
        states = [model(batch.input_ids, batch.position_ids, batch.documents) for model in (native, bridge)]
    filled = batch.documents > 0
    logits = [model.logits(hidden[filled]) for model, hidden in zip((native, bridge), states, strict=True)]
    torch.testing.assert_close(logits[1], logits[0], atol=1e-4, rtol=1e-4)
    assert bridge.vocab_size == native.vocab_size and bridge.device == native.device


@pytest.mark.parametrize("changes", DENSE)
def test_one_training_step_equals_the_native_decoders(tmp_path: Path, changes: dict[str, Any]) -> None:
    batch, config = _batch(), OptimizerConfig(learning_rate=0.01, weight_decay=0.1)
    losses, grads, weights = [], [], []
    for model in both(tmp_path, **changes):
        model.train()
        outcome = CausalLMObjective()(model, batch)
        (outcome.loss / batch.weight).backward()
        losses.append(outcome.loss.detach())
        grads.append({native_name(name): p.grad.clone() for name, p in model.named_parameters() if p.grad is not None})
        for optimizer in build_optimizers(model, config):
            optimizer.step()
        weights.append(_native_names(dict(model.named_parameters())))
    torch.testing.assert_close(losses[1], losses[0], atol=1e-4, rtol=1e-5)
    assert_same_gradients(grads[1], grads[0], atol=1e-5, rtol=1e-4)
    for name, parameter in weights[0].items():
        torch.testing.assert_close(weights[1][name], parameter, atol=1e-4, rtol=1e-4, msg=lambda text, n=name: f"{n}: {text}")


@pytest.mark.parametrize("changes", DENSE)
def test_roles_and_costs_equal_the_native_decoders(tmp_path: Path, changes: dict[str, Any]) -> None:
    native, bridge = both(tmp_path, **changes)
    roles = [{native_name(name): m.parameter_role(name) for name, _ in m.named_parameters()} for m in (native, bridge)]
    assert roles[0] == roles[1] and set(roles[0].values()) >= {"embedding", "matrix", "vector"}
    assert native.cost.parameters() == bridge.cost.parameters() == describe_model(tmp_path, "transformers").cost.parameters()
    assert native.cost.training_flops(64) == bridge.cost.training_flops(64)


def test_the_padding_token_gets_gradients_where_it_is_text(tmp_path: Path) -> None:
    native, bridge = both(tmp_path)
    tokens = torch.tensor([[5, 0, 7, 8]])
    rows = []
    for model in (native, bridge):
        model(tokens).square().sum().backward()
        rows.append(gradients(model)[next(name for name, _ in model.named_parameters())][0])
    assert rows[0].abs().max() > 0
    torch.testing.assert_close(rows[1], rows[0], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_an_architecture_without_native_decoder_gives_the_logits_of_transformers(tmp_path: Path, kind: str) -> None:
    theirs, tokens = write_kind(tmp_path, kind), random_tokens(3, 20)
    lines: list[str] = []
    model = load_model(tmp_path, log=lines.append).eval()
    assert isinstance(model, TransformersModel)
    assert len(lines) == 1 and "the library transformers computes this model" in lines[0]
    with torch.no_grad():
        torch.testing.assert_close(model.logits(model(tokens)), theirs(tokens).logits, atol=1e-5, rtol=1e-5)
    counts = describe_model(tmp_path).cost.parameters()
    assert counts == model.cost.parameters()
    assert counts.total == sum(parameter.numel() for parameter in model.parameters())
    assert (counts.active < counts.total) == (kind == "mixtral") == bool(model.notes)


@pytest.mark.parametrize("kind", KINDS)
def test_packing_changes_neither_states_nor_gradients(tmp_path: Path, kind: str) -> None:
    write_kind(tmp_path, kind)
    model, batch = load_model(tmp_path).eval(), _batch()
    packed = model(batch.input_ids, batch.position_ids, batch.documents)
    packed[batch.documents > 0].square().sum().backward()
    by_packed = gradients(model)
    for row, numbers in enumerate(batch.documents):
        for number in range(1, int(numbers.max()) + 1):
            document = numbers == number
            alone = model(batch.input_ids[row, document][None])
            torch.testing.assert_close(packed[row, document], alone[0], atol=1e-4, rtol=1e-4)
            alone.square().sum().backward()
    largest = max(float(gradient.abs().max()) for gradient in by_packed.values())
    assert_same_gradients(by_packed, gradients(model), atol=1e-5 * largest, rtol=1e-3)
    filled, without_positions = batch.documents > 0, model(batch.input_ids, None, batch.documents)
    torch.testing.assert_close(without_positions[filled], packed[filled], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "mixtral", "gpt2"])
def test_muon_trains_matrices_of_blocks_and_adamw_trains_the_rest(tmp_path: Path, kind: str) -> None:
    write_kind(tmp_path, kind)
    model = load_model(tmp_path).train()
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizers = build_optimizers(model, OptimizerConfig(name="muon", learning_rate=0.01))
    muon = {id(p) for o in optimizers if isinstance(o, Muon) for group in o.param_groups for p in group["params"]}
    for name, parameter in model.named_parameters():
        table = any(word in name for word in ("embed", "wte", "wpe", "lm_head", "mlp.gate.weight"))
        assert (id(parameter) in muon) == (parameter.dim() > 1 and not table), name
    CausalLMObjective()(model, _batch()).loss.backward()
    for optimizer in optimizers:
        optimizer.step()
    assert all(not torch.equal(before[name], parameter) for name, parameter in model.named_parameters())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_close_to_float32_and_gradients_stay_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    _, model = both(tmp_path, qk_norm=True)
    batch = _batch()
    exact = CausalLMObjective()(model, batch).loss
    exact.backward()
    expected = gradients(model)
    model.compute_dtype = dtype
    assert model(batch.input_ids).dtype == dtype
    rounded = CausalLMObjective()(model, batch).loss
    rounded.backward()
    assert float((rounded - exact).detach().abs() / exact.detach()) < 0.01
    for name, gradient in gradients(model).items():
        assert gradient.dtype == torch.float32, name
        assert torch.cosine_similarity(gradient.flatten(), expected[name].flatten(), dim=0) > 0.99, name


@pytest.mark.parametrize(("every", "calls"), [(0, [1, 1, 1]), (1, [2, 2, 2]), (2, [1, 2, 1])])
def test_each_nth_block_is_recomputed_with_equal_gradients(tmp_path: Path, every: int, calls: list[int]) -> None:
    _, model = both(tmp_path, num_hidden_layers=3)
    batch, counted = _batch(), [0, 0, 0]
    CausalLMObjective()(model.train(), batch).loss.backward()
    expected = gradients(model)
    for number, block in enumerate(model.blocks()):
        norm = block.input_layernorm
        norm.register_forward_hook(lambda *_, n=number: counted.__setitem__(n, counted[n] + 1))  # type: ignore[union-attr]
    model.activation_checkpoint_every = every
    CausalLMObjective()(model, batch).loss.backward()
    assert counted == calls
    assert_same_gradients(gradients(model), expected, atol=1e-5)
    model.activation_checkpoint_every, counted[:] = 0, [0, 0, 0]
    CausalLMObjective()(model, batch).loss.backward()
    assert counted == [1, 1, 1]


def test_a_block_that_cannot_be_recomputed_is_an_error(tmp_path: Path) -> None:
    _, model = both(tmp_path)

    class Plain(nn.Module):
        """A layer of a model that the library has not prepared for it."""

    setattr(model.get_submodule("causal_lm.model.layers"), "0", Plain())
    model.activation_checkpoint_every = 1
    with pytest.raises(FledgeError, match="Plain of transformers cannot be computed again"):
        model(random_tokens(1, 4))


def test_only_first_block_keeps_one_block_and_restores_all_afterwards(tmp_path: Path) -> None:
    _, model = both(tmp_path, num_hidden_layers=3)
    tokens, names = random_tokens(1, 8), list(model.state_dict())
    expected = model(tokens)
    with pytest.raises(RuntimeError), model.only_first_block():
        assert len(model.blocks()) == 1
        assert not torch.equal(model(tokens), expected)
        raise RuntimeError
    assert len(model.blocks()) == 3 and list(model.state_dict()) == names
    assert torch.equal(model(tokens), expected)


@pytest.mark.slow
def test_compiled_blocks_share_one_graph_and_give_the_gradients_of_plain_ones(tmp_path: Path) -> None:
    from torch._dynamo.utils import counters

    from fledge.autotune.compile import compile_blocks, reset_compiler, uncompile
    from fledge.model.eager import force_eager

    write_model(tmp_path, "Qwen2", num_hidden_layers=3)
    model, batch = load_model(tmp_path).train(), _batch()
    losses, grads = [], []
    reset_compiler()
    counters.clear()
    for compiled in (False, True):
        if compiled:
            compile_blocks(model)
        outcome = CausalLMObjective()(model, batch)
        outcome.loss.backward()
        losses.append(outcome.loss.detach())
        grads.append(gradients(model))
    torch.testing.assert_close(losses[1], losses[0], atol=1e-4, rtol=1e-4)
    assert_same_gradients(grads[1], grads[0], atol=1e-4, rtol=1e-3)
    with force_eager(), torch.no_grad():
        model(random_tokens(1, 7))  # a shape of validation
    assert counters["stats"]["unique_graphs"] == 1
    uncompile(model)
