"""The reference of a preference stage: a frozen copy of the model, the model with the adapter that it began with, or its
log-probabilities, computed once and cached."""

import time
from collections.abc import Callable
from pathlib import Path

import torch
import xxhash
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fledge.autotune.autotune import DTYPES, ComputeConfig
from fledge.autotune.compute_config import capability
from fledge.autotune.precision import check_supported
from fledge.data import PackedDataset
from fledge.errors import FledgeError
from fledge.model.adapter_reference import AdapterReference
from fledge.model.adapters import adapter_weights
from fledge.model.attention import avoid_cudnn_attention
from fledge.model.eager import force_eager
from fledge.model.frozen_weights import round_frozen_weights
from fledge.model.protocol import LanguageModel, eval_mode
from fledge.objective import DPOObjective, KTOObjective, Objective
from fledge.objective.preference import Reference, compute_ref_log_probs
from fledge.recipe.schema import RuntimeConfig, StageBase
from fledge.run.text_files import give_usual_mode
from fledge.training.start_weights import StartWeights
from fledge.training.validation import row_batches

MAX_DRIFT = {
    "fp32": 2e-3,
    "tf32": 2e-2,
    "bf16": 2e-2,
    "fp16": 2e-2,
}  # nats per token between the model and itself, in other batches
MAX_CHANGE = 0.02  # of the loss, relative
SAVE_SECONDS = 30.0  # between two saves of a table that is being computed


class ReferenceProvider:
    """Returns the reference of a stage's objective for the examples of a split.

    If `stage.keeps_reference_model`, the reference is a frozen copy of the start model, loaded once; where the stage trains an
    adapter, it is the model of the stage itself with the adapter of the start. Otherwise it is the table of log-probabilities
    of the start model; the table is cached in `folder` under the fingerprint of its weights, so a complete table serves a
    resumed stage without them.

    `model`: the model of the stage; unless `resumed`, it has the start weights, so that no second one is loaded. `start`: the
    weights that the stage begins with, or has begun with; `fingerprint` identifies them."""

    def __init__(
        self,
        stage: StageBase,
        model: LanguageModel,
        start: StartWeights,
        fingerprint: str,
        *,
        resumed: bool,
        compute: ComputeConfig,
        folder: Path,
        log: Callable[[str], None],
    ) -> None:
        self.stage, self.model, self.start, self.fingerprint, self.resumed = stage, model, start, fingerprint, resumed
        self.compute, self.folder, self.log = compute, folder, log
        self._kept: LanguageModel | AdapterReference | None = None

    def __call__(self, data: PackedDataset, split: str) -> Reference:
        """The frozen model, or the table [examples, 2] of log-probabilities on the device of the stage."""
        if self.stage.keeps_reference_model:
            return self._kept_reference()
        self.log(f"reference log-probabilities of {data.examples.count:,} {split} examples …")
        cache = self.folder / f"reference.{split}.safetensors"
        rows = self.stage.batch.micro_batch_rows
        key = table_fingerprint(self.fingerprint, data, self.compute)
        return precompute_ref_log_probs(self._start_model, data, rows, self.compute, cache, key).to(self.compute.device)

    @torch.no_grad()
    def check(self, objective: Objective, data: PackedDataset) -> None:
        """Check before the first step, when the model is the reference, that every reward is 0 and the loss what it is there;
        for the first rows of the data. Nothing happens in a resumed stage, or for a loss without reference. Raises FledgeError
        if the reference is another model."""
        if self.resumed or not isinstance(objective, DPOObjective | KTOObjective) or not objective.has_reference:
            return
        batch = data.batch(0, self.stage.batch.micro_batch_rows).to(torch.device(self.compute.device))
        with force_eager(), eval_mode(self.model):
            objective = objective.in_window(self.model, lambda: [(batch, True)], list)
            metrics = {name: ratio.value for name, ratio in objective.evaluate(self.model, batch).items() if ratio.count}
        expected, loss = objective.loss_at_reference, metrics["loss"]
        if isinstance(objective, DPOObjective):
            loss -= objective.sft_loss_weight * metrics["sft_loss"]
        drift = {name: metrics[f"drift/{name}"] for name in ("chosen", "rejected") if f"drift/{name}" in metrics}
        allowed = max(MAX_DRIFT[self.compute.precision], MAX_DRIFT[self._placement()[0]])
        differs = self.stage.reference_placement != (None, None)  # then rounding moves the loss of long answers: drift decides
        is_near = abs(loss - expected) <= MAX_CHANGE * max(1.0, expected) or (differs and bool(drift))
        if all(abs(value) <= allowed for value in drift.values()) and is_near:
            self.log(f"the reference is the model at the start: loss {loss:.4f}, as it has to be before the first step")
            return
        by = ", ".join(f"{value:+.3g} nats/token on {name} answers" for name, value in drift.items())
        raise FledgeError(
            f"the reference is not the model that the stage starts from: they differ by {by}; before the first step the loss "
            f"has to be {expected:.4f} and is {loss:.4f}",
            where=str(self.folder),
            hint="remove reference.*.safetensors there, so that it is computed again"
            if isinstance(objective.reference, Tensor)
            else "check init_from, and that the adapter is the one of the start",
        )

    def _start_model(self) -> LanguageModel:
        return self._load_again() if self.resumed else self.model

    def _load_again(self) -> LanguageModel:
        return self.compute.apply(self.start.load_again(self.fingerprint))

    def _kept_reference(self) -> LanguageModel | AdapterReference:
        if self._kept is None:
            if self.model.adapter is None:
                self._kept = self._second_model()
            else:
                self._kept = AdapterReference(self.model, self._start_adapter())
        return self._kept

    def _second_model(self) -> LanguageModel:
        """The start model, frozen, in the precision and on the device that the stage names for it."""
        if self.stage.reference_placement == (None, None):
            return self.compute.place(self.start.load_again(self.fingerprint).eval().requires_grad_(False))
        precision, device = self._placement()
        if device == "cuda" and not torch.cuda.is_available():
            raise FledgeError("no CUDA device is available", where="reference_device", hint="leave it out")
        check_precision(precision, device)
        model = self.start.load_again(self.fingerprint).eval().requires_grad_(False)
        saved = round_frozen_weights(model, DTYPES[precision])
        avoid_cudnn_attention(torch.device(device))
        self.compute.on(device, precision).place(model)
        kept = f": {saved / 2**20:,.0f} MiB less" if saved else ""
        self.log(f"the reference is a second model in {precision} on {device}{kept}")
        return model

    def _placement(self) -> tuple[str, str]:
        """Precision and device of the reference."""
        precision, device = self.stage.reference_placement
        return precision or self.compute.precision, device or self.compute.device

    def _start_adapter(self) -> dict[str, Tensor]:
        """Copies of the adapter's weights at the start, on the device of the stage."""
        if self.resumed:
            weights = self.start.load_adapter_again(self.model, self.fingerprint)
        else:
            weights = {name: tensor.clone() for name, tensor in adapter_weights(self.model).items()}
        return {name: tensor.to(self.compute.device) for name, tensor in weights.items()}


def check_precision(precision: str, device: str) -> None:
    """FledgeError if the device of the reference cannot compute in its precision."""
    try:
        check_supported(RuntimeConfig.model_validate({"precision": precision}), device, capability(device))
    except FledgeError as error:
        raise FledgeError(error.what, where="reference_precision", hint="choose another one, or leave it out") from None


def table_fingerprint(weights: str, data: PackedDataset, compute: ComputeConfig) -> str:
    """A hash of the reference's weights, the data (whose tokens depend on tokenizer and template) and the arithmetic."""
    attention = compute.eager_attention or compute.attention
    return xxhash.xxh3_64_hexdigest(f"{weights} {data.fingerprint()} {compute.precision} {attention}".encode())


def precompute_ref_log_probs(
    start_model: Callable[[], LanguageModel],
    data: PackedDataset,
    micro_batch_rows: int,
    compute: ComputeConfig,
    cache: Path,
    key: str,
) -> Tensor:
    """Summed log-probabilities [examples, 2] of (chosen, rejected) under the start model; read from `cache` if it is the table
    of this `key`. A table that is not complete, because the process ended, is continued; it is written every SAVE_SECONDS.
    Raises FledgeError if the cache exists and cannot be read."""
    table = _read_table(cache, key)
    if table is not None and not table.isnan().any():
        return table
    model, saved = start_model(), time.monotonic()

    def save_now_and_then(begun: Tensor) -> None:
        nonlocal saved
        if time.monotonic() - saved >= SAVE_SECONDS:
            _write_table(begun, cache, key)
            saved = time.monotonic()

    with force_eager(), eval_mode(model):
        table = compute_ref_log_probs(
            model,
            row_batches(data, len(data.layout), micro_batch_rows),
            data.examples.count,
            torch.device(compute.device),
            begun=table,
            after_batch=save_now_and_then,
        )
    _write_table(table, cache, key)
    return table


def _write_table(table: Tensor, cache: Path, key: str) -> None:
    cache.parent.mkdir(parents=True, exist_ok=True)
    tmp_path = cache.with_name(f".{cache.name}")
    save_file({"log_probabilities": table}, tmp_path, metadata={"fingerprint": key})
    give_usual_mode(tmp_path)
    tmp_path.replace(cache)


def _read_table(cache: Path, key: str) -> Tensor | None:
    """The cached table, with NaN where it is not complete; None if it is missing, damaged or of other weights or data."""
    try:
        with cache.open("rb"), safe_open(cache, framework="pt") as file:
            return file.get_tensor("log_probabilities") if (file.metadata() or {}).get("fingerprint") == key else None
    except (FileNotFoundError, SafetensorError):
        return None
    except OSError as error:
        raise FledgeError(f"cannot read: {error.strerror}", where=str(cache), hint="make it readable again") from None
