"""The reference of a preference stage: a frozen copy of the model, or its log-probabilities, computed once and cached."""

from collections.abc import Callable
from pathlib import Path

import torch
import xxhash
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from fledge.autotune.autotune import ComputeConfig, force_eager
from fledge.data import PackedDataset
from fledge.model.protocol import LanguageModel, eval_mode
from fledge.objective.preference import Reference, compute_ref_log_probs
from fledge.recipe.schema import StageBase
from fledge.training.validation import row_batches


class ReferenceProvider:
    """Returns the reference of a stage's objective for the examples of a split.

    If `stage.keeps_reference_model`, the reference is a frozen copy of the start model, loaded once. Otherwise it is the table
    of log-probabilities of `model`, which must still have the start weights; the table is cached in `folder`."""

    def __init__(
        self,
        stage: StageBase,
        model: LanguageModel,
        load_start_model: Callable[[], LanguageModel],
        compute: ComputeConfig,
        folder: Path,
        log: Callable[[str], None],
    ) -> None:
        self.stage, self.model, self.load_start_model = stage, model, load_start_model
        self.compute, self.folder, self.log = compute, folder, log
        self._frozen: LanguageModel | None = None

    def __call__(self, data: PackedDataset, split: str) -> Reference:
        """The frozen model, or the table [examples, 2] of log-probabilities on the device of the stage."""
        if self.stage.keeps_reference_model:
            return self._frozen_model()
        self.log(f"reference log-probabilities of {data.examples.count:,} {split} pairs …")
        cache = self.folder / f"reference.{split}.safetensors"
        rows = self.stage.batch.micro_batch_rows
        return precompute_ref_log_probs(self.model, data, rows, self.compute, cache).to(self.compute.device)

    def _frozen_model(self) -> LanguageModel:
        if self._frozen is None:
            self._frozen = self.compute.apply(self.load_start_model()).eval().requires_grad_(False)
        return self._frozen


def fingerprint(model: LanguageModel, data: PackedDataset, compute: ComputeConfig) -> str:
    """A hash of the reference's weights, the data (whose tokens depend on tokenizer and template) and the arithmetic."""
    digest = xxhash.xxh3_64()
    for tensor in model.state_dict().values():
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    digest.update(f"{data.fingerprint()} {compute.precision} {compute.attention}".encode())
    return digest.hexdigest()


def precompute_ref_log_probs(
    model: LanguageModel, data: PackedDataset, micro_batch_rows: int, compute: ComputeConfig, cache: Path
) -> Tensor:
    """Summed log-probabilities [examples, 2] of (chosen, rejected) under the model; read from `cache` if its fingerprint
    matches."""
    expected = fingerprint(model, data, compute)
    if cache.exists():
        with safe_open(cache, framework="pt") as file:
            if (file.metadata() or {}).get("fingerprint") == expected:
                return file.get_tensor("log_probabilities")
    with force_eager(), eval_mode(model):
        batches = row_batches(data, len(data.layout), micro_batch_rows)
        table = compute_ref_log_probs(model, batches, data.examples.count, torch.device(compute.device))
    cache.parent.mkdir(parents=True, exist_ok=True)
    tmp_path = cache.with_name(f".{cache.name}")
    save_file({"log_probabilities": table}, tmp_path, metadata={"fingerprint": expected})
    tmp_path.replace(cache)
    return table
