"""The reference of a preference stage: a frozen copy, or its log-probabilities computed once and kept."""

from pathlib import Path

import torch
import xxhash
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

from fledge.autotune.autotune import ComputeConfig, force_eager
from fledge.data import PackedDataset
from fledge.model.protocol import LanguageModel
from fledge.objective.preference import compute_ref_log_probs
from fledge.train.validation import validation_batches


def fingerprint(model: LanguageModel, data: PackedDataset, decision: ComputeConfig) -> str:
    """Changes with the reference's weights, the data (its tokens carry tokenizer and template) or the arithmetic."""
    digest = xxhash.xxh3_64()
    for tensor in model.state_dict().values():
        digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    digest.update(f"{data.fingerprint()} {decision.precision} {decision.attention}".encode())
    return digest.hexdigest()


def precompute_ref_log_probs(
    model: LanguageModel, data: PackedDataset, micro: int, decision: ComputeConfig, cache: Path
) -> Tensor:
    """Log-probabilities [examples, 2] under the reference, from the cache if its fingerprint fits."""
    mark = fingerprint(model, data, decision)
    if cache.exists():
        with safe_open(cache, framework="pt") as file:
            if (file.metadata() or {}).get("fingerprint") == mark:
                return file.get_tensor("log_probabilities")
    was_training = model.training
    model.eval()
    with force_eager():
        batches = validation_batches(data, len(data.rows), micro)
        table = compute_ref_log_probs(model, batches, data.examples.count, torch.device(decision.device))
    model.train(was_training)
    cache.parent.mkdir(parents=True, exist_ok=True)
    beside = cache.with_name(f".{cache.name}")
    save_file({"log_probabilities": table}, beside, metadata={"fingerprint": mark})
    beside.replace(cache)
    return table
