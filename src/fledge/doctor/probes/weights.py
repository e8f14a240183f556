"""Probes of weights and files: tied head, adapter, experts, rows of the embedding, tensors that never moved, damaged files."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open

from fledge.checkpoint import find
from fledge.diagnosis.case import Figure
from fledge.doctor.probes.context import ProbeContext
from fledge.doctor.probes.figures import figure, left_out
from fledge.doctor.probes.rows import padded, positions_of
from fledge.model.adapter_files import is_adapter
from fledge.model.adapters import lora_layers
from fledge.model.hf_config import read_json_object
from fledge.model.loading import base_directory
from fledge.model.moe import RouterStats
from fledge.model.protocol import LanguageModel
from fledge.model.weight_files import EMBEDDING, HEAD, read_headers
from fledge.training import trainer as trainer_module

MOST_NAMES = 12  # tensors of a file that are named, if they hold numbers that are not finite
MOST_CHECKED = 3  # checkpoints whose files are hashed
ROWS_AT_ONCE = 8
LEAST_UPDATES = 2  # the first one leaves half of a new adapter as it is
VISIBLE_CHANGE = 1e-5  # sum of learning rates: less does not move numbers near 1 in float32


def named(names: list[str], of: int, what: str, note: str = "") -> Figure:
    """A list of names as a figure, which says of how many it is."""
    return figure(names, f"{len(names)} of {of} {what}{f'; {note}' if note else ''}")


# -- head -------------------------------------------------------------------------------------------------------------------


def head_tied(context: ProbeContext) -> Mapping[str, Figure | None]:
    """Whether head and embedding are one tensor where the configuration says so: in the files, and once they are loaded."""
    folder = _whole_model(context.material.model_folder)
    says_so = context.model.config.tie_word_embeddings if folder is None else _is_to_be_tied(folder)
    if not says_so:
        raise left_out("the configuration does not tie the head to the embedding")
    if folder is not None and (difference := _own_head(folder)) is not None:
        note = f"the files hold a head of their own, which differs from the embedding by up to {difference:.3g}"
        return {"probe/head_tied": figure(False, note)}
    model = context.model
    shared = _embedding(model) is model.lm_head_weight
    return {"probe/head_tied": figure(shared, "one tensor" if shared else "the loaded model has two tensors")}


def _whole_model(folder: Path | None) -> Path | None:
    """The folder with the weights of a model; of an adapter, that of its base."""
    return base_directory(folder) if folder is not None and is_adapter(folder) else folder


def _is_to_be_tied(folder: Path) -> bool:
    """Whether the configuration in a folder ties the head. Absent keys count as in transformers: T5 ties by default, others
    too."""
    config = read_json_object(folder / "config.json")
    return bool(config.get("tie_word_embeddings", True))


def _own_head(folder: Path) -> float | None:
    """The largest difference of head and embedding in the files of a model; None where they are equal, or there is no head."""
    stored = read_headers(folder).tensors
    if HEAD not in stored or EMBEDDING not in stored:
        return None
    head, embedding = (_tensor(stored[name].file, name) for name in (HEAD, EMBEDDING))
    difference = float((head - embedding).abs().max()) if head.shape == embedding.shape else float("inf")
    return difference or None


def _tensor(file: Path, name: str) -> torch.Tensor:
    with safe_open(file, framework="pt") as opened:
        return opened.get_tensor(name).float()


def _embedding(model: LanguageModel) -> torch.nn.Parameter | None:
    """The table of the tokens' vectors."""
    named_parameters = model.named_parameters(remove_duplicate=False)
    return next((each for name, each in named_parameters if model.parameter_role(name) == "embedding"), None)


def embedding_rows_unused(context: ProbeContext) -> Mapping[str, Figure | None]:
    """The share of the rows of the embedding that belong to no token of the tokenizer."""
    rows = context.any_model.vocab_size
    ids = {number for number in context.material.tokenizer.core.get_vocab(with_added_tokens=True).values() if number < rows}
    return {"probe/embedding_rows_unused": figure(1 - len(ids) / rows, f"{rows - len(ids):,} of {rows:,} rows")}


# -- adapter ----------------------------------------------------------------------------------------------------------------


def adapter_b_norm(context: ProbeContext) -> Mapping[str, Figure | None]:
    """The norm of all B matrices of an adapter, which are 0 before the first update."""
    layers = [layer for _, layer in lora_layers(context.any_model)]
    if not layers:
        raise left_out("the model has no low-rank adapter")
    norm = float(torch.stack([layer.lora_B.detach().double().square().sum() for layer in layers]).sum().sqrt())
    return {"probe/adapter_b_norm": figure(norm, f"{len(layers)} matrices")}


# -- experts ----------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def experts(context: ProbeContext) -> Mapping[str, Figure | None]:
    """The largest load of an expert ÷ the even load, and the share of experts that no token of the sample reaches."""
    model = context.any_model.eval()
    if model.config.moe is None:
        raise left_out("the model is no mixture of experts")
    found: list[RouterStats] = []
    for start in range(0, len(context.train_rows), ROWS_AT_ONCE):
        rows = [row.tokens for row in context.train_rows[start : start + ROWS_AT_ONCE]]
        tokens, documents = padded(rows, context.material.tokenizer.pad)
        _, routing = model.forward_with_router_stats(tokens, positions_of(documents), documents)
        if routing is None:
            raise left_out("this implementation of the model does not tell what its routers choose")
        found.append(routing)
    routing = RouterStats.merged(found)
    largest = float((routing.load * routing.counts.shape[1]).max())
    dead = float((routing.counts == 0).float().mean())
    note = f"{routing.counts.shape[0]} layers of {routing.counts.shape[1]} experts, {int(routing.tokens):,} tokens"
    return {"probe/expert_load": figure(largest, note), "probe/dead_experts": figure(dead, note)}


# -- tensors that never moved -----------------------------------------------------------------------------------------------


def unmoved_tensors(context: ProbeContext) -> Mapping[str, Figure | None]:
    """The tensors that the stage is to train and that are in the checkpoint as they were at the start."""
    run = context.run
    if run.step < LEAST_UPDATES or _rates_so_far(context) < VISIBLE_CHANGE:
        raise left_out("no update was done yet" if run.is_start else "the updates so far were too few or too small")
    parts = context.trainer
    expected = parts.to_be_trained()
    start = run.load_start()
    before, after = (dict(model.named_parameters()) for model in (start, context.any_model))
    common = sorted(name for name in expected if name in before and name in after)
    same = [name for name in common if torch.equal(before[name], after[name])]
    return {"probe/unmoved_tensors": named(same, len(common), "tensors", f"after {run.step:,} updates")}


def _rates_so_far(context: ProbeContext) -> float:
    """The sum of the learning rates of the updates that were done."""
    run, stage = context.run, context.run.prepared.stage
    total = run.prepared.horizon.steps
    return sum(trainer_module.learning_rate(step, total, stage.optimizer, stage.schedule) for step in range(run.step))


# -- files ------------------------------------------------------------------------------------------------------------------


def files_damaged(context: ProbeContext) -> Mapping[str, Figure | None]:
    """What is wrong with the newest checkpoints of a stage; of a model directory, with its files of weights."""
    folder = context.material.model_folder
    if not hasattr(context.material, "directory"):
        assert folder is not None
        problems = _weights_problem(folder)
        return {"probe/files_damaged": figure(problems, "the files of weights can be read" if not problems else "")}
    paths = context.run.directory.checkpoint_paths()
    if not paths:
        raise left_out("the stage has no checkpoint")
    chosen = paths[-MOST_CHECKED:]
    problems = [f"{path.name}: {problem}" for path in chosen if (problem := find.verify(path)) is not None]
    return {"probe/files_damaged": figure(problems, f"the newest {len(chosen)} of {len(paths)} checkpoints")}


def _weights_problem(folder: Path) -> list[str]:
    """A sentence for each file of weights that cannot be read or holds numbers that are not finite."""
    problems = []
    for file in read_headers(folder).files:
        try:
            with safe_open(file, framework="np") as opened:
                bad = [name for name in opened.keys() if not _is_finite(opened.get_tensor(name))]  # noqa: SIM118
        except (SafetensorError, TypeError) as error:
            problems.append(f"{file.name}: {error}")
            continue
        problems += [f"{file.name}: {name} holds numbers that are not finite" for name in bad[:MOST_NAMES]]
    return problems


def _is_finite(values: np.ndarray) -> bool:
    return values.dtype.kind != "f" or bool(np.isfinite(values).all())
