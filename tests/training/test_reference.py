"""The reference of a preference stage is a live model or a table, with equal results."""

from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from fledge.autotune.autotune import ComputeConfig
from fledge.model.decoder import Decoder
from fledge.objective import sequence_log_probabilities
from fledge.recipe.schema import PreferenceStage
from fledge.training.reference import ReferenceProvider
from fledge.training.start_weights import weights_fingerprint
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
        stage=PreferenceStage.model_validate(values), model=None if resumed else model, load_start_model=start,
        fingerprint=weights_fingerprint(model), compute=COMPUTE, folder=folder, log=write_line,
    )  # fmt: skip


def test_a_live_reference_model_is_frozen_and_loaded_once_for_both_splits(tmp_path: Path) -> None:
    start = _Start()
    provider = _provider(tmp_path, start, precompute_ref_log_probs=False)
    assert start.loads == 0
    model = provider(DATA, "training")
    assert isinstance(model, Decoder) and provider(DATA, "validation") is model and start.loads == 1
    assert not model.training and not any(parameter.requires_grad for parameter in model.parameters())
    assert not list(tmp_path.iterdir())


def test_a_table_is_computed_by_the_start_model_without_loading_a_second_model(tmp_path: Path) -> None:
    start, log = _Start(), list[str]()
    provider = _provider(tmp_path, start, log)
    table = provider(DATA, "training")
    assert isinstance(table, Tensor) and table.shape == (9, 2) and start.loads == 0
    batch = DATA.assemble(range(len(DATA)))
    expected = sequence_log_probabilities(make_decoder(), batch)[0].view(9, 2)
    torch.testing.assert_close(table[list(batch.examples)], expected, atol=1e-4, rtol=1e-5)
    assert log == ["reference log-probabilities of 9 training pairs …"] and provider.model and provider.model.training


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
