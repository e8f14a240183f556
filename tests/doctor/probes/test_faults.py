"""Faults of the trainer, made by replacing its functions, and faults of files: the probes say so."""

import json
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from fledge.data import Batch, PackedDataset
from fledge.doctor.probes import ProbeReport, probe_run
from fledge.model import adapters, attention
from fledge.model.weight_files import EMBEDDING, HEAD
from fledge.objective import build, language, preference
from fledge.objective.preference_losses import PREFERENCE_LOSSES, PairLoss
from fledge.optim import build as optimizers
from fledge.training import trainable, validation
from fledge.training.initial_model import StageModels
from fledge.training.reference import ReferenceProvider
from fledge.training.train_step import TrainStep

Patch = pytest.MonkeyPatch
WEIGHTS = "model.safetensors"


def _measured(run: Path, stage: str, *names: str, checkpoint: str = "start") -> dict[str, Any]:
    report = probe_run(run, stage, checkpoint=checkpoint, only={f"probe/{name}" for name in names})
    assert not report.left_out, report.left_out
    return {name: report.figures[f"probe/{name}"].value for name in names}


def _with_batches(patch: Patch, change: Callable[[Batch], Batch]) -> None:
    """Let the data give other batches."""
    original = PackedDataset._assemble
    patch.setattr(PackedDataset, "_assemble", lambda self, chosen: change(original(self, chosen)))


@pytest.mark.parametrize("checkpoint", ["start", "last"])
@pytest.mark.parametrize("stage", ["pretrain", "sft", "dpo"])
def test_targets_that_are_not_shifted_or_shifted_twice(run: Path, monkeypatch: Patch, stage: str, checkpoint: str) -> None:
    with monkeypatch.context() as patch:
        _with_batches(patch, lambda batch: replace(batch, targets=batch.input_ids))
        assert _measured(run, stage, "shift_gradient", checkpoint=checkpoint) == {"shift_gradient": 0}
    with monkeypatch.context() as patch:
        _with_batches(patch, lambda batch: replace(batch, targets=batch.targets.roll(-1, 1)))
        assert _measured(run, stage, "shift_gradient", checkpoint=checkpoint) == {"shift_gradient": 2}


def test_targets_of_another_place_are_at_no_offset(run: Path, monkeypatch: Patch) -> None:
    _with_batches(monkeypatch, lambda batch: replace(batch, targets=batch.targets.roll(5, 1)))
    report = probe_run(run, "sft", checkpoint="start", only={"probe/shift_gradient"})
    assert report.figures["probe/shift_gradient"].value == -1, report.figures


def test_accumulation_by_the_mean_of_the_means_of_micro_batches(run: Path, monkeypatch: Patch) -> None:
    original = TrainStep._forward_backward

    def by_micro_batch(self: Any, objective: Any, batch: Any, number: int, micro_batch: Batch, timer: Any, **more: Any) -> Any:
        own = replace(batch, normalizer=objective.normalizer(micro_batch) * len(batch.batches))
        return original(self, objective, own, number, micro_batch, timer, **more)

    monkeypatch.setattr(TrainStep, "_forward_backward", by_micro_batch)
    found = _measured(run, "sft", "accumulation_ratio", "accumulation_cosine")
    assert found["accumulation_ratio"] > 1.02 or found["accumulation_cosine"] < 0.999


def test_accumulation_that_sums_and_does_not_divide(run: Path, monkeypatch: Patch) -> None:
    original = TrainStep._forward_backward

    def summed(self: Any, objective: Any, batch: Any, number: int, micro_batch: Batch, timer: Any, **more: Any) -> Any:
        own = replace(batch, normalizer=objective.normalizer(micro_batch))
        return original(self, objective, own, number, micro_batch, timer, **more)

    monkeypatch.setattr(TrainStep, "_forward_backward", summed)
    assert _measured(run, "pretrain", "accumulation_ratio")["accumulation_ratio"] > 4


def _frozen(patch: Patch, *names: str) -> None:
    """Let the stage load models with frozen parameters."""
    for method in ("initial", "saved"):
        original = getattr(StageModels, method)

        def freezing(self: StageModels, *arguments: Any, load: Any = original) -> Any:
            model = load(self, *arguments)
            for name in names:
                model.get_parameter(name).requires_grad_(False)
            return model

        patch.setattr(StageModels, method, freezing)


@pytest.mark.parametrize("checkpoint", ["start", "last"])
def test_a_tensor_that_is_frozen_by_mistake(run: Path, monkeypatch: Patch, checkpoint: str) -> None:
    name = "layers.1.self_attn.q_proj.weight"
    _frozen(monkeypatch, name)
    found = _measured(run, "sft", "unchanged_tensors", "missing_from_optimizer", "changed_frozen", checkpoint=checkpoint)
    assert found == {"unchanged_tensors": [name], "missing_from_optimizer": [name], "changed_frozen": []}


@pytest.mark.parametrize("factor", [0.0, math.inf])
def test_gradients_that_are_zero_or_not_finite_tell_nothing_about_the_tensors(
    run: Path, monkeypatch: Patch, factor: float
) -> None:
    names = {f"probe/{name}" for name in ("unchanged_tensors", "update_ratios", "changed_frozen")}
    original = TrainStep._gradients

    def changed(self: TrainStep, *arguments: Any) -> Any:
        found = original(self, *arguments)
        for each in self.model.parameters():
            if each.grad is not None:
                each.grad.fill_(factor)
        return found

    monkeypatch.setattr(TrainStep, "_gradients", changed)
    report = probe_run(run, "sft", checkpoint="start", only=names)
    assert set(report.figures) == {"probe/changed_frozen"} and report.figures["probe/changed_frozen"].value == []


@pytest.mark.parametrize("checkpoint", ["start", "last"])
def test_a_group_that_the_optimizer_was_not_given(run: Path, monkeypatch: Patch, checkpoint: str) -> None:
    original = optimizers._param_groups

    def without_first(model: Any) -> tuple[list[nn.Parameter], list[nn.Parameter], list[nn.Parameter]]:
        return [], *original(model)[1:]

    monkeypatch.setattr(optimizers, "_param_groups", without_first)
    found = _measured(run, "sft", "unchanged_tensors", "missing_from_optimizer", checkpoint=checkpoint)
    assert found["unchanged_tensors"] == found["missing_from_optimizer"]
    assert "embed_tokens.weight" in found["missing_from_optimizer"] and "norm.weight" in found["missing_from_optimizer"]


def test_a_parameter_without_state_in_the_checkpoint_was_in_no_optimizer(copied: Path) -> None:
    file = copied / "sft" / "checkpoints" / "step-00000008" / "state" / "optimizer.safetensors"
    kept = {name: tensor for name, tensor in load_file(file).items() if not name.startswith("norm.weight/")}
    save_file(kept, file)
    found = _measured(copied, "sft", "missing_from_optimizer", checkpoint="8")
    assert found == {"missing_from_optimizer": ["norm.weight"]}


def test_a_tensor_that_never_moved_is_named_afterwards(copied: Path) -> None:
    start = load_file(copied / "pretrain" / json.loads((copied / "pretrain" / "result.json").read_text())["model"] / WEIGHTS)
    file = copied / "sft" / "checkpoints" / "step-00000008" / "model" / WEIGHTS
    name = "model.layers.0.mlp.up_proj.weight"
    save_file({**load_file(file), name: start[name]}, file, metadata={"format": "pt"})
    assert _measured(copied, "sft", "unmoved_tensors", checkpoint="8") == {"unmoved_tensors": [name.removeprefix("model.")]}


def test_an_adapter_whose_base_is_trained_too(run: Path, monkeypatch: Patch) -> None:
    original = adapters.ATTACH["LORA"]

    def attach(model: Any, config: Any, seed: int) -> None:
        original(model, config, seed)
        model.norm.weight.requires_grad_(True)

    monkeypatch.setitem(adapters.ATTACH, "LORA", attach)
    assert _measured(run, "lora", "changed_frozen") == {"changed_frozen": ["norm.weight"]}


def test_a_resumption_that_forgets_the_state_of_the_optimizers(run: Path, monkeypatch: Patch) -> None:
    assert _measured(run, "sft", "restored_state", checkpoint="last") == {"restored_state": 1.0}
    monkeypatch.setattr(trainable, "restore_optimizers", lambda model, optimizers, tensors: None)
    assert _measured(run, "sft", "restored_state", checkpoint="last") == {"restored_state": 0.0}


def test_figures_of_one_probe_alone_are_those_of_all(run: Path) -> None:
    """The reference is made of the start weights, whichever probe asks for it first."""
    alone = probe_run(run, "dpo", only={"probe/accumulation_ratio", "probe/evaluation_dropout", "probe/reference_moved"})
    for probe in ("accumulation_ratio", "evaluation_dropout", "reference_moved"):
        single = probe_run(run, "dpo", only={f"probe/{probe}"})
        assert single.figures[f"probe/{probe}"].value == alone.figures[f"probe/{probe}"].value


# -- preferences ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("checkpoint", ["start", "last"])
def test_a_reference_that_is_the_policy_moves_with_it(run: Path, monkeypatch: Patch, checkpoint: str) -> None:
    monkeypatch.setattr(ReferenceProvider, "__call__", lambda self, data, split: self.model)
    found = _measured(run, "dpo", "reference_moved", "reference_loss", "reference_margin", checkpoint=checkpoint)
    assert found["reference_moved"] > 0.005
    assert found["reference_loss"] == pytest.approx(math.log(2), abs=1e-4)  # which no look at the first loss would show


def test_a_table_of_another_reference(copied: Path) -> None:
    file = copied / "dpo" / "reference.training.safetensors"
    save_file({"log_probabilities": load_file(file)["log_probabilities"] * 1.5}, file)
    assert _measured(copied, "dpo", "reference_moved")["reference_moved"] > 1


@pytest.mark.parametrize("beta", [0.0, 1e-5])
def test_margins_without_an_effect(run: Path, monkeypatch: Patch, beta: float) -> None:
    loss = PairLoss(lambda logps, params: nn.functional.softplus(-beta * logps.delta(1.0)))
    monkeypatch.setitem(PREFERENCE_LOSSES, "sigmoid", loss)
    found = _measured(run, "dpo", "beta_effect", "preference_loss_slope")
    assert abs(found["beta_effect"]) < 1e-4 and abs(found["preference_loss_slope"]) < 1e-4


def test_chosen_and_rejected_answers_swapped_in_the_loss(run: Path, monkeypatch: Patch) -> None:
    original = preference.by_pair
    monkeypatch.setattr(preference, "by_pair", lambda values, batch: original(values, batch).flip(1))
    found = _measured(run, "dpo", "preference_loss_slope", "reference_loss")
    assert found["preference_loss_slope"] > 0.02
    assert found["reference_loss"] == pytest.approx(math.log(2), abs=1e-4)  # which no look at the first loss would show


def test_cross_entropy_in_the_place_of_a_preference_loss(run: Path, monkeypatch: Patch) -> None:
    monkeypatch.setitem(build.BUILDERS, "preference", lambda context: language.CausalLMObjective())
    report = probe_run(run, "dpo", checkpoint="start", only={"probe/reference_loss", "probe/reference_moved"})
    assert report.figures["probe/reference_loss"].value > 4
    assert "no reference" in report.left_out["probe/reference_moved"]


# -- evaluation and attention -----------------------------------------------------------------------------------------------


def test_dropout_that_stays_on_in_evaluations(run: Path, monkeypatch: Patch) -> None:
    @contextmanager
    def nothing(model: nn.Module) -> Iterator[None]:
        yield

    for module in (validation, language):
        monkeypatch.setattr(module, "eval_mode", nothing)
    assert _measured(run, "sft", "evaluation_dropout")["evaluation_dropout"] > 1e-4


def test_attention_that_sees_later_tokens(run: Path, monkeypatch: Patch) -> None:
    original = attention.causal_document_mask

    def everything(documents: Any, start: int, stop: int, device: Any) -> Tensor:
        return torch.ones_like(original(documents, start, stop, device))

    monkeypatch.setattr(attention, "causal_document_mask", everything)
    found = _measured(run, "pretrain", "future_leak", "document_leak", checkpoint="last")
    assert found["future_leak"] > 1e-4 and found["document_leak"] > 1e-4


def test_documents_of_a_row_that_see_each_other(run: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(attention, "sees", lambda own, seen: (own == own) & (seen == seen))
    found = _measured(run, "pretrain", "future_leak", "document_leak", checkpoint="last")
    assert found["future_leak"] < 1e-5 and found["document_leak"] > 1e-4


def test_padding_that_is_attended(run: Path, monkeypatch: Patch) -> None:
    original = attention.causal_document_mask

    def with_padding(documents: Tensor | None, start: int, stop: int, device: Any) -> Tensor:
        mask = original(documents, start, stop, device)
        if documents is None:
            return mask
        return mask | (documents[:, :stop] == 0)[:, None, None]

    monkeypatch.setattr(attention, "causal_document_mask", with_padding)
    found = _measured(run, "sft", "padding_leak", "two_passes", checkpoint="last")
    assert found["padding_leak"] > 1e-4 and found["two_passes"] == 0


# -- files ------------------------------------------------------------------------------------------------------------------


def _untie(folder: Path, scale: float) -> None:
    file = folder / WEIGHTS
    tensors = load_file(file)
    save_file({**tensors, HEAD: tensors[EMBEDDING] * scale}, file, metadata={"format": "pt"})


def test_a_head_of_its_own_in_the_files_of_a_tied_model(copied: Path) -> None:
    _untie(copied / "sft" / "checkpoints" / "step-00000008" / "model", 1.5)
    report = probe_run(copied, "sft", checkpoint="8", only={"probe/head_tied", "probe/files_damaged", "probe/two_passes"})
    assert report.figures["probe/head_tied"].value is False
    assert any("step-00000008" in problem for problem in report.figures["probe/files_damaged"].value)
    assert "head" in report.left_out["probe/two_passes"]  # such a model cannot be loaded


def test_an_equal_copy_of_the_head_is_tied(copied: Path) -> None:
    _untie(copied / "sft" / "checkpoints" / "step-00000008" / "model", 1.0)
    assert _measured(copied, "sft", "head_tied", checkpoint="8") == {"head_tied": True}


def test_a_truncated_newest_checkpoint_is_told_and_the_one_before_it_probed(copied: Path) -> None:
    file = copied / "sft" / "checkpoints" / "step-00000008" / "model" / WEIGHTS
    file.write_bytes(file.read_bytes()[:-100])
    report: ProbeReport = probe_run(copied, "sft", only={"probe/files_damaged", "probe/two_passes"})
    assert report.step == 6 and "probe/two_passes" in report.figures
    (problem,) = report.figures["probe/files_damaged"].value
    assert "step-00000008" in problem and "bytes" in problem


def test_a_logged_loss_that_is_not_that_of_the_model(copied: Path) -> None:
    events = copied / "sft" / "events.jsonl"
    lines = [json.loads(line) for line in events.read_text().splitlines()]
    for event in lines:
        if event["kind"] == "eval" and event["step"] == 8:
            event["eval/loss"] *= 4  # such as a sum over four micro-batches
    events.write_text("".join(json.dumps(event) + "\n" for event in lines))
    found = _measured(copied, "sft", "logged_loss", checkpoint="8")
    assert found["logged_loss"] < -10


def test_a_probe_that_fails_is_told_and_the_others_go_on(run: Path, monkeypatch: Patch) -> None:
    def broken(*arguments: Any, **more: Any) -> Any:
        raise ZeroDivisionError("no steps")

    monkeypatch.setattr(TrainStep, "__call__", broken)
    report = probe_run(run, "sft", only={"probe/accumulation_ratio", "probe/two_passes"})
    assert report.left_out == {"probe/accumulation_ratio": "it failed with ZeroDivisionError: no steps"}
    assert report.figures["probe/two_passes"].value == 0
