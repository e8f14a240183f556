"""Four small runs whose weights and curves are recorded: dense, mixture of experts, two processes, the quickstart's beginning.

`python -m tests.golden.runs` records them anew in expected.json. That is right only after a change that is meant to change
numbers, and its commit says why.
"""

import hashlib
import json
import platform
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open

from fledge.pipeline import Pipeline
from fledge.quickstart import Budget, make_recipe
from fledge.recipe import recipe_from_dict
from fledge.run import Console, read_events
from fledge.world import Sizes, build
from tests.support import tiny_run
from tests.support.command import fledge

EXPECTED = Path(__file__).with_name("expected.json")
STAGES = ("pretrain", "sft", "dpo")
QUIET = Console(quiet=True)


def arithmetic() -> str:
    """The processor and PyTorch's build, which decide the last bits of a sum."""
    names = [line.partition(":")[2].strip() for line in _cpuinfo() if line.startswith(("model name", "flags"))][:2]
    flags = hashlib.sha256(" ".join(names).encode()).hexdigest()[:16]
    return f"torch {torch.__version__}, {platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, {flags}"


def _cpuinfo() -> list[str]:
    file = Path("/proc/cpuinfo")
    return file.read_text().splitlines() if file.exists() else [f"model name: {platform.processor()}"]


def dense(folder: Path) -> dict[str, Any]:
    """Pretraining, SFT and DPO of a dense model, with dropout and accumulation."""
    run = Pipeline(tiny_run.recipe(folder / "world", folder / "runs"), QUIET).run()
    return {stage: record(run / stage) for stage in STAGES}


def mixture(folder: Path) -> dict[str, Any]:
    """The three stages with a mixture of experts."""
    tree = tiny_run.tree(folder / "world", folder / "runs")
    tree["model"] = {**tiny_run.MODEL, "qk_norm": True, "moe": {"num_experts": 4, "num_experts_per_tok": 2}}
    run = Pipeline(recipe_from_dict(tree), QUIET).run()
    return {stage: record(run / stage) for stage in STAGES}


def two_processes(folder: Path) -> dict[str, Any]:
    """Preferences, pretraining, SFT in two processes (DDP), as the command starts them: another order of stages, too."""
    tree = tiny_run.tree(folder / "world", folder / "runs", model={**tiny_run.MODEL, "dropout": 0.0})
    for stage in tree["stages"].values():
        stage |= {"batch": {"micro_batch_size": 3, "gradient_accumulation_steps": 2}, "duration": "8 steps"}
        stage["optimizer"] = {"name": "adamw", "learning_rate": 1e-3, "betas": [0.9, 0.95], "weight_decay": 0.1}
    file = tiny_run.write(folder / "recipe.yaml", {**tree, "stages": dict(sorted(tree["stages"].items()))})
    fledge("train", file, "--quiet", "--processes", "2").check_returncode()
    return {stage: record(folder / "runs" / "tiny" / stage) for stage in STAGES}


def quickstart(folder: Path) -> dict[str, Any]:
    """The first 50 steps of the quickstart's pretraining, in fp32 on one thread."""
    build(7, folder / "world", Sizes(pretrain=4000, sft=4000))
    recipe = make_recipe(
        folder / "world", "q", str(folder / "runs"), 7, Budget(minutes=1.0, rows_per_second=50 * 8 / 60 / 0.24)
    )
    tree = recipe.model_dump(mode="json")
    tree["stages"] = {"pretrain": tree["stages"]["pretrain"]}
    tree["runtime"] |= {"threads": 1, "compile": False, "precision": "fp32", "attention": "sdpa"}
    return {"pretrain": record(Pipeline(recipe_from_dict(tree), QUIET).run() / "pretrain")}


RUNS: dict[str, Callable[[Path], dict[str, Any]]] = {
    "dense": dense, "moe": mixture, "two processes": two_processes, "quickstart": quickstart,
}  # fmt: skip


def record(stage: Path) -> dict[str, Any]:
    """Hashes of the last weights and optimizer state of a stage, and the figures of every step and evaluation."""
    events = list(read_events(stage / "events.jsonl"))
    steps = [event for event in events if event["kind"] == "step"]
    keys = ("step", "train/loss", "train/lr", "train/grad_norm", "train/tokens")
    last = stage / "checkpoints" / "last"
    values = {
        "weights": tensor_hash(last / "model" / "model.safetensors", named=True),
        "optimizer": tensor_hash(last / "state" / "optimizer.safetensors", named=False),
        "steps": [[event[key] for key in keys] for event in steps],
        "evals": [[event["step"], event["eval/loss"]] for event in events if event["kind"] == "eval"],
    }
    margins = [event["train/rewards/margins"] for event in steps if "train/rewards/margins" in event]
    return {**values, "margins": margins} if margins else values


def tensor_hash(file: Path, named: bool) -> str:
    """SHA-256 over the bytes of every tensor of a file, with or without its name."""
    marks = []
    with safe_open(file, framework="pt") as tensors:
        for name in sorted(tensors.keys()):
            value = tensors.get_tensor(name).contiguous().reshape(-1)
            shape = tuple(tensors.get_slice(name).get_shape())
            digest = hashlib.sha256(value.view(torch.uint8).numpy().tobytes()).hexdigest()
            marks.append(f"{name} {shape} {digest}" if named else f"{shape} {digest}")
    return hashlib.sha256("\n".join(sorted(marks)).encode()).hexdigest()


def main() -> None:
    """Record all runs."""
    results = {}
    for name, run in RUNS.items():
        with tempfile.TemporaryDirectory() as folder:
            results[name] = run(Path(folder))
    EXPECTED.write_text(json.dumps({"arithmetic": arithmetic(), "runs": results}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
