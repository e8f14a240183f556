"""Models of transformers behind `LanguageModel`: they compute what the native decoder computes, train on packed documents
of any architecture, and what they cannot do is refused."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import AutoModelForCausalLM, BloomConfig

from fledge.errors import FledgeError
from fledge.model import huggingface_loading, pretrained
from fledge.model.huggingface import TransformersModel, nearest_config
from fledge.model.loading import choose_implementation, describe_model, load_model
from fledge.objective import CausalLMObjective
from fledge.optim.build import build_optimizers
from fledge.optim.muon import Muon
from fledge.recipe.schema import OptimizerConfig, RuntimeConfig
from tests.support.decoders import VOCAB, assert_same_gradients, gradients, make_decoder, random_tokens
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


# -- it computes what the native decoder computes -----------------------------------------------------------------------


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


def test_the_token_that_pads_learns_where_it_is_also_text(tmp_path: Path) -> None:
    native, bridge = both(tmp_path)
    tokens = torch.tensor([[5, 0, 7, 8]])
    rows = []
    for model in (native, bridge):
        model(tokens).square().sum().backward()
        rows.append(gradients(model)[next(name for name, _ in model.named_parameters())][0])
    assert rows[0].abs().max() > 0
    torch.testing.assert_close(rows[1], rows[0], atol=1e-4, rtol=1e-4)


# -- any architecture ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
def test_an_architecture_that_the_native_decoder_lacks_gives_the_librarys_logits(tmp_path: Path, kind: str) -> None:
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


@pytest.mark.parametrize("kind", ["qwen2", "mixtral", "gpt2"])
def test_muon_takes_matrices_of_blocks_and_leaves_the_rest_to_adamw(tmp_path: Path, kind: str) -> None:
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


# -- precision, memory, compilation -------------------------------------------------------------------------------------


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
def test_each_nth_block_is_computed_again_with_the_same_gradients(tmp_path: Path, every: int, calls: list[int]) -> None:
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


def test_a_block_that_cannot_be_computed_again_is_refused(tmp_path: Path) -> None:
    _, model = both(tmp_path)

    class Plain(nn.Module):
        """A layer of a model that the library has not prepared for it."""

    setattr(model.get_submodule("causal_lm.model.layers"), "0", Plain())
    model.activation_checkpoint_every = 1
    with pytest.raises(FledgeError, match="Plain of transformers cannot be computed again"):
        model(random_tokens(1, 4))


def test_the_first_block_stands_for_all_and_all_are_back_afterwards(tmp_path: Path) -> None:
    _, model = both(tmp_path, num_hidden_layers=3)
    tokens, names = random_tokens(1, 8), list(model.state_dict())
    whole = model(tokens)
    with pytest.raises(RuntimeError), model.only_first_block():
        assert len(model.blocks()) == 1
        assert not torch.equal(model(tokens), whole)
        raise RuntimeError
    assert len(model.blocks()) == 3 and list(model.state_dict()) == names
    assert torch.equal(model(tokens), whole)


@pytest.mark.slow
def test_compiled_blocks_share_one_graph_and_give_the_gradients_of_plain_ones(tmp_path: Path) -> None:
    from torch._dynamo.utils import counters

    from fledge.autotune.compile import compile_blocks, force_eager, reset_compiler, uncompile

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


# -- directories --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [*KINDS, "llama tied", "llama untied"])
def test_a_saved_model_loads_in_transformers_and_here_with_its_weights(tmp_path: Path, kind: str) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    if kind in KINDS:
        write_kind(source, kind)
    else:
        write_model(source, "Llama", tie_word_embeddings=kind.endswith(" tied"))
    model = load_model(source, "transformers").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.01
    model.save_pretrained(target, bos=7, eos=[5, 6], pad=3)
    theirs, report = AutoModelForCausalLM.from_pretrained(target, dtype=torch.float32, output_loading_info=True)
    assert not report["missing_keys"] and not report["unexpected_keys"]
    again, tokens = load_model(target, "transformers").eval(), random_tokens(2, 12)
    with torch.no_grad():
        logits = model.logits(model(tokens))
        torch.testing.assert_close(theirs(tokens).logits, logits, atol=1e-5, rtol=1e-5)
        assert torch.equal(again.logits(again(tokens)), logits)
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in model.state_dict().items())
    for file in ("config.json", "generation_config.json"):
        raw = json.loads((target / file).read_text())
        assert (raw["bos_token_id"], raw["eos_token_id"], raw["pad_token_id"]) == (7, [5, 6], 3)


def test_other_weights_are_saved_instead_of_the_models_own(tmp_path: Path) -> None:
    _, model = both(tmp_path / "source")
    averaged = {name: tensor.detach().clone() + 0.5 for name, tensor in model.state_dict().items()}
    model.save_pretrained(tmp_path / "averaged", bos=1, eos=[2], pad=0, weights=averaged)
    again = load_model(tmp_path / "averaged", "transformers")
    assert all(torch.equal(tensor, averaged[name]) for name, tensor in again.state_dict().items())
    native = pretrained.from_pretrained(tmp_path / "averaged")
    assert torch.equal(native.lm_head_weight, averaged["causal_lm.lm_head.weight"])


def test_weights_that_the_disk_has_not_kept_are_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    _, model = both(tmp_path / "source")
    save = model.causal_lm.save_pretrained

    def spoil(folder: Path, **options: Any) -> None:
        save(folder, **options)
        tensors = load_file(folder / "model.safetensors")
        tensors["model.norm.weight"][3] += 1e-3
        save_file(tensors, folder / "model.safetensors")

    monkeypatch.setattr(model.causal_lm, "save_pretrained", spoil)
    with pytest.raises(OSError, match="reads back otherwise than it was written"):
        model.save_pretrained(tmp_path / "target", bos=1, eos=[2], pad=0)


def test_a_copy_with_other_weights_has_the_same_settings_and_leaves_the_model_alone(tmp_path: Path) -> None:
    _, model = both(tmp_path)
    model.compute_dtype = torch.bfloat16
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    copy = model.with_weights({name: tensor + 1 for name, tensor in before.items()})
    assert copy.compute_dtype == torch.bfloat16 and copy.attention == model.attention and copy.config == model.config
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(torch.equal(tensor, before[name] + 1) for name, tensor in copy.state_dict().items())


# -- the choice, and what is refused ------------------------------------------------------------------------------------


def test_auto_takes_the_native_decoder_where_it_covers_the_model_and_says_nothing(tmp_path: Path) -> None:
    make_decoder().save_pretrained(tmp_path, bos=1, eos=[2], pad=0)
    lines: list[str] = []
    assert choose_implementation(tmp_path, "auto", lines.append) == "native" and lines == []
    assert load_model(tmp_path).implementation == describe_model(tmp_path).implementation == "native"
    assert load_model(tmp_path, "transformers").implementation == "transformers"


def test_a_model_that_native_does_not_cover_is_refused_with_a_hint_where_native_is_asked_for(tmp_path: Path) -> None:
    write_kind(tmp_path, "qwen2")
    for read in (load_model, describe_model):
        with pytest.raises(FledgeError, match="does not cover Qwen2ForCausalLM") as caught:
            read(tmp_path, "native")
        assert caught.value.hint is not None and "model.implementation" in caught.value.hint


@pytest.mark.parametrize("implementation", ["auto", "native", "transformers"])
def test_a_folder_that_holds_no_model_is_refused(tmp_path: Path, implementation: str) -> None:
    for read in (load_model, describe_model):
        with pytest.raises(FledgeError, match="not a model directory"):
            read(tmp_path, implementation)


def test_a_missing_library_names_the_extra_that_installs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_kind(tmp_path, "qwen2")
    monkeypatch.setitem(sys.modules, "transformers", None)
    for read in (load_model, describe_model):
        with pytest.raises(FledgeError, match="needs the package 'transformers'") as caught:
            read(tmp_path)
        assert caught.value.hint == "pip install 'fledge[hf]'"


@pytest.mark.parametrize("backend", ["blocked", "flex", "varlen"])
def test_attention_backends_of_the_native_decoder_are_refused(tmp_path: Path, backend: Any) -> None:
    _, model = both(tmp_path)
    for ask in (
        lambda: model.set_attention_backend(backend),
        lambda: describe_model(tmp_path, "transformers").check_runtime(RuntimeConfig(attention=backend)),
    ):
        with pytest.raises(FledgeError, match=f"cannot compute attention by '{backend}'") as caught:
            ask()
        assert caught.value.where == "runtime.attention"
    describe_model(tmp_path, "native").check_runtime(RuntimeConfig(attention=backend))
    for fine in ("auto", "sdpa"):
        describe_model(tmp_path, "transformers").check_runtime(RuntimeConfig(attention=fine))  # type: ignore[arg-type]


UNSUITABLE: dict[str, tuple[str, dict[str, Any], str]] = {
    "documents that see each other": ("OPT", {"ffn_dim": 48, "word_embed_proj_dim": 32}, "does not keep the documents"),
    "scaled logits": ("Granite", {"logits_scaling": 4.0}, "are not hidden states times one matrix"),
    "no fused attention": ("Mamba", {}, "transformers cannot load it: MambaForCausalLM does not support an attention"),
}


@pytest.mark.parametrize("case", UNSUITABLE)
def test_a_model_that_cannot_be_trained_on_packed_rows_is_refused_when_it_is_loaded(tmp_path: Path, case: str) -> None:
    architecture, sizes, problem = UNSUITABLE[case]
    write_model(tmp_path, architecture, **sizes)
    with pytest.raises(FledgeError, match=problem):
        load_model(tmp_path)


def _edit_weights(change: Callable[[dict[str, Tensor]], None]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return edit


def _edit_config(**values: Any) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        raw = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**raw, **values}))

    return edit


def _truncate(folder: Path) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


DAMAGES: dict[str, tuple[Callable[[Path], None], str]] = {
    "no weights": (lambda folder: (folder / "model.safetensors").unlink(), "the weights are missing"),
    "truncated weights": (_truncate, "transformers cannot load it"),
    "a missing tensor": (_edit_weights(lambda t: t.pop("model.norm.weight")), r"missing \['model.norm.weight'\]"),
    "a surplus tensor": (_edit_weights(lambda t: t.update(extra=torch.ones(3))), r"unexpected \['extra'\]"),
    "another shape": (
        _edit_weights(lambda t: t.update({"model.norm.weight": torch.ones(31)})),
        "mismatched.*model.norm.weight",
    ),
    "an unknown architecture": (_edit_config(model_type="nobody", architectures=["Nobody"]), "transformers cannot load it"),
    "code of its own": (
        _edit_config(model_type="own", auto_map={"AutoConfig": "own.Config", "AutoModelForCausalLM": "own.Model"}),
        "transformers cannot load it: .*trust_remote_code|transformers cannot load it: .*custom code",
    ),
    "dropout of fledge's own": (_edit_config(fledge={"dropout": 0.1}), "a dropout of 0.1"),
    "an index that leaves the folder": (
        lambda folder: (folder / "model.safetensors.index.json").write_text('{"weight_map": {"a": "../x.safetensors"}}'),
        "outside the directory",
    ),
}


@pytest.mark.parametrize("case", DAMAGES)
def test_a_damaged_or_unfit_directory_is_refused_with_its_reason(tmp_path: Path, case: str) -> None:
    damage, problem = DAMAGES[case]
    make_decoder().save_pretrained(tmp_path, bos=1, eos=[2], pad=0)
    damage(tmp_path)
    with pytest.raises(FledgeError, match=problem):
        huggingface_loading.from_pretrained(tmp_path)


def test_a_configuration_without_a_size_is_refused() -> None:
    with pytest.raises(FledgeError, match="BloomConfig does not say max_position_embeddings"):
        nearest_config(BloomConfig())


def test_vocabularies_are_those_of_the_directory(tmp_path: Path) -> None:
    write_kind(tmp_path, "qwen2")
    description = describe_model(tmp_path)
    assert description.cost.vocab_size == VOCAB and description.cost.config.max_position_embeddings == 64
