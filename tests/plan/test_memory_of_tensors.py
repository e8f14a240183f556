"""The bytes of tensors by formula, beside what torch's profiler counts in real training steps (benchmarks/plan_memory.py)."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

BENCHMARK = Path(__file__).parents[2] / "benchmarks"
SMALL = {"width": 64, "layers": 3, "length": 256, "vocabulary": 1500, "rows": 6, "qk_norm": True}
POINTS: dict[str, dict[str, Any]] = {
    "plain": {"attention": "blocked"},
    "masks that are numbers": {"attention": "sdpa", "precision": "bf16"},
    "masks in float32, recomputed": {"attention": "sdpa", "checkpointing": "full", "accumulation": 2},
    "Muon": {"attention": "segments", "optimizer": "muon", "kv_heads": 64, "ema": True},
    "experts": {"attention": "blocked", "experts": 4, "shared_experts": 1, "precision": "bf16", "qk_norm": False},
    "pairs": {"attention": "blocked", "kind": "dpo", "rows": 3},
    "checkpoint": {"attention": "blocked", "moment": "saving", "optimizer": "adamw8bit", "width": 128},
}
TRY = """
import json, sys
sys.path.insert(0, sys.argv[1])
from memory_points import Point
from plan_memory import predicted, tensors_here
point = Point(**json.loads(sys.argv[2]))
print(json.dumps({**tensors_here(point), "predicted": predicted(point)["tensors"]}))
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", POINTS)
def test_tensors_take_what_the_formula_says_and_never_much_more(name: str) -> None:
    point = json.dumps(SMALL | POINTS[name])
    done = subprocess.run([sys.executable, "-c", TRY, str(BENCHMARK), point], capture_output=True, text=True, check=True)
    found = json.loads(done.stdout.splitlines()[-1])
    assert -0.05 <= found["predicted"] / found["tensors"] - 1 <= 0.15
