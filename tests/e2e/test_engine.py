"""Complete runs of the engine: out of memory, overflow of fp16, derived batch sizes, and events that add up."""

import json
import math
import os
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import torch
import xxhash
from safetensors.torch import load_file

from fledge.data import PackedDataset
from fledge.errors import FledgeError
from fledge.forecast.planning import dry_run
from fledge.model.cost import ModelCost
from fledge.model.pretrained import from_pretrained
from fledge.optim.grad_scaler import GradScaler
from fledge.pipeline import Pipeline
from fledge.prepare import Preparation
from fledge.recipe import Recipe, recipe_from_dict
from fledge.run import Console
from fledge.tokenizer import load_tokenizer
from fledge.training import trainable
from fledge.training.train_step import TrainStep
from tests.support import tiny_run
from tests.support.run_directory import events

QUIET = Console(quiet=True)
LINUX = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits its address space as Linux does")


def _tree(world: Path, output: Path, model: dict[str, Any], machine: dict[str, Any], **stage: Any) -> dict[str, Any]:
    """The recipe with its pretraining stage only, with these changes."""
    tree = tiny_run.tree(world, output)
    tree["stages"] = {"pretrain": {**tree["stages"]["pretrain"], **stage}}
    return tree | {"model": {**tree["model"], **model}, "runtime": {**tree["runtime"], **machine}}


def _recipe(world: Path, output: Path, machine: dict[str, Any] | None = None, **stage: Any) -> Recipe:
    return recipe_from_dict(_tree(world, output, {}, machine or {}, **stage))


def _events(run: Path, kind: str) -> list[dict[str, Any]]:
    return events(run, "pretrain", kind)


def _weights(run: Path) -> dict[str, torch.Tensor]:
    return load_file(run / "pretrain" / "checkpoints" / "last" / "model" / "model.safetensors")


# -- memory that runs out ----------------------------------------------------------------------------------------------

LIMITED = """
import resource, sys
from fledge.run import Console

say = Console.log

def say_and_limit(self, text="", style=None):
    say(self, text, style)
    if text.startswith("machine:"):  # everything is loaded; what follows is the stage
        size = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (size + int(sys.argv[1]), resource.RLIM_INFINITY))

Console.log = say_and_limit
from fledge.cli import main
sys.exit(main(sys.argv[2:]))
"""
BIG = {"intermediate_size": 4096, "dropout": 0.0, "max_position_embeddings": 2048}


def _train_limited(recipe: Path, free: int) -> subprocess.CompletedProcess[str]:
    """Run `fledge train` in a process that may allocate `free` bytes more than at the start of the stage."""
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "1000000", "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", LIMITED, str(free), "train", str(recipe)]
    return subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300)


def _large_rows(world: Path, output: Path, context: int, micro: int, accumulation: int) -> dict[str, Any]:
    """A recipe whose steps need memory mostly for activations: 16 KiB per token in each of nine tensors."""
    tree = _tree(
        world,
        output,
        BIG,
        {},
        batch={"micro_batch_size": micro, "gradient_accumulation_steps": accumulation},
        duration="3 steps",
        optimizer={"learning_rate": 1e-4, "weight_decay": 0.0},
        evaluation={"every_steps": 3, "max_packed_rows": 1},
    )
    tree["stages"]["pretrain"]["data"]["max_seq_len"] = context
    return tree | {"generation_samples": {"prompts": [], "texts": []}}


@LINUX
def test_a_run_whose_micro_batch_does_not_fit_continues_with_half_the_size(world: Path, tmp_path: Path) -> None:
    """Eight rows of 128 tokens keep about 150 MiB for the backward pass, four half of that."""
    recipe = tiny_run.write(tmp_path / "limited.yaml", _large_rows(world, tmp_path / "limited", 128, 8, 1))
    done = _train_limited(recipe, 150 << 20)
    assert done.returncode == 0, done.stderr[-3000:]
    message = "out of memory with micro-batches of 8 rows: continuing with 4; the batch size does not change"
    assert f"warning: {message}" in done.stderr
    run = tmp_path / "limited" / "tiny"
    (alert,) = _events(run, "alert")
    assert (alert["check"], alert["step"], alert["severity"], alert["message"]) == ("out_of_memory", 0, "warning", message)
    assert alert["evidence"]["micro_batch_size"] == 4 and "allocate" in alert["evidence"]["error"]
    state = json.loads((run / "pretrain" / "checkpoints" / "last" / "state" / "trainer.json").read_text())
    assert state["micro_batch_size"] == 4 and state["step"] == 3

    smaller = Pipeline(recipe_from_dict(_large_rows(world, tmp_path / "smaller", 128, 4, 2)), QUIET).run()
    steps, expected = _events(run, "step"), _events(smaller, "step")
    assert len(steps) == len(expected) == 3
    for name in ("train/tokens", "train/target_tokens", "train/epoch", "train/lr"):
        assert [event[name] for event in steps] == [event[name] for event in expected]
    assert [e["train/loss"] for e in steps] == pytest.approx([e["train/loss"] for e in expected], abs=1e-5)
    for name, tensor in _weights(smaller).items():
        torch.testing.assert_close(_weights(run)[name], tensor, atol=1e-6, rtol=1e-5, msg=name)


@LINUX
def test_a_row_that_does_not_fit_into_memory_ends_the_run_with_advice(world: Path, tmp_path: Path) -> None:
    recipe = tiny_run.write(tmp_path / "limited.yaml", _large_rows(world, tmp_path / "limited", 2048, 2, 1))
    done = _train_limited(recipe, 120 << 20)
    assert done.returncode == 2, done.stderr[-3000:]
    assert "continuing with 1" in done.stderr
    assert "one row of 2,048 tokens does not fit into memory" in done.stderr and "batch.micro_batch_size" in done.stderr
    assert "runtime.activation_checkpointing" in done.stderr and "Traceback" not in done.stderr


def test_a_run_that_halved_its_micro_batch_resumes_with_the_halved_size(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The newest checkpoint stores the size of the halved micro-batch."""
    recipe, batches = _recipe(world, tmp_path), []
    step = TrainStep._step

    def stop(updater: TrainStep, *arguments: Any) -> Any:
        if len(batches) == 4:
            raise KeyboardInterrupt
        batches.append(arguments[0])
        return step(updater, *arguments)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TrainStep, "_step", stop)
        Pipeline(recipe, QUIET).run()
    (newest,) = sorted((tmp_path / "tiny" / "pretrain" / "checkpoints").glob("step-*"))[-1:]
    file, manifest = newest / "state" / "trainer.json", newest / "manifest.json"
    state = json.loads(file.read_text())
    assert state["micro_batch_size"] is None
    file.write_text(json.dumps({**state, "micro_batch_size": 1}))
    listed = json.loads(manifest.read_text())
    (name,) = [name for name in listed["files"] if name.endswith("trainer.json")]
    digest = xxhash.xxh3_64_hexdigest(file.read_bytes())
    listed["files"][name] = {**listed["files"][name], "bytes": file.stat().st_size, "xxh3": digest}
    manifest.write_text(json.dumps(listed))
    micros: list[int] = []
    make = PackedDataset.batch

    def noted(data: PackedDataset, first: int, count: int, *more: Any) -> Any:
        micros.append(count)
        return make(data, first, count, *more)

    monkeypatch.setattr(PackedDataset, "batch", noted)
    Pipeline(recipe, QUIET).run(resume=True)
    assert set(micros[1:]) == {1}  # the first batch is what is computed before the loop


# -- batches that memory decides ---------------------------------------------------------------------------------------


def test_an_automatic_micro_batch_size_is_kept_on_resume_though_free_memory_changed(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    batch = {"micro_batch_size": "auto", "tokens_per_step": 12 * 64}
    recipe = _recipe(world, tmp_path, batch=batch, duration="4 steps", checkpoint={"every_steps": 1})

    def stopped(*what: Any) -> Any:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TrainStep, "_step", stopped)
        Pipeline(recipe, QUIET).run()
    plan = json.loads((tmp_path / "tiny" / "pretrain" / "plan.json").read_text())
    assert (plan["micro_batch_size"], plan["effective_batch_rows"]) == (12, 12)
    assert any("micro-batches of 12 rows, 1 per step: a step takes about" in note for note in plan["notes"])
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2**20, total=2**30))
    with pytest.raises(FledgeError, match="not even one row") as caught:
        Pipeline(_recipe(world, tmp_path / "other", batch=batch), QUIET).run()
    assert caught.value.where == "stages.pretrain.batch.micro_batch_size"
    run = Pipeline(recipe, QUIET).run(resume=True)
    assert json.loads((run / "pretrain" / "plan.json").read_text())["micro_batch_size"] == 12
    assert len(_events(run, "step")) == 4


def test_tokens_per_step_that_are_not_whole_rows_are_an_error_before_anything_is_written(world: Path, tmp_path: Path) -> None:
    recipe = _recipe(world, tmp_path, batch={"micro_batch_size": "auto", "tokens_per_step": 1000})
    for attempt in (lambda: Pipeline(recipe, QUIET).run(), lambda: dry_run(recipe, QUIET)):
        with pytest.raises(FledgeError, match="1,000 tokens are not a whole number of rows of 64") as caught:
            attempt()
        assert caught.value.where == "stages.pretrain.batch.tokens_per_step" and caught.value.hint == "write 960 or 1,024"
    assert not (tmp_path / "tiny").exists()


# -- fp16 --------------------------------------------------------------------------------------------------------------


def test_fp16_trains_and_writes_its_loss_scale(world: Path, tmp_path: Path) -> None:
    run = Pipeline(_recipe(world, tmp_path, {"precision": "fp16"}), QUIET).run()
    steps = _events(run, "step")
    assert [event["train/loss_scale"] for event in steps] == [65536.0] * 8 and {
        event["train/skipped_steps"] for event in steps
    } == {0}
    assert steps[-1]["train/loss"] < steps[0]["train/loss"]
    exact = _events(Pipeline(_recipe(world, tmp_path / "exact"), QUIET).run(), "step")
    assert [e["train/loss"] for e in steps] == pytest.approx([e["train/loss"] for e in exact], rel=0.01)
    assert [e["train/grad_norm"] for e in steps] == pytest.approx([e["train/grad_norm"] for e in exact], rel=0.05)


def test_an_overflow_of_fp16_is_skipped_and_counted_and_training_continues(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first gradients overflow because the initial loss scale is very high."""
    monkeypatch.setattr(trainable, "GradScaler", lambda device: GradScaler(device, 2.0**22))
    run = Pipeline(_recipe(world, tmp_path, {"precision": "fp16"}, duration="14 steps"), QUIET).run()
    steps = _events(run, "step")
    skipped = [event["train/skipped_steps"] for event in steps]
    assert skipped[0] == 1 and steps[0]["train/grad_norm"] is None
    assert 0 < skipped[-1] < 10 and skipped[-1] == skipped[-2] == sum(event["train/grad_norm"] is None for event in steps)
    for before, after in pairwise(steps):
        assert after["train/loss_scale"] == before["train/loss_scale"] / (2 if before["train/grad_norm"] is None else 1)
    assert all(math.isfinite(event["train/loss"]) for event in steps) and len(steps) == 14
    state = json.loads((run / "pretrain" / "checkpoints" / "last" / "state" / "trainer.json").read_text())
    assert state["grad_scaler"]["skipped"] == skipped[-1]
    assert state["clipped_steps"] <= 14 - skipped[-1]


# -- evidence ----------------------------------------------------------------------------------------------------------


def _fail_on_constant(text: str) -> float:
    raise AssertionError(f"{text} is not JSON")


def test_figures_in_events_add_up_and_are_valid_json(world: Path, tmp_path: Path) -> None:
    tree = _tree(world, tmp_path, {}, {}, optimizer={"learning_rate": 1e-3, "max_grad_norm": 0.61})
    lines = (world / "pretrain.jsonl").read_text(encoding="utf-8").splitlines()
    for name, rows in (("old", lines[:80]), ("new", lines[80:])):
        (tmp_path / f"{name}.jsonl").write_text("\n".join(rows) + "\n", encoding="utf-8")
    tree["stages"]["pretrain"]["data"]["train"] = [{"path": str(tmp_path / f"{name}.jsonl")} for name in ("old", "new")]
    run = Pipeline(recipe_from_dict(tree), QUIET).run()
    for line in (run / "pretrain" / "events.jsonl").read_text(encoding="utf-8").splitlines():
        json.loads(line, parse_constant=_fail_on_constant)
    steps, resources = _events(run, "step"), _events(run, "system")
    assert len(steps) == len(resources) == 8
    clipped = 0
    for number, event in enumerate(steps, 1):
        clipped += event["train/grad_norm"] > 0.61
        assert event["train/clip_fraction"] == round(clipped / number, 6)
        assert sum(event["train/tokens_by_source"].values()) == event["train/tokens"]
        assert not [name for name in event if "second" in name or "memory" in name or name in ("phases", "mfu")]
    assert 0 < clipped < 8, [event["train/grad_norm"] for event in steps]
    added = [b["train/target_tokens"] - a["train/target_tokens"] for a, b in pairwise(steps)]
    sizes = [b["train/tokens"] - a["train/tokens"] for a, b in pairwise(steps)]
    assert [e["train/target_token_fraction"] for e in steps[1:]] == pytest.approx(
        [a / b for a, b in zip(added, sizes, strict=True)], abs=1e-6
    )
    peak = json.loads((run / "pretrain" / "compute.json").read_text())["measurements"].get("matmul_peak_flops")
    config = recipe_from_dict(tree).model
    vocab = json.loads((run / "summary.json").read_text())["tokenizer"]["vocab_size"]
    preparation = Preparation(recipe_from_dict(tree), lambda text: None)
    cost = ModelCost(config, vocab)
    context = preparation.stage_data("pretrain", load_tokenizer(run / "tokenizer")).train.mean_context
    for event, size, supervised in zip(resources[1:], sizes, added, strict=True):
        assert event["system/peak_memory_bytes"] >= 0.95 * event["system/memory_bytes"] > 50 << 20
        busy = sum(event["system/phases"][name] for name in ("data", "forward", "backward", "optimizer"))
        training = event["system/step_seconds"] - sum(event["system/phases"].get(name, 0.0) for name in ("evaluate", "save"))
        assert training >= 0.99 * busy
        assert event["system/step_tokens_per_second"] == pytest.approx(size / training, rel=0.05)
        if peak:
            flops = size * cost.training_body_flops(context) + supervised * cost.training_head_flops()
            assert event["system/mfu"] == pytest.approx(flops / training / peak, rel=0.05, abs=1e-4)


def test_bits_per_byte_is_the_loss_in_bits_divided_by_the_predicted_bytes(finished: Path, world: Path) -> None:
    last = _events(finished, "eval")[-1]
    model = from_pretrained(finished / "pretrain" / "checkpoints" / "last" / "model").eval()
    tokenizer = load_tokenizer(finished / "tokenizer")
    preparation = Preparation(tiny_run.recipe(world, finished.parent), lambda text: None)
    data = preparation.stage_data("pretrain", tokenizer).validation
    assert data is not None
    batch = data.assemble(list(range(4)))
    with torch.no_grad():
        logs = model.logits(model(batch.input_ids, batch.position_ids, batch.documents)).log_softmax(-1)
    nll, size = 0.0, 0
    for b, t in batch.loss_weights.nonzero().tolist():
        target = int(batch.targets[b, t])
        nll -= float(logs[b, t, target])
        special = target in {tokenizer.eos_id, tokenizer.pad, tokenizer.eot_id}
        size += (
            0 if special else len(tokenizer.core.id_to_token(target) or "")
        )  # a byte-level token has a character for each byte
    assert size > 100
    assert last["eval/bits_per_byte"] == pytest.approx(nll / math.log(2) / size, rel=1e-4)
    assert last["eval/loss"] == pytest.approx(nll / float(batch.loss_weights.sum()), rel=1e-4)
