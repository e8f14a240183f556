"""Adapters: the outputs of PEFT in both directions, merging, what is trained, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from fledge.errors import FledgeError
from fledge.generation import Engine, SamplingParams
from fledge.model.adapter_files import BASE, read_adapter_config, write_adapter
from fledge.model.adapters import (
    LoraLinear,
    adapter_weights,
    attach_adapter,
    check_patterns,
    lora_layers,
    merge_adapter,
    trained_parameters,
)
from fledge.model.loading import describe_model, load_model
from fledge.model.protocol import Adapter, LanguageModel
from fledge.model.weight_files import weights_hash
from fledge.optim.build import build_optimizers
from fledge.recipe.schema import AdapterConfig, OptimizerConfig
from tests.support.adapters import adapted_model, scatter
from tests.support.decoders import make_decoder, random_tokens
from tests.support.encoder_decoders import write_encoder_decoder
from tests.support.transformers_models import write_model

peft = pytest.importorskip("peft")

KINDS: dict[str, dict[str, Any]] = {
    "lora": {"r": 4, "lora_alpha": 6},
    "rslora": {"r": 4, "use_rslora": True, "target_modules": ["q_proj", "v_proj"]},
    "dora": {"r": 3, "use_dora": True, "lora_dropout": 0.3},
    "patterns": {"r": 4, "rank_pattern": {"layers.1.mlp.up_proj": 2}, "alpha_pattern": {"k_proj": 5}},
    "expression": {"r": 2, "target_modules": r"model\.layers\.1\..*(q|up)_proj"},
    "whole": {"r": 2, "target_modules": ["o_proj"], "modules_to_save": ["lm_head", "norm"]},
}


def _tokens() -> Tensor:
    return random_tokens(2, 10)


def _base(folder: Path, tie: bool = False) -> Path:
    make_decoder(tie_word_embeddings=tie).save_pretrained(folder, bos=1, eos=[2], pad=0)
    return folder


def _adapted(base: Path, kind: str, implementation: str = "auto") -> LanguageModel:
    """A model with an adapter that has learned something."""
    model = load_model(base, implementation).eval()
    attach_adapter(model, Adapter(AdapterConfig(**KINDS[kind]), base, weights_hash(base)), seed=1)
    scatter(adapter_weights(model))
    return model


@torch.no_grad()
def _logits(model: LanguageModel) -> Tensor:
    return model.logits(model(_tokens()))


def _peft_logits(base: Path, adapter: Path) -> Tensor:
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    with torch.no_grad():
        adapted = peft.PeftModel.from_pretrained(model, adapter)
        adapted.train()  # else the library keeps the lengths of DoRA's rows from before it has loaded the adapter
        return adapted.eval()(input_ids=_tokens()).logits


@pytest.mark.parametrize("implementation", ["native", "transformers"])
@pytest.mark.parametrize("kind", KINDS)
def test_peft_and_we_give_the_outputs_of_what_we_write(tmp_path: Path, kind: str, implementation: str) -> None:
    base = _base(tmp_path / "base")
    model = _adapted(base, kind, implementation)
    write_adapter(tmp_path / "adapter", model)
    ours = _logits(model)
    assert (ours - _logits(load_model(base))).abs().max() > 0.05, "the adapter reaches the logits"
    torch.testing.assert_close(_peft_logits(base, tmp_path / "adapter"), ours, atol=1e-5, rtol=1e-4)
    for other in ("native", "transformers"):
        torch.testing.assert_close(_logits(load_model(tmp_path / "adapter", other).eval()), ours, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("architecture", ["Llama", "Qwen3", "Mixtral"])
@pytest.mark.parametrize("kind", ["lora", "rslora", "dora", "patterns"])
def test_an_adapter_of_peft_is_read(tmp_path: Path, kind: str, architecture: str) -> None:
    library = write_model(tmp_path / "base", architecture)
    settings = {"target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"], **KINDS[kind]}
    wrapped = peft.get_peft_model(library, peft.LoraConfig(task_type="CAUSAL_LM", **settings)).eval()
    scatter({name: p.detach() for name, p in wrapped.named_parameters() if p.requires_grad})
    wrapped.save_pretrained(tmp_path / "adapter")
    with torch.no_grad():
        expected = wrapped(input_ids=_tokens()).logits
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "base_model_name_or_path": "../base"}))
    loaded = load_model(tmp_path / "adapter").eval()
    torch.testing.assert_close(_logits(loaded), expected, atol=2e-5, rtol=1e-4)


def test_what_a_file_of_peft_leaves_out_is_what_peft_takes(tmp_path: Path) -> None:
    base = _base(tmp_path / "base")
    write_adapter(tmp_path / "adapter", _adapted(base, "lora"))
    file = tmp_path / "adapter" / "adapter_config.json"
    content = json.loads(file.read_text())
    file.write_text(json.dumps({key: value for key, value in content.items() if key not in ("lora_alpha", "r")}))
    expected = peft.LoraConfig.from_pretrained(str(tmp_path / "adapter"))
    read = read_adapter_config(tmp_path / "adapter").config
    assert (read.r, read.lora_alpha) == (expected.r, expected.lora_alpha)
    file.write_text(json.dumps({**content, "target_modules": None}))
    with pytest.raises(FledgeError, match="it has no target_modules"):
        read_adapter_config(tmp_path / "adapter")


@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("kind", ["lora", "dora"])
def test_merging_changes_nothing_and_keeps_weights_tied(tmp_path: Path, kind: str, tie: bool) -> None:
    model = _adapted(_base(tmp_path / "base", tie), kind)
    before = _logits(model)
    merge_adapter(model)
    assert model.adapter is None and not list(lora_layers(model)) and all(p.requires_grad for p in model.parameters())
    torch.testing.assert_close(_logits(model), before, atol=2e-4, rtol=0)
    model.save_pretrained(tmp_path / "merged", bos=1, eos=[2], pad=0)
    again = load_model(tmp_path / "merged").eval()
    assert again.config.tie_word_embeddings == tie
    torch.testing.assert_close(_logits(again), before, atol=2e-4, rtol=0)


@pytest.mark.parametrize("implementation", ["native", "transformers"])
def test_a_trained_embedding_that_is_the_head_too_stays_tied_in_both_programs(tmp_path: Path, implementation: str) -> None:
    base = _base(tmp_path / "base", tie=True)
    settings: dict[str, Any] = {"r": 2, "target_modules": ["q_proj"], "modules_to_save": ["embed_tokens"]}
    ours = adapted_model(base, implementation, **settings)
    write_adapter(tmp_path / "ours", ours)
    torch.testing.assert_close(_peft_logits(base, tmp_path / "ours"), _logits(ours), atol=1e-5, rtol=1e-4)
    assert torch.equal(_logits(load_model(tmp_path / "ours", implementation).eval()), _logits(ours))
    import transformers

    for tying in (True, False):
        library = transformers.AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
        wanted = peft.LoraConfig(task_type="CAUSAL_LM", ensure_weight_tying=tying, **settings)
        wrapped = peft.get_peft_model(library, wanted).eval()
        scatter({name: p.detach() for name, p in wrapped.named_parameters() if p.requires_grad})
        wrapped.save_pretrained(tmp_path / "theirs")
        _change(tmp_path / "theirs", base_model_name_or_path=str(base))
        if tying:
            with torch.no_grad():
                expected = wrapped(input_ids=_tokens()).logits
            loaded = load_model(tmp_path / "theirs", implementation).eval()
            torch.testing.assert_close(_logits(loaded), expected, atol=1e-5, rtol=1e-4)
        else:
            with pytest.raises(FledgeError, match="it is the head too, which stayed as it was"):
                load_model(tmp_path / "theirs", implementation)


def test_the_engine_answers_with_the_adapter(tmp_path: Path) -> None:
    model = _adapted(_base(tmp_path / "base"), "lora")
    (answer,) = Engine(model).generate([[5, 6, 7]], SamplingParams(max_new_tokens=6))
    tokens = [5, 6, 7]
    for _ in range(6):
        with torch.no_grad():
            tokens.append(int(model.logits(model(torch.tensor([tokens]))[:, -1]).argmax()))
    assert list(answer.tokens) == tokens[3:]


@pytest.mark.parametrize("kind", ["lora", "dora", "whole"])
@pytest.mark.parametrize("implementation", ["native", "transformers"])
def test_only_the_adapter_is_trained_and_all_of_it(tmp_path: Path, kind: str, implementation: str) -> None:
    model = load_model(_base(tmp_path / "base"), implementation)
    attach_adapter(model, Adapter(AdapterConfig(**KINDS[kind]), None, None), seed=1)
    model.train()
    frozen = {name: p.detach().clone() for name, p in model.named_parameters() if not p.requires_grad}
    start = {name: value.clone() for name, value in adapter_weights(model).items()}
    trained, total = trained_parameters(model)
    assert trained == sum(value.numel() for value in start.values()) < total
    optimizers = build_optimizers(model, OptimizerConfig(name="muon", learning_rate=0.01, betas=(0.9, 0.95), weight_decay=0.0))
    for step in range(20):
        hidden = model(random_tokens(2, 8, seed=step))
        torch.nn.functional.cross_entropy(model.logits(hidden).flatten(0, 1), random_tokens(16, seed=step)).backward()
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad(set_to_none=True)
    parameters = dict(model.named_parameters())
    assert all(torch.equal(parameters[name], value) for name, value in frozen.items())
    assert all(not torch.equal(parameters[name], value) for name, value in start.items())


def test_a_seed_gives_one_adapter_and_at_first_it_changes_nothing(tmp_path: Path) -> None:
    base, drawn = _base(tmp_path / "base"), []
    for seed in (3, 3, 4):
        model = load_model(base).eval()
        before = _logits(model)
        attach_adapter(model, Adapter(AdapterConfig(), base, None), seed)
        assert torch.equal(_logits(model), before)
        drawn.append(adapter_weights(model)["layers.0.mlp.up_proj.lora_A"].clone())
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert not torch.equal(drawn[0], adapter_weights(load_and_attach(base, 3))["layers.1.mlp.up_proj.lora_A"])


def load_and_attach(base: Path, seed: int) -> LanguageModel:
    """A model with a new adapter."""
    model = load_model(base)
    attach_adapter(model, Adapter(AdapterConfig(), base, None), seed)
    return model


def test_rank_and_alpha_follow_the_patterns(tmp_path: Path) -> None:
    layers = dict(lora_layers(_adapted(_base(tmp_path / "base"), "patterns")))

    def sizes(name: str) -> tuple[int, float]:
        layer = layers[name]
        assert isinstance(layer, LoraLinear)
        return len(layer.lora_A), layer.scaling

    assert sizes("layers.0.mlp.up_proj") == (4, 8.0) and sizes("layers.1.mlp.up_proj") == (2, 16.0)
    assert sizes("layers.0.self_attn.k_proj") == (4, 1.25)


def test_patterns_of_a_recipe_that_fit_no_adapted_layer_are_refused() -> None:
    model = make_decoder()
    check_patterns(model, AdapterConfig(**KINDS["patterns"]))
    for settings, message in (
        ({"rank_pattern": {"up_porj": 2}}, "no adapted module of the model is called 'up_porj'"),
        ({"alpha_pattern": {"up_proj": 2}, "target_modules": ["q_proj"]}, "no adapted module of the model is called 'up_proj'"),
        ({"rank_pattern": {"(": 2}}, "is no regular expression"),
    ):
        with pytest.raises(FledgeError, match=message):
            check_patterns(model, AdapterConfig(**settings))


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "unknown module": ({"target_modules": ["q_porj"]}, "no module of the model is called 'q_porj'"),
    "head": ({"target_modules": ["lm_head"]}, "the head .* cannot have an adapter"),
    "expression": ({"target_modules": "layers.(*"}, "is no regular expression"),
    "whole": ({"modules_to_save": ["embedding"]}, "no module of the model is called 'embedding'"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_settings_that_fit_no_module_are_refused(name: str) -> None:
    settings, message = REFUSED[name]
    with pytest.raises(FledgeError, match=message) as raised:
        attach_adapter(make_decoder(tie_word_embeddings=False), Adapter(AdapterConfig(**settings), None, None), 0)
    assert raised.value.where.startswith("adapter.")  # type: ignore[union-attr]
    if name == "unknown module":
        assert "q_proj" in str(raised.value.hint)


def _change(folder: Path, **values: Any) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **values}))


def test_adapters_that_do_not_fit_are_refused_with_the_reason(tmp_path: Path) -> None:
    base, folder = _base(tmp_path / "base"), tmp_path / "adapter"
    write_adapter(folder, _adapted(base, "lora"))
    for values, message in (
        ({"r": 5}, r"is \[4, .*expected \[5, (.|\n)*it has rank 4"),
        ({"bias": "all"}, "bias = all"),
        ({"peft_type": "LOHA"}, "an adapter of the kind LOHA"),
        ({"target_modules": ["q_proj"]}, "does not fit the model: unknown"),
    ):
        before = (folder / "adapter_config.json").read_text()
        _change(folder, **values)
        with pytest.raises(FledgeError, match=message):
            load_model(folder)
        (folder / "adapter_config.json").write_text(before)
    assert json.loads((folder / BASE).read_text()) == {"weights_hash": weights_hash(base), "path": "../base"}
    make_decoder(seed=5, tie_word_embeddings=False).save_pretrained(base, bos=1, eos=[2], pad=0)
    with pytest.raises(FledgeError, match="trained on other weights than those in"):
        load_model(folder)


def test_damaged_and_pickled_adapters_are_refused(tmp_path: Path) -> None:
    base, folder = _base(tmp_path / "base"), tmp_path / "adapter"
    write_adapter(folder, _adapted(base, "lora"))
    assert read_adapter_config(folder).base == base
    file = folder / "adapter_model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[:-7])
    with pytest.raises(FledgeError, match="truncated"):
        load_model(folder)
    file.unlink()
    (folder / "adapter_model.bin").write_bytes(b"\x80\x04")
    with pytest.raises(FledgeError, match="a pickle"):
        load_model(folder)


def test_the_planner_counts_the_parameters_of_an_adapter_on_all_layers() -> None:
    model = make_decoder()
    attach_adapter(model, Adapter(AdapterConfig(r=3), None, None), 0)
    assert model.cost.adapter_parameters(3) == trained_parameters(model)[0]
    weights = 4 * model.cost.parameters().total
    assert model.cost.state_bytes("muon", 1000) == weights + 16 * 1000 < model.cost.state_bytes("muon")


def test_the_planner_counts_an_adapter_on_both_stacks_of_an_encoder_decoder(tmp_path: Path) -> None:
    write_encoder_decoder(tmp_path / "t5")
    cost, model = describe_model(tmp_path / "t5").cost, load_model(tmp_path / "t5")
    attach_adapter(model, Adapter(AdapterConfig(r=3), None, None), 0)
    assert cost.adapter_parameters(3) == trained_parameters(model)[0]
