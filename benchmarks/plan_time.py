"""How right the plan of time is: predicted after a probe of 20 steps against the wall-clock time of whole stages.

Each of twelve recipes (pretraining, SFT, preferences, LoRA, mixtures of experts) is probed as `fledge plan --probe` does it.
Its last stage is then made so long that it should take `--minutes`, and trained by `fledge train`; compared is the time of that
stage from its begin to its end, with its evaluations and checkpoints. The machine should be quiet. The last line is JSON.
"""

import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from measure import options, report

from fledge.forecast.forecast import know_recipe
from fledge.forecast.planning import plan_recipe
from fledge.recipe import recipe_from_dict, to_yaml
from fledge.run import Console, RunDirectory

SEED, WORLD_ROWS, PROBE_STEPS = 7, 6000, 20
MIN_STEPS = 40
SMALL = {"hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 3, "num_key_value_heads": 1}
SMALL |= {"intermediate_size": 512}
MIDDLE = {"hidden_size": 384, "num_hidden_layers": 6, "num_attention_heads": 6}
MIDDLE |= {"num_key_value_heads": 2, "intermediate_size": 1024}
LARGE = {"hidden_size": 512, "num_hidden_layers": 8, "num_attention_heads": 8, "num_key_value_heads": 2}
LARGE |= {"intermediate_size": 1408}
MOE = {"num_experts": 4, "num_experts_per_tok": 2, "num_shared_experts": 1}
BASE = {"kind": "sft", "duration": "20 steps"}
CASES: dict[str, dict[str, Any]] = {
    "pretrain 2M": {"model": SMALL, "stages": {"x": {"kind": "pretrain"}}},
    "pretrain 11M": {"model": MIDDLE, "stages": {"x": {"kind": "pretrain"}}},
    "pretrain 26M": {"model": LARGE, "stages": {"x": {"kind": "pretrain"}}},
    "pretrain 11M fp32": {"model": MIDDLE, "runtime": {"precision": "fp32"}, "stages": {"x": {"kind": "pretrain"}}},
    "pretrain MoE, width 192": {"model": {**SMALL, "moe": MOE}, "stages": {"x": {"kind": "pretrain"}}},
    "pretrain MoE, width 384": {"model": {**MIDDLE, "moe": MOE}, "stages": {"x": {"kind": "pretrain"}}},
    "sft 2M": {"model": SMALL, "stages": {"x": {"kind": "sft"}}},
    "sft 11M, checkpointing": {
        "model": MIDDLE, "runtime": {"activation_checkpointing": "full"}, "stages": {"x": {"kind": "sft"}},
    },
    "dpo 2M": {"model": SMALL, "stages": {"base": BASE, "x": {"kind": "preference"}}},
    "dpo 11M, reference kept": {
        "model": MIDDLE,
        "stages": {"base": BASE, "x": {"kind": "preference", "precompute_ref_log_probs": False}},
    },
    "LoRA 11M": {"model": MIDDLE, "stages": {"base": BASE, "x": {"kind": "sft", "adapter": {"r": 16}}}},
    "LoRA 26M": {"model": LARGE, "stages": {"base": BASE, "x": {"kind": "sft", "adapter": {"r": 16}}}},
}  # fmt: skip
FILES = {"pretrain": "pretrain", "sft": "sft", "preference": "preference"}


def recipe_of(case: str, world: Path, output: Path, duration: str) -> dict[str, Any]:
    """The recipe of a case whose stage `x` has a duration."""
    values = CASES[case]
    stages = {}
    for name, stage in values["stages"].items():
        file = FILES[stage["kind"]]
        train, validation = (str(world / f"{file}{part}.jsonl") for part in ("", ".validation"))
        data = {"train": train, "validation": validation, "max_seq_len": 256}
        own = {"duration": duration, "batch": {"micro_batch_size": 8}, "schedule": {"warmup": 0.0}}
        stages[name] = {**own, **stage, "data": data}
    return {"name": "run", "output": str(output), "seed": SEED, "tokenizer": {"vocab_size": 2048}, "generation_samples": {},
            "runtime": values.get("runtime", {}), "model": values["model"], "stages": stages}  # fmt: skip


def run_case(case: str, world: Path, folder: Path, minutes: float) -> dict[str, Any]:
    """Predicted and measured seconds of a case."""
    draft = recipe_from_dict(recipe_of(case, world, folder, "4000 steps"))
    first = plan_recipe(draft, Console(quiet=True), folder, probe_steps=PROBE_STEPS)
    assert first.probe is not None
    step = first.probe.stages["x"].step
    steps = max(MIN_STEPS, round(60 * minutes / step))
    recipe = recipe_from_dict(recipe_of(case, world, folder, f"{steps} steps"))
    forecast = know_recipe(recipe, Console(quiet=True)).forecast(first.targets, probe=first.probe)
    time = forecast.stages[-1].devices[0].time
    assert time is not None
    (folder / "run.yaml").write_text(to_yaml(recipe), encoding="utf-8")
    command = [sys.executable, "-m", "fledge.cli", "train", str(folder / "run.yaml"), "--quiet"]
    subprocess.run(command, check=True, env=dict(os.environ), stdout=subprocess.DEVNULL)
    result = RunDirectory(folder / "run").stage("x").result() or {}
    measured, predicted = result["wall_seconds"], time.total.middle
    return {"case": case, "steps": steps, "predicted": round(predicted, 1), "measured": round(measured, 1),
            "error": round(predicted / measured - 1, 4)}  # fmt: skip


def main() -> None:
    """Run the cases one after another."""
    parser = options(__doc__ or "")
    parser.add_argument("--minutes", type=float, default=3.2, help="time that a stage should take")
    parser.add_argument("--only", action="append", default=[], help="part of the name of a case")
    chosen = parser.parse_args()
    minutes, names = chosen.minutes, [name for name in CASES if not chosen.only or any(part in name for part in chosen.only)]
    if chosen.quick:
        minutes, names = 0.1, ["pretrain 2M"]
    rows = []
    with tempfile.TemporaryDirectory() as base:
        world = Path(base) / "world"
        make = ["data", "make", "world", "--out", str(world), "--rows", str(WORLD_ROWS), "--seed", str(SEED)]
        subprocess.run([sys.executable, "-m", "fledge.cli", *make], check=True, stdout=subprocess.DEVNULL)
        for name in names:
            folder = Path(base) / name.replace(" ", "-").replace(",", "")
            folder.mkdir()
            rows.append(run_case(name, world, folder, minutes))
            print(json.dumps(rows[-1]), flush=True)
    errors = [abs(row["error"]) for row in rows]
    report({"stages": len(rows), "median_error": round(statistics.median(errors), 4), "largest_error": max(errors),
            "shortest_seconds": min(row["measured"] for row in rows)})  # fmt: skip


if __name__ == "__main__":
    main()
