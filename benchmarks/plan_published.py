"""How often the planner's ranges hold: hours of published training runs against what it says of their shape and cards.

The runs, their sources and what was inferred stand in tests/plan/published_runs.yaml. Nothing is computed on a GPU here. A run
counts as predicted if its published time lies in the range; `ratio` is the published time ÷ the middle of the range. The last
line is JSON.
"""

import argparse
import json
import statistics
import sys
from pathlib import Path
from typing import Any

import yaml

from fledge.autotune.gpu_paths import gpu_path
from fledge.model.cost import ModelCost
from fledge.plan.devices import find_device
from fledge.plan.stage_forecast import BYTES
from fledge.plan.time import Hardware, Range, seconds_of_exchange, seconds_of_work
from fledge.plan.work import Amounts, stage_work
from fledge.recipe import recipe_from_dict
from fledge.recipe.schema import ModelConfig, Stage

RUNS = Path(__file__).parents[1] / "tests" / "plan" / "published_runs.yaml"
CHECKPOINTED = {"none": 0, "unknown": 0, "selective": 0, "full": 1}
GELU_AS_SWIGLU = 8 / 3  # × width: three matrices of this width have the operations of two of four times the width


def published_seconds(run: dict[str, Any], tokens: float) -> float:
    """Wall-clock seconds for `tokens` tokens."""
    if run.get("tokens_per_second"):
        return tokens / run["tokens_per_second"]
    scale = tokens / run["tokens"]
    return 3600 * scale * (run["hours"] if run.get("hours") else run["gpu_hours"] / (run["count"] or 1))


def model_of(run: dict[str, Any]) -> ModelConfig:
    """The shape of a run as a native decoder of equal cost."""
    width = run["hidden_size"]
    inner = run["intermediate_size"] or (4 * width if run.get("mlp") == "swiglu" else None)
    if run.get("mlp") in ("gelu", "relu2"):
        inner = (run["intermediate_size"] or 4 * width) * 2 / 3
    assert inner is not None
    return ModelConfig(
        hidden_size=width,
        num_hidden_layers=run["num_hidden_layers"],
        num_attention_heads=run["num_attention_heads"],
        num_key_value_heads=run["num_key_value_heads"] or run["num_attention_heads"],
        head_dim=run.get("head_dim"),
        intermediate_size=round(inner / 8) * 8,
        max_position_embeddings=max(run["context"], 16),
        tie_word_embeddings=bool(run["tie_word_embeddings"]),
    )


def stage_of(run: dict[str, Any]) -> Stage:
    """A stage that trains what the run trains."""
    stage: dict[str, Any] = {"kind": "sft", "data": {"train": "x.jsonl"}, "duration": "1 epoch"}
    tuned = {**stage, "adapter": {"r": run.get("lora_rank") or 8}} if run["adapter"] else stage
    return recipe_from_dict({"stages": {"base": stage, "tuned": tuned}}).stages["tuned"]


def predicted(run: dict[str, Any], tokens: float) -> Range:
    """The planner's range for `tokens` tokens of a run, in seconds of all its cards together."""
    device, _ = find_device(run.get("closest") or run["device"])
    precision = run["precision"] if run["precision"] in BYTES else gpu_path(device.capability).precision
    if not device.supports(precision):  # fp16 weights, products as in fp32
        precision = "fp32"
    count, cost = run["count"] or 1, ModelCost(model_of(run), run["vocab_size"])
    per_step = run.get("tokens_per_step") or 0
    updates = max(1, round(tokens / per_step)) if per_step else 1
    micro = run["context"] * run["micro_batch_size"] if run.get("micro_batch_size") else 0
    amounts = Amounts(tokens=round(tokens), target_tokens=round(tokens), positions=round(tokens), updates=updates, epochs=1.0,
                      mean_context=run["context"])  # fmt: skip
    every = CHECKPOINTED[run["activation_checkpointing"]]
    work = stage_work(stage_of(run), cost, amounts, checkpoint_every=every, size=BYTES[precision]).divided(count)
    hardware = Hardware(flops=device.peak(precision), bandwidth=device.bandwidth, link=device.link, count=count)
    launches = run["num_hidden_layers"] * tokens / count / micro if micro else 0.0
    exchange = seconds_of_exchange(hardware, 4.0 * run["parameters"], updates, 1) if not run["adapter"] else Range(0.0, 0.0)
    return seconds_of_work(work, hardware, launches=launches) + exchange


def main() -> None:
    """Compare all runs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--all", action="store_true", help="print every run")
    options = parser.parse_args()
    rows = []
    for run in yaml.safe_load(RUNS.read_text(encoding="utf-8"))["runs"]:
        if run.get("quality") == "doubtful" or run["precision"] == "fp8":
            continue
        tokens = float(run["tokens"] or 1e9)
        seconds, range_ = published_seconds(run, tokens), predicted(run, tokens)
        rows.append((seconds / range_.middle, range_.low <= seconds <= range_.high, seconds, range_, run))
    for ratio, inside, seconds, range_, run in sorted(rows, key=lambda row: row[0]):
        if options.all or not inside:
            hours = f"{seconds / 3600:10.2f} h, {range_.low / 3600:.2f} to {range_.high / 3600:.2f}"
            cards = f"{run['device']} × {run['count']}, {run['precision']}"
            print(f"{ratio:5.2f} {'in ' if inside else 'OUT'} {hours}: {run['name']} ({cards})")
    ratios = [row[0] for row in rows]
    quarters = statistics.quantiles(ratios, n=4)
    result = {
        "runs": len(rows),
        "inside": round(sum(row[1] for row in rows) / len(rows), 3),
        "faster": round(sum(row[2] < row[3].low for row in rows) / len(rows), 3),
        "slower": round(sum(row[2] > row[3].high for row in rows) / len(rows), 3),
        "median_ratio": round(quarters[1], 3),
        "quartiles": [round(quarters[0], 3), round(quarters[2], 3)],
        "median_width": round(statistics.median(row[3].high / row[3].low for row in rows), 2),
    }
    print(json.dumps(result))


if __name__ == "__main__":
    sys.exit(main())
