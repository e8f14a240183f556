"""Model directories of transformers: saving, loading, the choice of the implementation, and errors for unsuitable ones."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, BloomConfig

from fledge.errors import FledgeError
from fledge.model import huggingface_loading, pretrained
from fledge.model.huggingface import nearest_config
from fledge.model.loading import choose_implementation, describe_model, load_model
from fledge.recipe.schema import RuntimeConfig
from tests.support.decoders import VOCAB, make_decoder, random_tokens
from tests.support.transformers_models import KINDS, both, write_kind, write_model


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


def test_weights_that_read_back_differently_after_saving_raise_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_auto_chooses_the_native_decoder_silently_where_it_covers_the_model(tmp_path: Path) -> None:
    make_decoder().save_pretrained(tmp_path, bos=1, eos=[2], pad=0)
    lines: list[str] = []
    assert choose_implementation(tmp_path, "auto", lines.append) == "native" and lines == []
    assert load_model(tmp_path).implementation == describe_model(tmp_path).implementation == "native"
    assert load_model(tmp_path, "transformers").implementation == "transformers"


def test_requesting_native_for_an_unsupported_model_is_an_error_with_a_hint(tmp_path: Path) -> None:
    write_kind(tmp_path, "llama")
    for read in (load_model, describe_model):
        with pytest.raises(FledgeError, match="does not cover mlp_bias = True") as caught:
            read(tmp_path, "native")
        assert caught.value.hint is not None and "model.implementation" in caught.value.hint


@pytest.mark.parametrize("implementation", ["auto", "native", "transformers"])
def test_a_folder_without_a_model_is_an_error(tmp_path: Path, implementation: str) -> None:
    for read in (load_model, describe_model):
        with pytest.raises(FledgeError, match="neither a run nor a model"):
            read(tmp_path, implementation)


def test_a_missing_library_names_the_extra_that_installs_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_kind(tmp_path, "llama")
    monkeypatch.setitem(sys.modules, "transformers", None)
    for read in (load_model, describe_model):
        with pytest.raises(FledgeError, match="needs the package 'transformers'") as caught:
            read(tmp_path)
        assert caught.value.hint == "pip install 'fledge[hf]'"


@pytest.mark.parametrize("backend", ["blocked", "flex", "varlen"])
def test_attention_backends_of_the_native_decoder_are_errors_for_transformers(tmp_path: Path, backend: Any) -> None:
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
def test_a_model_that_cannot_be_trained_on_packed_rows_is_an_error_when_it_is_loaded(tmp_path: Path, case: str) -> None:
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
    "truncated weights": (_truncate, "the weights are truncated"),
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
def test_a_damaged_or_unsuitable_directory_is_an_error_with_its_reason(tmp_path: Path, case: str) -> None:
    damage, problem = DAMAGES[case]
    make_decoder().save_pretrained(tmp_path, bos=1, eos=[2], pad=0)
    damage(tmp_path)
    with pytest.raises(FledgeError, match=problem):
        huggingface_loading.from_pretrained(tmp_path)


def test_a_configuration_without_a_size_is_an_error() -> None:
    with pytest.raises(FledgeError, match="BloomConfig does not say max_position_embeddings"):
        nearest_config(BloomConfig())


def test_the_vocabulary_size_is_read_from_the_directory(tmp_path: Path) -> None:
    write_kind(tmp_path, "llama")
    description = describe_model(tmp_path)
    assert description.cost.vocab_size == VOCAB and description.cost.config.max_position_embeddings == 64
