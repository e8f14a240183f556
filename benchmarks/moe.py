"""Speed and loss of a mixture of experts against a dense model of equal active parameters.

Speed: one training step (forward, backward, clipping, optimizers) of the 45m-moe preset, 4 experts of 736 of which 2 are
active, against a decoder with one feed-forward network of 1,472; 16 rows of 512 tokens. Both compute as
the probe decides for the dense model. `ratio` is mixture ÷ dense, round by round.

`--quality`: both kinds are trained by `fledge train` on real text (poems, Wikipedia, web pages, plays, word problems) with
equal tokens in equal order, about 3.5M active parameters, several seeds, and the default optimizer and schedule. `difference`
is the mixture's bits per byte less the dense model's, a mean with its range; the load of the experts is measured in the
second half of training. Finished runs in `--out` are not repeated.
"""

import json
import statistics
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from measure import interleave, options, ratios, report
from real_runs import fledge, real_text, trained
from training import Training, fresh, packed, web_text

from fledge.model.cost import parameters
from fledge.recipe import Recipe, load_recipe, recipe_from_dict

DENSE = {"moe": None, "intermediate_size": 2 * 736}
CONTEXT, ROWS = 256, 16  # of the runs for quality
SMALL = {
    "hidden_size": 192, "num_hidden_layers": 6, "num_attention_heads": 6, "num_key_value_heads": 2, "qk_norm": True,
    "max_position_embeddings": CONTEXT,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "moe": {"intermediate_size": 256, "moe": {"num_experts": 4, "num_experts_per_tok": 2}},
    "dense": {"intermediate_size": 512},
}


# -- speed ----------------------------------------------------------------------------------------------------------


def speed_recipe(rows: int, context: int, layers: int, quick: bool, folder: Path, **model: object) -> Recipe:
    """The 45m-moe preset on real text, or on the quickstart's world where there is none."""
    stage = {"data": {"train": web_text(quick, folder), "validation": 0.0, "max_seq_len": context}, "duration": "100 steps",
             "batch": {"micro_batch_size": rows, "gradient_accumulation_steps": 1}, "schedule": {"warmup": 5}}  # fmt: skip
    sizes = {"num_hidden_layers": layers, **model}
    return recipe_from_dict({"preset": "45m-moe", "model": sizes, "stages": {"pretrain": stage}})


def speed(quick: bool, rounds: int) -> dict[str, Any]:
    """Time the training step of both models in turns."""
    rows, context, layers = (8, 512, 2) if quick else (16, 512, 8)
    with tempfile.TemporaryDirectory() as name:
        recipe = speed_recipe(rows, context, layers, quick, Path(name))
        dense = speed_recipe(rows, context, layers, quick, Path(name), **DENSE)
        data, tokenizer = packed(recipe, "pretrain")
    vocab = tokenizer.vocab_size
    one = Training(dense, "pretrain", data, fresh(dense, vocab))
    contenders = {"moe": Training(recipe, "pretrain", data, fresh(recipe, vocab), one.decision), "dense": one}
    for run in contenders.values():
        run()
    seconds = interleave(contenders, rounds)
    ratio = ratios(seconds["moe"], seconds["dense"])
    for run in contenders.values():
        run.loader.close()
    last = contenders["moe"].last
    assert last is not None and last.router_stats is not None
    routing = last.router_stats
    relative = routing.load * routing.load.shape[1]
    counts = {name: parameters(run.model.config, vocab) for name, run in contenders.items()}
    return {
        "ratio": ratio["median"],
        "range": ratio,
        "ratio_of_fastest": round(min(seconds["moe"]) / min(seconds["dense"]), 3),
        "tokens_per_second": {name: round(rows * context / statistics.median(spent)) for name, spent in seconds.items()},
        "parameters": {name: {"total": count.total, "active": count.active} for name, count in counts.items()},
        "load": {"least": round(float(relative.min()), 3), "most": round(float(relative.max()), 3)},
        "batch": [rows, context],
        "decision": one.decision.as_dict(),
        "quick": quick,
    }


# -- quality --------------------------------------------------------------------------------------------------------


def quality_recipe(kind: str, seed: int, steps: int, quick: bool, balance: str, out: Path) -> tuple[str, Path]:
    """Write the recipe of one run: its name and its file."""
    sizes = {**SMALL, **KINDS[kind], **({"num_hidden_layers": 2} if quick else {})}
    name = f"{kind}-{seed}"
    if kind == "moe":
        sizes["moe"] = {**sizes["moe"], "load_balancing": balance}
        name = f"moe-{balance}-{seed}"
    stage = {
        "data": {"train": real_text(quick), "validation": "1%", "max_seq_len": CONTEXT},
        "batch": {"micro_batch_size": ROWS, "gradient_accumulation_steps": 1},
        "duration": f"{steps} steps",
        "evaluation": {"every_steps": max(1, steps // 4), "max_packed_rows": 320},
        "checkpoint": {"every_steps": steps, "keep_last": 1},
    }
    tree = {"name": f"{name}-{steps}", "output": str(out), "seed": seed, "model": sizes, "stages": {"pretrain": stage}}
    file = out / f"{name}-{steps}.yaml"
    file.write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
    return tree["name"], file


def load_of_second_half(events: list[dict[str, Any]], steps: int) -> dict[str, float]:
    """The load of experts relative to an even load, in the second half of training.

    Extremes over layers, experts and steps; extremes of the means over steps; the share of single values outside 0.5 … 2.
    """
    tables = [event["router/load"] for event in events if event["kind"] == "step" and event["step"] > steps / 2]
    loads = torch.tensor(tables)  # [steps, L, E]
    means = loads.mean(0)
    outside = ((loads < 0.5) | (loads > 2)).float().mean()
    values = {"least": loads.min(), "most": loads.max(), "least_on_average": means.min(), "most_on_average": means.max(),
              "outside": outside}  # fmt: skip
    return {name: round(float(value), 5) for name, value in values.items()}


def pairs(seeds: int, steps: int, quick: bool, balance: str, out: Path) -> Iterator[dict[str, Any]]:
    """Train both models for each seed: losses, bits per byte and load of the experts."""
    for seed in range(1, seeds + 1):
        runs = {kind: quality_recipe(kind, seed, steps=steps, quick=quick, balance=balance, out=out) for kind in KINDS}
        built = out / f"data-{seed}"  # both models share tokenizer and data
        fledge("data", "build", str(runs["dense"][1]), "--out", str(built))
        results: dict[str, Any] = {"seed": seed}
        for kind, (name, file) in runs.items():
            events = trained(file, out / name, built)
            last = [event for event in events if event["kind"] == "eval"][-1]
            results[f"{kind}_loss"] = round(last["eval/loss"], 5)
            results[f"{kind}_bits_per_byte"] = round(last["eval/bits_per_byte"], 5)
            results["tokens"] = [event["train/tokens"] for event in events if event["kind"] == "step"][-1]
            if kind == "moe":
                results["load"] = load_of_second_half(events, steps)
        results["difference"] = round(results["moe_bits_per_byte"] - results["dense_bits_per_byte"], 5)
        print(json.dumps(results), flush=True)
        yield results


def quality(quick: bool, seeds: int, steps: int, balance: str, out: Path) -> dict[str, Any]:
    """Compare the losses of both models after equal numbers of tokens."""
    out.mkdir(parents=True, exist_ok=True)
    runs = list(pairs(seeds, steps, quick, balance, out))
    differences = [run["difference"] for run in runs]
    counts = {}
    for kind in KINDS:
        _, file = quality_recipe(kind, 1, steps=steps, quick=quick, balance=balance, out=out)
        count = parameters(load_recipe([str(file)]).model, 6400)
        counts[kind] = {"total": count.total, "active": count.active}
    return {
        "difference": round(statistics.mean(differences), 5),
        "range": [min(differences), max(differences)],
        "least_load": min(run["load"]["least"] for run in runs),
        "most_load": max(run["load"]["most"] for run in runs),
        "load_outside": round(statistics.mean(run["load"]["outside"] for run in runs), 5),
        "balance": balance,
        "parameters": counts,
        "runs": runs,
        "quick": quick,
    }


def main() -> None:
    """Measure and print the results as one line of JSON."""
    parser = options(__doc__ or "")
    parser.add_argument("--rounds", type=int, help="rounds (default 7, with --quick 5)")
    parser.add_argument("--quality", action="store_true", help="losses at equal tokens instead of the time of a step")
    parser.add_argument("--seeds", type=int, help="for --quality: how many (default 3, with --quick 1)")
    parser.add_argument("--steps", type=int, help="for --quality: steps of 4,096 tokens (default 600, with --quick 20)")
    parser.add_argument("--balance", choices=["aux_loss", "bias"], default="aux_loss", help="for --quality")
    parser.add_argument("--out", type=Path, default=Path("runs/moe-quality"), help="for --quality: where runs are kept")
    chosen = parser.parse_args()
    if chosen.quality:
        out = chosen.out / ("quick" if chosen.quick else "full")
        seeds, steps = chosen.seeds or (1 if chosen.quick else 3), chosen.steps or (20 if chosen.quick else 600)
        report(quality(chosen.quick, seeds, steps, chosen.balance, out))
    else:
        report(speed(chosen.quick, chosen.rounds or (5 if chosen.quick else 7)))


if __name__ == "__main__":
    main()
