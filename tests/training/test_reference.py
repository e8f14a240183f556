"""The reference of a preference stage is a live model or a table, with equal results."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from fledge.autotune.autotune import ComputeConfig
from fledge.checkpoint.find import step_name
from fledge.data import Batch
from fledge.errors import FledgeError
from fledge.model.adapter_files import write_adapter
from fledge.model.adapter_reference import AdapterReference
from fledge.model.adapters import adapter_weights, attach_adapter
from fledge.model.decoder import Decoder
from fledge.model.loading import load_model
from fledge.model.protocol import Adapter, LanguageModel
from fledge.objective import DPOObjective, preference, sequence_log_probabilities
from fledge.recipe.schema import AdapterConfig, PreferenceStage
from fledge.run import StageDirectory
from fledge.training import reference
from fledge.training.reference import ReferenceProvider
from fledge.training.start_weights import StartWeights, weights_fingerprint
from tests.support.adapters import scatter
from tests.support.decoders import make_decoder
from tests.support.packed import pack_pairs, random_pairs

COMPUTE = ComputeConfig(device="cpu", precision="fp32", attention="blocked", compile=False, threads=torch.get_num_threads())
DATA = pack_pairs(random_pairs(9))


class _Start:
    """Loads the start weights, and counts how often."""

    loads = 0

    def __call__(self) -> Decoder:
        self.loads += 1
        return make_decoder(dropout=0.5)


def _provider(
    folder: Path, start: _Start, log: list[str] | None = None, *, scale: float = 1.0, resumed: bool = False, **stage: Any
) -> ReferenceProvider:
    """A provider whose model has a norm scaled by `scale`; `resumed`: the model has other weights than the start by now."""
    values = {"kind": "preference", "data": {"train": "x"}, "batch": {"micro_batch_size": 2}, **stage}
    model = COMPUTE.apply(make_decoder(dropout=0.5).train())
    with torch.no_grad():
        model.norm.weight.mul_(scale)
    write_line = (lambda text: None) if log is None else log.append
    return ReferenceProvider(
        PreferenceStage.model_validate(values), model, _start_weights(folder, start), weights_fingerprint(model),
        resumed=resumed, compute=COMPUTE, folder=folder, log=write_line,
    )  # fmt: skip


def _start_weights(folder: Path, load_initial: Callable[[], LanguageModel]) -> StartWeights:
    directory = StageDirectory(folder)
    return StartWeights(directory=directory, source=None, load_initial=load_initial, load=load_model, log=lambda text: None)


def test_a_live_reference_model_is_frozen_and_loaded_once_for_both_splits(tmp_path: Path) -> None:
    start = _Start()
    provider = _provider(tmp_path, start, precompute_ref_log_probs=False)
    assert start.loads == 0
    model = provider(DATA, "training")
    assert isinstance(model, Decoder) and provider(DATA, "validation") is model and start.loads == 1
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())
    assert not list(tmp_path.iterdir())


def test_a_second_model_in_lower_precision_keeps_its_matrices_in_it_and_passes_the_check_before_the_first_step(
    tmp_path: Path,
) -> None:
    log: list[str] = []
    provider = _provider(tmp_path, _Start(), log, precompute_ref_log_probs=False, reference_precision="bf16")
    model = provider(DATA, "training")
    assert isinstance(model, Decoder) and model.compute_dtype == torch.bfloat16
    assert model.layers[0].mlp.up_proj.weight.dtype == torch.bfloat16  # pyright: ignore
    assert model.embed_tokens.weight.dtype == torch.float32 and provider.model.compute_dtype == torch.float32
    objective = DPOObjective(loss_type="sigmoid", beta=0.1, reference=model)
    provider.check(objective, DATA)
    assert "second model in bf16 on cpu" in log[0] and "the reference is the model at the start" in log[-1]
    batch = DATA.assemble(range(len(DATA)))
    exact = sequence_log_probabilities(make_decoder(), batch)[0].view(9, 2)
    found = objective.reference_log_probabilities(batch)
    assert 0 < (found - exact).abs().max() < 0.5


def test_a_second_model_in_the_precision_of_training_keeps_its_matrices_in_it_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tests.training.test_reference.COMPUTE", replace(COMPUTE, precision="bf16"))
    for named, dtype in ((None, torch.float32), ("bf16", torch.bfloat16)):
        provider = _provider(tmp_path, _Start(), precompute_ref_log_probs=False, reference_precision=named)
        model = provider(DATA, "training")
        assert isinstance(model, Decoder) and model.compute_dtype == torch.bfloat16
        assert model.layers[0].mlp.up_proj.weight.dtype == dtype  # pyright: ignore
        provider.check(DPOObjective(loss_type="sigmoid", beta=0.1, reference=model), DATA)


def test_another_reference_in_low_precision_is_still_found_out(tmp_path: Path) -> None:
    provider = _provider(tmp_path, _Start(), precompute_ref_log_probs=False, reference_precision="bf16")
    wrong = make_decoder(5).eval()
    with pytest.raises(FledgeError, match="the reference is not the model that the stage starts from"):
        provider.check(DPOObjective(loss_type="sigmoid", beta=0.1, reference=wrong), DATA)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({}, "no second model is in memory here"),
        ({"precompute_ref_log_probs": False, "adapter": {}}, "with an adapter the reference is the model in training"),
        ({"loss_type": "simpo"}, "no second model is in memory here"),
    ],
)
def test_a_precision_or_device_for_a_second_model_that_is_not_there_is_refused(values: dict[str, Any], message: str) -> None:
    for key, value in (("reference_precision", "bf16"), ("reference_device", "cpu")):
        with pytest.raises(ValueError, match=f"{key}: {message}|{message}"):
            PreferenceStage.model_validate({"kind": "preference", "data": {"train": "x"}, key: value, **values})


def test_a_table_is_computed_by_the_start_model_without_loading_a_second_model(tmp_path: Path) -> None:
    start, log = _Start(), list[str]()
    provider = _provider(tmp_path, start, log)
    table = provider(DATA, "training")
    assert isinstance(table, Tensor) and table.shape == (9, 2) and start.loads == 0
    batch = DATA.assemble(range(len(DATA)))
    expected = sequence_log_probabilities(make_decoder(), batch)[0].view(9, 2)
    torch.testing.assert_close(table[list(batch.examples)], expected, atol=1e-4, rtol=1e-5)
    assert log == ["reference log-probabilities of 9 training examples …"] and provider.model.training


def test_a_table_is_read_from_its_file_and_recomputed_when_the_weights_differ(tmp_path: Path) -> None:
    first = _provider(tmp_path, _Start())(DATA, "training")
    file = tmp_path / "reference.training.safetensors"
    written = file.stat().st_mtime_ns, file.read_bytes()
    assert torch.equal(torch.as_tensor(_provider(tmp_path, _Start())(DATA, "training")), torch.as_tensor(first))
    assert (file.stat().st_mtime_ns, file.read_bytes()) == written
    other = _provider(tmp_path, _Start(), scale=1.5)
    assert not torch.allclose(torch.as_tensor(other(DATA, "training")), torch.as_tensor(first))
    with safe_open(file, framework="pt") as opened, torch.no_grad():
        assert opened.metadata()["fingerprint"] and file.read_bytes() != written[1]


def test_a_resumed_stage_reads_its_table_without_any_model_and_loads_the_start_model_where_it_has_none(tmp_path: Path) -> None:
    first, start = _provider(tmp_path, _Start())(DATA, "training"), _Start()
    again = _provider(tmp_path, start, resumed=True)
    assert torch.equal(torch.as_tensor(again(DATA, "training")), torch.as_tensor(first)) and start.loads == 0
    (tmp_path / "reference.training.safetensors").write_bytes(b"damaged")
    assert torch.equal(torch.as_tensor(again(DATA, "training")), torch.as_tensor(first)) and start.loads == 1


def test_a_table_whose_computation_was_cut_off_is_continued_where_it_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = _provider(tmp_path / "whole", _Start())(DATA, "training")
    scored: list[int] = []

    def count(model: LanguageModel, batch: Batch) -> tuple[Tensor, Tensor]:
        if len(scored) == 3:
            raise KeyboardInterrupt
        scored.append(len(batch.examples))
        return sequence_log_probabilities(model, batch)

    monkeypatch.setattr(reference, "SAVE_SECONDS", 0.0)
    monkeypatch.setattr(preference, "sequence_log_probabilities", count)
    stage = {"batch": {"micro_batch_size": 1}}
    with pytest.raises(KeyboardInterrupt):
        _provider(tmp_path / "cut", _Start(), **stage)(DATA, "training")
    with safe_open(tmp_path / "cut" / "reference.training.safetensors", framework="pt") as file:
        begun = file.get_tensor("log_probabilities")
    assert sum(scored) == int((~begun.isnan()).all(dim=1).sum()) < len(begun)
    scored.clear()

    def count_on(model: LanguageModel, batch: Batch) -> tuple[Tensor, Tensor]:
        scored.append(len(batch.examples))
        return sequence_log_probabilities(model, batch)

    monkeypatch.setattr(preference, "sequence_log_probabilities", count_on)
    again = _provider(tmp_path / "cut", _Start(), resumed=True, **stage)(DATA, "training")
    assert len(scored) == len(DATA) - 3
    torch.testing.assert_close(again, whole, atol=1e-5, rtol=1e-5)


KINDS: dict[str, dict[str, Any]] = {
    "lora": {"r": 3, "lora_dropout": 0.4},
    "dora": {"r": 2, "use_dora": True},
    "whole": {"r": 2, "modules_to_save": ["embed_tokens", "norm"]},
}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tie", [False, True])
@pytest.mark.parametrize("is_new", [False, True])
def test_the_reference_of_an_adapter_is_the_model_itself_with_the_adapter_of_the_start(
    kind: str, tie: bool, is_new: bool, tmp_path: Path
) -> None:
    def start_model() -> LanguageModel:
        model = make_decoder(dropout=0.5, tie_word_embeddings=tie)
        if not is_new:
            attach_adapter(model, Adapter(AdapterConfig(**KINDS[kind]), None, None), 1)
            scatter(adapter_weights(model))
        return model

    model = start_model()
    if is_new:
        attach_adapter(model, Adapter(AdapterConfig(**KINDS[kind]), None, None), 1)
    COMPUTE.apply(model.train())

    def never() -> LanguageModel:
        raise AssertionError("a second model is loaded")

    stage = PreferenceStage.model_validate({"kind": "preference", "data": {"train": "x"}, "precompute_ref_log_probs": False})
    start, fingerprint = _start_weights(tmp_path, never), weights_fingerprint(model)
    options: dict[str, Any] = {"compute": COMPUTE, "folder": tmp_path, "log": lambda text: None}
    provider = ReferenceProvider(stage, model, start, fingerprint, resumed=False, **options)
    reference = provider(DATA, "training")
    assert isinstance(reference, AdapterReference) and provider(DATA, "validation") is reference
    write_adapter(tmp_path / "checkpoints" / step_name(0) / "model", model)

    scatter(adapter_weights(model), seed=2)  # what training does
    moved = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    batch = DATA.assemble(range(len(DATA)))
    separate = DPOObjective(loss_type="sigmoid", beta=0.1, reference=COMPUTE.apply(start_model()).requires_grad_(False))
    ours = DPOObjective(loss_type="sigmoid", beta=0.1, reference=reference)
    expected = separate.reference_log_probabilities(batch)
    assert torch.equal(ours.reference_log_probabilities(batch), expected)
    losses = []
    for objective in (separate, ours):
        torch.manual_seed(0)
        model.zero_grad()
        loss = objective(model, batch).loss
        loss.backward()
        losses.append([loss.detach(), *(p.grad.clone() for p in model.parameters() if p.grad is not None)])
    assert len(losses[0]) == len(adapter_weights(model)) + 1
    assert all(torch.equal(left, right) for left, right in zip(*losses, strict=True))
    assert model.training and all(torch.equal(model.state_dict()[name], tensor) for name, tensor in moved.items())

    resumed = ReferenceProvider(stage, model, start, fingerprint, resumed=True, **options)(DATA, "training")
    assert torch.equal(
        DPOObjective(loss_type="sigmoid", beta=0.1, reference=resumed).reference_log_probabilities(batch), expected
    )
    assert all(torch.equal(model.state_dict()[name], tensor) for name, tensor in moved.items())
    with pytest.raises((FledgeError, AssertionError), match="a second model is loaded"):
        ReferenceProvider(stage, model, start, "other", resumed=True, **options)(DATA, "training")
