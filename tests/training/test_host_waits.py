"""Whole updates, evaluation and generation on fake CUDA tensors: no tensor is on the wrong device, and the host waits for the
device exactly where this file says so. No GPU is needed, but a C++ compiler is (`tests/support/fake_cuda`).

A wait costs the time in which the device has nothing to do, so every new one has to be written down here, with its reason.
"""

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tests.support.fake_cuda import scenarios, stub

Waits = dict[str, int]
ROOT = Path(__file__).parents[2]

# Reading the figures of the update before, all in one piece, once for each optimizer step.
FIGURES = {"training/host_copy.py:HostCopy.read: event": 1}
UPDATE = {"step": FIGURES}


def plus(*tables: Waits) -> Waits:
    """The sum of several tables."""
    return dict(sum(map(Counter, tables), Counter[str]()))


def update_with(*more: Waits) -> dict[str, Waits]:
    """The waits of an update that has some more than `UPDATE`."""
    return {"step": plus(FIGURES, *more)}


def with_details() -> dict[str, Waits]:
    """The same for two updates, one that is measured closely and the one after it, which reads those figures."""
    return {"step": FIGURES, "details": plus(FIGURES, FIGURES)}


# All metrics of all batches are read together.
EVALUATION: dict[str, Waits] = {"all of it": {"objective/base.py:read_numbers: tolist": 1}, "four batches": {}}
# Where no kernel reads the lengths of the groups of rows from the device, a layer asks for them once: two layers, two batches.
GROUP_LENGTHS = {"model/grouped_mm.py:place_ends: copy to the host": 4}

# The chosen tokens, and their log-probabilities, are read together, and the next pass begins with them.
TOKENS = {"generation/engine.py:Engine._read: tolist": 1}
GENERATION = dict.fromkeys(("greedy start", "greedy token", "sampled start", "sampled token"), TOKENS)

EXPECTED: dict[str, dict[str, Waits]] = {
    "pretrain": with_details(),
    "pretrain, four micro-batches": UPDATE,
    "pretrain, muon": UPDATE,
    "pretrain, adamw8bit": UPDATE,
    "pretrain, blocked": UPDATE,
    "pretrain, varlen": UPDATE,
    "pretrain, checkpointing": UPDATE,
    "pretrain, checkpointing with dropout": UPDATE,
    "sft": UPDATE,
    "sft, fp16": with_details(),
    "sft, flex": UPDATE,
    "dpo, table": with_details(),
    "dpo, reference model": UPDATE,
    "mixture": with_details(),
    "mixture, fp16": update_with(GROUP_LENGTHS),
    "mixture, biases and shared experts": UPDATE,
    "evaluation": EVALUATION,
    "evaluation, varlen": EVALUATION,
    "evaluation, dpo": EVALUATION,
    "evaluation, mixture": EVALUATION,
    "generation": GENERATION,
    "generation, mixture": GENERATION,
}


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The compiled stub, in a folder that the processes of a parallel test run share."""
    if (reason := stub.missing()) is not None:
        pytest.skip(reason)
    base = tmp_path_factory.getbasetemp()
    folder = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base
    with FileLock(folder / "fake_cuda_stub.lock"):
        return stub.build(folder)


@pytest.fixture(scope="module")
def seen(library: Path) -> dict[str, Any]:
    """What all scenarios showed. The processes of a parallel test run share it."""
    with FileLock(library.with_suffix(".lock")):
        result = library.with_suffix(".json")
        if not result.exists():
            command = [sys.executable, "-m", "tests.support.fake_cuda.scenarios", str(library)]
            done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
            assert done.returncode == 0, done.stderr[-3000:]
            result.write_text(done.stdout.splitlines()[-1])
        return json.loads(result.read_text())


def test_every_scenario_has_its_list() -> None:
    assert list(EXPECTED) == list(scenarios.SCENARIOS)


@pytest.mark.parametrize("scenario", EXPECTED)
def test_the_host_waits_where_the_list_says_so_and_no_device_is_mixed_up(scenario: str, seen: dict[str, Any]) -> None:
    pieces = seen[scenario]
    assert "error" not in pieces, pieces["error"]
    waits = {piece: values["waits"] for piece, values in pieces.items()}
    assert waits == EXPECTED[scenario]
    assert all(values["launches"] > 100 for piece, values in pieces.items() if piece != "four batches")


def test_the_quickstart_measures_a_gpu_with_its_batch_there(library: Path, tmp_path: Path) -> None:
    program = f"""
from pathlib import Path
from tests.support.fake_cuda import stub
stub.load(Path({str(library)!r}))
import torch
stub.pretend((9, 0))
from fledge.autotune.compute_config import ComputeConfig
from fledge.model.decoder import Decoder
from fledge.quickstart import speed
from fledge.recipe import ModelConfig
from tests.support.fake_cuda.watch import watched
model = Decoder(ModelConfig(**speed.MODEL), speed.VOCAB_SIZE)
compute = ComputeConfig(device="cuda", precision="bf16", attention="sdpa", compile=False, threads=1)
speed.MIN_STEPS, speed.MIN_SECONDS = 2, 0.0
with watched() as watch:
    rate = speed.rows_per_second(model, compute)
waits = {{place: n for place, n in watch.waits.items() if "copy to the device" not in place}}  # model and batch, once
assert waits == {{"autotune/benchmark.py:wait_for: synchronize": 3}}, watch.waits  # three steps
print(rate > 0)
"""
    environment = {**os.environ, "FLEDGE_CACHE": str(tmp_path / "cache")}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, env=environment)
    assert done.stdout.strip() == "True", done.stderr[-3000:]


def test_a_tensor_on_the_wrong_device_and_a_hidden_wait_are_found(library: Path) -> None:
    """The tests above can fail: a planted mistake of each kind is seen."""
    program = f"""
import sys
from collections import Counter
from pathlib import Path
from tests.support.fake_cuda import stub
stub.load(Path({str(library)!r}))
import torch
stub.pretend((9, 0))
from tests.support.fake_cuda.watch import watched
with watched() as watch:
    x = torch.ones(4, 4, device="cuda", requires_grad=True)
    y = (x * 2).sum()
    y.backward()
    assert not watch.waits, watch.waits
    found = []
    for plant in (
        lambda: float(y), lambda: bool((x > 0).any()), lambda: x.tolist(), lambda: x.cpu(), lambda: torch.equal(x, x),
        lambda: x[x > 0], lambda: (x > 0).nonzero(), lambda: x[torch.tensor([0])], lambda: torch.tensor([1, 2], device="cuda"),
        lambda: torch.zeros(3).to("cuda", non_blocking=True), torch.cuda.synchronize, lambda: torch.cuda.Event().synchronize(),
    ):
        plant()
        assert sum(watch.waits.values()) == 1, (plant.__code__.co_firstlineno, watch.waits, found)
        found += watch.waits
        watch.waits.clear()
    torch.zeros(3).pin_memory().to("cuda", non_blocking=True)
    torch.empty(4, 4, pin_memory=True).copy_(x.detach(), non_blocking=True)
    assert not watch.waits, watch.waits
    try:
        x + torch.ones(4, 4)
    except Exception as error:
        assert "device" in str(error), error
    else:
        raise AssertionError("two devices in one sum")
print(len(found))
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT)
    assert done.stdout.strip() == "12", done.stderr[-3000:]
