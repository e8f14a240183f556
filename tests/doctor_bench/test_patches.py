from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from fledge.data.dataset import packed_dataset, packing
from fledge.data.dataset.packed_dataset import PackedDataset
from fledge.data.storage import SequenceWriter
from fledge.distributed.context import DistributedContext
from fledge.doctor_bench.condition import Fault, unpatched
from fledge.doctor_bench.faults import FAULTS
from fledge.doctor_bench.setup import RunSetup
from fledge.model import attention
from fledge.model.adapters import LoraLinear
from fledge.model.decoder import Decoder
from fledge.model.moe import Router
from fledge.objective import language, preference
from fledge.objective.language import CausalLMObjective
from fledge.objective.preference import DPOObjective
from fledge.tokenizer import Tokenizer
from fledge.tokenizer.saving import save_tokenizer
from fledge.training import reference, rollout_source, trainable, trainer, validation
from fledge.training.batch_source import DatasetSource
from fledge.training.reference import ReferenceProvider
from fledge.training.train_step import TrainStep
from fledge.training.trainable import TrainableModel

OWNERS: tuple[Any, ...] = (
    PackedDataset, SequenceWriter, DistributedContext, LoraLinear, Decoder, Router, CausalLMObjective, DPOObjective,
    DatasetSource, ReferenceProvider, Tokenizer, TrainStep, TrainableModel, attention, language, preference, packed_dataset,
    packing, reference, rollout_source, trainable, trainer, validation,
)  # fmt: skip
PATCHED = [(fault, level) for fault in FAULTS.values() if fault.patch is not unpatched for level in fault.levels]


def _state() -> dict[tuple[int, str], int]:
    return {(number, name): id(value) for number, owner in enumerate(OWNERS) for name, value in vars(owner).items()}


@pytest.fixture(scope="module")
def setup(chatml: Tokenizer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunSetup]:
    folder = tmp_path_factory.mktemp("setup")
    save_tokenizer(chatml, folder / "tokenizer", replace=True)
    stage = {"batch": {"micro_batch_size": 2, "gradient_accumulation_steps": 2}}
    recipe = {"name": "run", "output": str(folder), "stages": {"sft": stage}}
    yield RunSetup(
        recipe=recipe, stage_name="sft", shape="sft", folder=folder, tokenizer=Path(folder / "tokenizer"), seed=1, steps=10,
        rate=1e-3,
    )  # fmt: skip


@pytest.mark.parametrize(("fault", "level"), PATCHED, ids=lambda one: one.name if isinstance(one, Fault) else one)
def test_a_patch_changes_something_and_leaves_nothing_behind(fault: Fault, level: str, setup: RunSetup) -> None:
    before = _state()
    with fault.patch(setup, fault.levels[level]):
        assert _state() != before
    assert _state() == before


def test_a_patch_is_taken_back_after_an_error(setup: RunSetup) -> None:
    before = _state()
    fault = FAULTS["target shifted twice"]
    with pytest.raises(RuntimeError), fault.patch(setup, fault.levels[""]):
        raise RuntimeError
    assert _state() == before
