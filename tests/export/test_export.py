"""`fledge export`: what is written computes and tokenises as the model does, in other programs; refusals leave nothing."""

import json
import shutil
from pathlib import Path

import pytest
import torch

from fledge.cli import main
from fledge.errors import FledgeError
from fledge.export import export_model
from fledge.export.huggingface import readable_by_old_and_new
from fledge.export.model_card import base_licence
from fledge.export.source import load_source
from fledge.model.adapter_files import write_adapter
from fledge.model.adapters import adapter_weights, attach_adapter
from fledge.model.loading import load_model
from fledge.model.protocol import Adapter, LanguageModel
from fledge.model.weight_files import weights_hash
from fledge.recipe.schema import AdapterConfig
from tests.export.exporting import write_model


def silent(text: str) -> None:
    """Log nothing."""


def export(model: Path, to: str, out: Path, weight_type: str | None = None) -> list[str]:
    """The lines of an export."""
    return export_model(str(model), to=to, weight_type=weight_type, out=str(out), log=silent)[1]


@pytest.mark.parametrize("weight_type", ["f32", "bf16"])
def test_a_directory_loads_in_transformers_with_equal_scores(tmp_path: Path, weight_type: str) -> None:
    pytest.importorskip("transformers")
    model = write_model(tmp_path / "model", qk_norm=True)
    lines = export(model, "hf", tmp_path / "out", weight_type)
    assert lines[0].startswith("transformers") and "15 texts, 3 conversations" in lines[-1]
    stored = load_model(tmp_path / "out").file_tensors()
    dtype = {"f32": torch.float32, "bf16": torch.bfloat16}[weight_type]
    for name, tensor in load_model(model).file_tensors().items():
        assert torch.equal(stored[name], tensor.to(dtype).float()), name
    assert json.loads((tmp_path / "out" / "config.json").read_text())["torch_dtype"] == str(dtype).removeprefix("torch.")
    assert "No licence is recorded" in (tmp_path / "out" / "README.md").read_text()


def test_rope_settings_are_written_for_older_versions_too() -> None:
    rope = {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0}
    config = readable_by_old_and_new({"rope_parameters": rope}, "float32")
    assert config["rope_theta"] == 500.0 and config["rope_scaling"] == {"rope_type": "linear", "factor": 2.0}


def test_a_library_that_composes_characters_by_itself_is_told_of(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    lines = export(write_model(tmp_path / "model", attention_bias="qkv"), "hf", tmp_path / "out")  # saved as Qwen2
    assert "15 texts, 3 conversations" in lines[-2] and "form NFC for models of this type" in lines[-1]


@pytest.mark.parametrize("arguments", [
    ["missing", "--to", "hf"], ["MODEL", "--to", "onnx"], ["MODEL", "--to", "hf", "--type", "q8_0"],
    ["MODEL", "--to", "gguf", "--type", "q3_k"], ["MODEL", "--to", "hf", "--out", "taken"],
    ["MODEL", "--to", "hf", "--out", "file"],
])  # fmt: skip
def test_wrong_input_is_refused_and_changes_nothing(
    arguments: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("gguf")
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path / "MODEL")
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "mine").write_text("x")
    (tmp_path / "file").write_text("x")
    before = sorted(tmp_path.rglob("*"))
    assert main(["export", *arguments]) == 2
    assert "→" in capsys.readouterr().err
    assert sorted(tmp_path.rglob("*")) == before


def test_weights_that_float16_cannot_hold_are_refused(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    decoder = load_model(model)
    with torch.no_grad():
        next(tensor for tensor in decoder.file_tensors().values() if tensor.dim() == 2)[0, 0] = 1e5
    decoder.save_pretrained(model, bos=0, eos=[0], pad=0)
    with pytest.raises(FledgeError, match="float16 cannot hold"):
        export(model, "hf", tmp_path / "out", "f16")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"]


def test_the_licence_is_the_one_that_the_directory_names(tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    assert base_licence(load_source(str(model), silent)) is None
    (model / "README.md").write_text("---\nlicense: apache-2.0\n---\n# M\n")
    assert base_licence(load_source(str(model), silent)) == "apache-2.0"


def write_adapted(folder: Path) -> LanguageModel:
    """A model with an adapter that is not zero, written to `folder`/adapter, its base to `folder`/base."""
    base = write_model(folder / "base")
    model = load_model(base).eval()
    attach_adapter(model, Adapter(AdapterConfig(r=4), base, weights_hash(base)), 0)
    for tensor in adapter_weights(model).values():
        tensor.add_(0.05)
    write_adapter(folder / "adapter", model)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base / file, folder / "adapter")
    return model


@pytest.mark.parametrize("target", ["hf", "merged"])
def test_an_adapter_is_merged_into_its_base(tmp_path: Path, target: str) -> None:
    model, lines = write_adapted(tmp_path), list[str]()
    export_model(str(tmp_path / "adapter"), to=target, weight_type="f32", out=str(tmp_path / "out"), log=lines.append)
    assert any("the adapter is merged into its base model" in line for line in lines), lines
    merged, tokens = load_model(tmp_path / "out").eval(), torch.arange(3, 40)[None]
    assert merged.adapter is None
    with torch.no_grad():
        torch.testing.assert_close(merged.logits(merged(tokens)), model.logits(model(tokens)), atol=2e-4, rtol=0)


@pytest.mark.parametrize("weight_type", ["f32", "bf16"])
def test_an_adapter_is_written_alone_and_loads_in_peft(tmp_path: Path, weight_type: str) -> None:
    pytest.importorskip("peft")
    model, tokens = write_adapted(tmp_path), torch.arange(3, 40)[None]
    lines = export(tmp_path / "adapter", "adapter", tmp_path / "out", weight_type)
    assert lines[1] == f"base model: {tmp_path / 'base'}" and lines[2].startswith("PEFT")
    assert {"adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "README.md"} <= {
        path.name for path in (tmp_path / "out").iterdir()
    }
    assert "library_name: peft" in (tmp_path / "out" / "README.md").read_text()
    again = load_model(tmp_path / "out").eval()
    assert again.adapter is not None
    with torch.no_grad():
        atol = 1e-5 if weight_type == "f32" else 0.05
        torch.testing.assert_close(again.logits(again(tokens)), model.logits(model(tokens)), atol=atol, rtol=0)


@pytest.mark.parametrize("target", ["merged", "adapter"])
def test_a_model_without_an_adapter_is_told_the_right_target(tmp_path: Path, target: str) -> None:
    with pytest.raises(FledgeError, match="this model has no adapter") as caught:
        export(write_model(tmp_path / "model"), target, tmp_path / "out")
    assert "--to hf" in (caught.value.hint or "") and not (tmp_path / "out").exists()
