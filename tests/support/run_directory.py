"""The events of a run directory, and the results in which equal runs must agree."""

import json
from pathlib import Path
from typing import Any

from fledge.run import read_events


def events(run: Path, stage: str, *kinds: str) -> list[dict[str, Any]]:
    """The events of these kinds of a stage, in order."""
    return [event for event in read_events(run / stage / "events.jsonl") if event["kind"] in kinds]


def final_results(run: Path, stages: tuple[str, ...] = ("pretrain", "sft", "dpo")) -> dict[str, bytes]:
    """Everything that must be equal: weights, optimizer state, step, eval and stop events, and the best step of every stage."""
    results = {}
    for stage in stages:
        last = run / stage / "checkpoints" / "last"
        (weights,) = (last / "model").glob("*.safetensors")
        results[f"{stage} weights"] = weights.read_bytes()
        results[f"{stage} optimizer"] = (last / "state" / "optimizer.safetensors").read_bytes()
        lines = (run / stage / "events.jsonl").read_bytes().splitlines()
        results[f"{stage} events"] = b"\n".join(x for x in lines if json.loads(x)["kind"] in ("step", "eval", "stop"))
        state = json.loads((last / "state" / "trainer.json").read_text())
        results[f"{stage} best"] = repr((state["best_metric"], state["best_step"], state["evals_since_best"])).encode()
    return results
