"""Frozen weights in 4 bits: the numbers of bitsandbytes, no other copy of a weight, and adapters that train beside them."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from fledge.errors import FledgeError
from fledge.model.adapter_files import BASE, write_adapter
from fledge.model.adapters import adapter_weights, attach_adapter, merge_adapter, trained_parameters
from fledge.model.frozen_weights import describe_quantized, frozen_matrices, quantize_matrices, round_frozen_weights
from fledge.model.linear import Linear, quantized_linear
from fledge.model.loading import load_model, load_switch
from fledge.model.protocol import Adapter, LanguageModel
from fledge.model.quantization import QuantizedWeight, bytes_per_weight, quantized_numbers
from fledge.model.weight_files import weights_hash
from fledge.recipe.schema import AdapterConfig, QuantizationConfig
from fledge.training.start_weights import weights_fingerprint
from tests.support.adapters import logits, scatter, train_a_little, write_adapted
from tests.support.decoders import make_decoder, random_tokens

bitsandbytes = pytest.importorskip("bitsandbytes")
WIDEST_GAP = {"nf4": 1 - 0.6961928, "fp4": 1 / 3}  # between two levels, of the largest magnitude
KINDS: dict[str, dict[str, Any]] = {
    "lora": {"r": 4, "lora_dropout": 0.3},
    "some layers": {"r": 4, "target_modules": ["q_proj"], "modules_to_save": ["norm"]},
    "dora": {"r": 3, "use_dora": True, "target_modules": ["q_proj", "up_proj"]},
}


def _layer(rows: int = 24, columns: int = 64, bias: bool = True, seed: int = 0) -> Linear:
    layer, generator = Linear(columns, rows, bias=bias), torch.Generator().manual_seed(seed)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, generator=generator)
    return layer


@pytest.mark.parametrize("double", [True, False])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_outputs_and_gradients_are_those_of_bitsandbytes(quant_type: str, double: bool) -> None:
    layer = _layer()
    theirs = bitsandbytes.nn.Linear4bit(64, 24, compute_dtype=torch.float32, compress_statistics=double, quant_type=quant_type)
    theirs.load_state_dict(layer.state_dict())
    theirs = theirs.to("cpu")  # which quantizes
    ours = quantized_linear(layer, QuantizationConfig(quant_type=quant_type, use_double_quant=double))  # type: ignore[arg-type]
    inputs = [torch.randn(5, 64, generator=torch.Generator().manual_seed(1)).requires_grad_() for _ in range(2)]
    outputs = [ours(inputs[0]), theirs(inputs[1])]
    for out in outputs:
        out.square().sum().backward()
    assert torch.allclose(outputs[0], outputs[1], atol=1e-5)
    assert torch.allclose(inputs[0].grad, inputs[1].grad, atol=1e-3)  # type: ignore[arg-type]
    assert ours.bias is layer.bias and ours.weight is None
    assert ours.quantized is not None
    taken, exact = (
        ours.quantized.nbytes(),
        ours.quantized.numel() * bytes_per_weight(QuantizationConfig(use_double_quant=double)),
    )
    assert exact <= taken < exact + 256 * 4 + 4 + 16  # a table of levels and the mean, and the last block of scales


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 20), st.integers(1, 200), st.floats(1e-6, 1e6), st.sampled_from(["nf4", "fp4"]), st.booleans())
def test_no_weight_moves_further_than_half_the_widest_gap(
    rows: int, columns: int, size: float, quant_type: str, double: bool
) -> None:
    weight = torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows)) * size
    got = QuantizedWeight(weight, QuantizationConfig(quant_type=quant_type, use_double_quant=double)).dense()  # type: ignore[arg-type]
    blocks = [block.abs().max().expand(len(block)) for block in weight.flatten().split(64)]
    scales = torch.cat(blocks).view_as(weight)
    # Double quantization: a scale is off by at most half the widest gap of its 8 bits, 0.0079 of the largest difference.
    spread = (scales.max() - scales.min()) * 0.01 if double else 0.0
    assert ((got - weight).abs() <= scales * WIDEST_GAP[quant_type] / 2 * 1.001 + spread + 1e-12).all()


def test_the_backward_pass_keeps_no_copy_of_the_weight() -> None:
    layer, kept = quantized_linear(_layer(256, 256, bias=False), QuantizationConfig()), dict[int, int]()

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        out = layer(torch.randn(2, 256, requires_grad=True))
    out.sum().backward()
    assert sum(kept.values()) < 256 * 256 * 0.7  # bytes; a copy in bf16 has 2 for each weight


def test_compiled_code_computes_the_same() -> None:
    layer = quantized_linear(_layer(), QuantizationConfig())
    x = torch.randn(5, 64, generator=torch.Generator().manual_seed(1))
    inputs = [x.clone().requires_grad_(), x.clone().requires_grad_()]
    outputs = [layer(inputs[0]), torch.compile(layer, fullgraph=True)(inputs[1])]
    for out in outputs:
        out.square().sum().backward()
    assert torch.allclose(outputs[0], outputs[1], atol=1e-5)
    assert torch.allclose(inputs[0].grad, inputs[1].grad, atol=1e-3)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory with biases and a head of its own."""
    folder = tmp_path_factory.mktemp("base")
    make_decoder(attention_bias="qkv", tie_word_embeddings=False).save_pretrained(folder, bos=1, eos=[2], pad=0)
    return folder


def _quantized(base: Path, kind: str, implementation: str = "auto") -> LanguageModel:
    model = load_model(base, implementation, quantization=QuantizationConfig()).train()
    attach_adapter(model, Adapter(AdapterConfig(**KINDS[kind]), base, None), seed=1)
    return model


def test_loading_in_4_bits_is_loading_and_then_quantizing(base: Path) -> None:
    whole = load_model(base)
    number = sum(weight.numel() for weight in _frozen(whole))
    quantize_matrices(whole, QuantizationConfig())
    assert weights_fingerprint(load_model(base, quantization=QuantizationConfig())) == weights_fingerprint(whole)
    assert quantized_numbers(whole) == number > 0 and not frozen_matrices(whole)
    assert whole.lm_head_weight.dtype == torch.float32


def _frozen(model: LanguageModel) -> list[torch.Tensor]:
    model.requires_grad_(False)
    found = frozen_matrices(model)
    model.requires_grad_(True)
    return found


@pytest.mark.parametrize("implementation", ["native", "transformers"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_adapter_learns_and_the_weights_stay(base: Path, kind: str, implementation: str) -> None:
    if implementation == "transformers":
        pytest.importorskip("transformers")
    model = _quantized(base, kind, implementation)
    assert trained_parameters(model)[1] == trained_parameters(_attached(base, kind, implementation))[1]
    model.compute_dtype = torch.bfloat16
    assert round_frozen_weights(model, torch.bfloat16) == 0
    frozen = {name: value.clone() for name, value in model.state_dict().items() if name not in adapter_weights(model)}
    started = {name: value.clone() for name, value in adapter_weights(model).items()}
    losses = train_a_little(model, steps=5)
    assert losses[-1] < losses[0]
    assert all(not torch.equal(value, started[name]) for name, value in adapter_weights(model).items())
    assert all(torch.equal(value, model.state_dict()[name]) for name, value in frozen.items())
    assert any("quantized" in name for name in frozen)


def _attached(base: Path, kind: str, implementation: str) -> LanguageModel:
    model = load_model(base, implementation)
    attach_adapter(model, Adapter(AdapterConfig(**KINDS[kind]), base, None), seed=1)
    return model


@torch.no_grad()
def test_logits_are_those_of_transformers_with_bitsandbytes(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    settings = transformers.BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.float32
    )
    make_decoder(hidden_size=64, intermediate_size=128).save_pretrained(tmp_path, bos=1, eos=[2], pad=0)
    theirs = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path, quantization_config=settings, dtype=torch.float32, device_map="cpu", local_files_only=True
    ).train()  # in evaluation it rounds the scales to bf16
    ours, tokens = load_model(tmp_path, "native", quantization=QuantizationConfig()), random_tokens(2, 9)
    whole = load_model(tmp_path, "native")
    expected, got = theirs(tokens).logits, ours.logits(ours(tokens))
    assert torch.allclose(got, expected, atol=1e-4)
    assert not torch.allclose(got, whole.logits(whole(tokens)), atol=1e-3)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("implementation", ["native", "transformers"])
def test_an_adapter_is_loaded_beside_the_numbers_that_it_was_trained_beside(
    implementation: str, kind: str, base: Path, tmp_path: Path
) -> None:
    pytest.importorskip("transformers")
    trained = load_model(base, implementation, quantization=QuantizationConfig(use_double_quant=False)).eval()
    attach_adapter(trained, Adapter(AdapterConfig(**KINDS[kind]), base, weights_hash(base)), seed=1)
    scatter(adapter_weights(trained))
    write_adapter(tmp_path / "adapter", trained)
    told: list[str] = []
    loaded = load_model(tmp_path / "adapter", implementation, told.append).eval()
    torch.testing.assert_close(logits(loaded), logits(trained), atol=1e-5, rtol=1e-5)
    assert any("matrices rounded to nf4, as where its adapter was trained" in line for line in told)
    assert quantized_numbers(loaded) == 0 and loaded.adapter is not None
    write_adapter(tmp_path / "again", loaded)
    torch.testing.assert_close(
        logits(load_model(tmp_path / "again", implementation).eval()), logits(trained), atol=1e-5, rtol=1e-5
    )
    merge_adapter(loaded)
    torch.testing.assert_close(logits(loaded), logits(trained), atol=1e-4, rtol=1e-4)
    (tmp_path / "adapter" / BASE).unlink()
    assert not torch.allclose(logits(load_model(tmp_path / "adapter", implementation).eval()), logits(trained), atol=1e-3)
    switch = load_switch(base, {"one": tmp_path / "again"}, implementation)
    switch.use("one")
    torch.testing.assert_close(logits(switch.model.eval()), logits(trained), atol=1e-5, rtol=1e-5)
    write_adapted(tmp_path / "plain", base, r=2)
    with pytest.raises(FledgeError, match="it was trained beside the numbers of its files, and one beside matrices rounded"):
        load_switch(base, {"one": tmp_path / "again", "plain": tmp_path / "plain"}, implementation)


def test_what_cannot_be_done_is_refused(base: Path) -> None:
    with pytest.raises(FledgeError, match="down_proj has weights in 4 bits, which cannot be trained whole"):
        model = load_model(base, quantization=QuantizationConfig())
        attach_adapter(model, Adapter(AdapterConfig(modules_to_save=["down_proj"]), base, None), seed=1)
    with pytest.raises(FledgeError, match="cannot be added to weights in 4 bits"):
        merge_adapter(_quantized(base, "lora"))


def test_what_is_kept_how_is_told(base: Path) -> None:
    assert describe_quantized(load_model(base)) is None
    told = describe_quantized(_quantized(base, "lora"))
    assert told is not None and "frozen weights are kept in nf4" in told and "stay in float32" in told


IMPORT = """
import sys
from fledge.errors import FledgeError
from fledge.model.quantization import import_bitsandbytes
if "absent" in sys.argv:
    sys.modules["bitsandbytes"] = None
try:
    import_bitsandbytes()
except FledgeError as error:
    print(error)
print("kernels" in sys.modules)
"""


def _import(folder: Path, *arguments: str) -> str:
    (folder / "kernels.py").write_text("raise SystemExit('the hub was asked')\n")
    paths = [str(folder), *sys.path]
    code = f"import sys; sys.path[:] = {paths!r}\n{IMPORT}"
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_the_library_is_imported_without_asking_a_hub_and_without_a_word(tmp_path: Path) -> None:
    assert _import(tmp_path) == "False\n"


def test_without_the_library_the_error_says_what_to_install(tmp_path: Path) -> None:
    said = _import(tmp_path, "absent")
    assert "training beside 4-bit weights needs the package 'bitsandbytes'" in said and "pip install 'fledge[qlora]'" in said


def test_the_number_of_threads_changes_no_bit() -> None:
    weight, threads, made = torch.randn(2048, 2048, generator=torch.Generator().manual_seed(0)), torch.get_num_threads(), []
    try:
        for number in (1, 3):
            torch.set_num_threads(number)
            made.append(dict(QuantizedWeight(weight, QuantizationConfig()).named_buffers()))
    finally:
        torch.set_num_threads(threads)
    assert all(torch.equal(buffer, made[1][name]) for name, buffer in made[0].items())
