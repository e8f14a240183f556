"""A mixture of experts against a dense model of equal active parameters.

Speed: one training step (forward, backward, clipping, AdamW) of the 45m-moe preset, 4 experts of 736 of which 2 are
active, against the same decoder with one feed-forward network of 1,472; rows of 512 tokens, 16 of them. Both compute as
the probe decides for the dense model. `ratio` is mixture ÷ dense, round by round.

`--quality`: both kinds trained by `fledge train` on the same real text (Tang poems, Wikipedia, web pages, plays), the
same tokens in the same order, at some 3.5M active parameters, for several seeds. `difference` is the mixture's bits
per byte less the dense model's, a mean with its range; the load of the experts is that of the second half of training.
Finished runs in `--out` are not repeated.
"""

import json
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import yaml
from measure import interleave, options, ratios, report

from fledge.data import PackedData, collect, encode, texts
from fledge.model.cost import parameters
from fledge.model.decoder import Decoder
from fledge.model.experts import Routing
from fledge.objective import LanguageObjective
from fledge.recipe import Recipe, load_recipe, recipe_from_dict
from fledge.run.events import read_events
from fledge.tokenizer import train_tokenizer
from fledge.train.machine import Decision, decide, head_kernel
from fledge.train.optimizer import build_optimizers

DENSE = {"moe": None, "intermediate_size": 2 * 736}
CONTEXT, ROWS = 256, 16  # of the runs for quality
SMALL = {
    "hidden_size": 192, "num_hidden_layers": 6, "num_attention_heads": 6, "num_key_value_heads": 2, "qk_norm": True,
    "max_position_embeddings": CONTEXT,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "moe": {"intermediate_size": 256, "moe": {"experts": 4, "top_k": 2}},
    "dense": {"intermediate_size": 512},
}


def data_folder() -> Path:
    """Where real data lies, if it does."""
    return Path(os.environ.get("FLEDGE_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


# -- speed ----------------------------------------------------------------------------------------------------------


def speed_recipe(rows: int, context: int, layers: int, quick: bool, folder: Path, **model: object) -> Recipe:
    """The 45m-moe preset on real text, or on the quickstart's world where there is none."""
    real = data_folder() / "llamafactory"
    if real.exists():
        train = [str(real / "c4_demo.jsonl")] if quick else [str(real / "wiki_demo.txt"), str(real / "c4_demo.jsonl")]
    else:
        from fledge.world import build

        build(7, folder)
        train = [str(folder / "pretrain.jsonl")]
    stage = {"data": {"train": train, "validation": 0.0, "context": context}, "batch": {"micro": rows, "accumulation": 1},
             "length": "100 steps", "schedule": {"warmup": 5}}  # fmt: skip
    sizes = {"num_hidden_layers": layers, **model}
    return recipe_from_dict({"preset": "45m-moe", "model": sizes, "stages": {"pretrain": stage}})


class Contender:
    """A model and its training step."""

    def __init__(self, recipe: Recipe, data: PackedData, vocab: int, decision: Decision | None = None) -> None:
        stage = recipe.stages["pretrain"]
        self.data, self.micro, self.step = data, stage.batch.micro, 0
        self.model = Decoder(recipe.model, vocab)
        self.model.initialise(0)
        make = lambda kernel: LanguageObjective(0.0, kernel)  # noqa: E731
        self.decision = decision or decide(recipe.machine, self.model, data.batch(0, self.micro), make, 10_000, print)
        self.decision.apply(self.model)
        self.model.train()
        self.objective = LanguageObjective(0.0, head_kernel(self.decision))
        self.optimizers = build_optimizers(self.model, stage.optimizer)
        self.clip = stage.optimizer.clip or math.inf
        self.routing: Routing | None = None

    def __call__(self) -> float:
        started = time.perf_counter()
        batch = self.data.batch(self.step * self.micro, self.micro)
        outcome = self.objective(self.model, batch)
        total = outcome.loss if outcome.auxiliary is None else outcome.loss + outcome.auxiliary
        (total / batch.weight).backward()
        torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.clip)
        for optimizer in self.optimizers:
            optimizer.step()
        self.model.zero_grad(set_to_none=True)
        self.routing = outcome.detached().routing
        self.step += 1
        return time.perf_counter() - started


def speed(quick: bool, rounds: int) -> dict[str, Any]:
    """The step of both, in turns."""
    rows, context, layers = (8, 512, 2) if quick else (16, 512, 8)
    with tempfile.TemporaryDirectory() as name:
        recipe = speed_recipe(rows, context, layers, quick, Path(name))
        dense = speed_recipe(rows, context, layers, quick, Path(name), **DENSE)
        stage = recipe.stages["pretrain"]
        collected = collect(stage, "pretrain", 0)
        tokenizer = train_tokenizer(texts(collected), 6400)
        data = encode(collected, stage, "pretrain", tokenizer, 0).train
    vocab = tokenizer.vocab_size
    one = Contender(dense, data, vocab)
    contenders = {"moe": Contender(recipe, data, vocab, one.decision), "dense": one}
    for run in contenders.values():
        run()
    seconds = interleave(contenders, rounds)
    ratio = ratios(seconds["moe"], seconds["dense"])
    routing = contenders["moe"].routing
    assert routing is not None
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


def sources(quick: bool) -> list[dict[str, Any]]:
    """Real text."""
    data = data_folder()
    if not (data / "poetry").exists():
        raise SystemExit(f"--quality needs real text, and there is none in {data}: set FLEDGE_DATA")
    poems = {"path": str(data / "poetry"), "name": "poems", "columns": {"text": ["title", "author", "paragraphs"]}}
    if quick:
        return [{**poems, "first_rows": 3000}]
    return [
        poems,
        {"path": str(data / "llamafactory" / "wiki_demo.txt")},
        {"path": str(data / "llamafactory" / "c4_demo.jsonl")},
        {"path": str(data / "shakespeare"), "documents": "paragraph"},
    ]


def quality_recipe(kind: str, seed: int, steps: int, quick: bool, balance: str, out: Path) -> tuple[str, Path]:
    """Name and file of one run."""
    sizes = {**SMALL, **KINDS[kind], **({"num_hidden_layers": 2} if quick else {})}
    name = f"{kind}-{seed}"
    if kind == "moe":
        sizes["moe"] = {**sizes["moe"], "balance": balance}
        name = f"moe-{balance}-{seed}"
    stage = {
        "data": {"train": sources(quick), "validation": "1%", "context": CONTEXT},
        "batch": {"micro": ROWS, "accumulation": 1}, "length": f"{steps} steps",
        "optimizer": {"name": "adamw", "lr": 2e-3, "betas": [0.9, 0.95], "weight_decay": 0.1},
        "schedule": {"name": "cosine", "warmup": "4%", "min_lr": 1e-4},
        "evaluation": {"every": max(1, steps // 4), "max_rows": 320}, "checkpoint": {"every": steps, "keep": 1},
    }  # fmt: skip
    tree = {"name": f"{name}-{steps}", "output": str(out), "seed": seed, "model": sizes, "stages": {"pretrain": stage}}
    file = out / f"{name}-{steps}.yaml"
    file.write_text(yaml.safe_dump(tree, allow_unicode=True), encoding="utf-8")
    return tree["name"], file


def fledge(*words: str) -> None:
    """A command of fledge, in a process of its own."""
    subprocess.run([sys.executable, "-m", "fledge.cli", *words], check=True)


def trained(name: str, file: Path, built: Path, out: Path) -> list[dict[str, Any]]:
    """The events of a run, trained now or before."""
    if not (out / name / "summary.json").exists():
        resume = ["--resume"] if (out / name / "recipe.yaml").exists() else []
        fledge("train", str(file), "--built", str(built), "--quiet", *resume)
    return list(read_events(out / name / "pretrain" / "events.jsonl"))


def load_of_second_half(events: list[dict[str, Any]], steps: int) -> dict[str, float]:
    """Load relative to an even one: extremes over layers, experts and steps, and extremes of the means over steps."""
    tables = [event["moe/load"] for event in events if event["kind"] == "step" and event["step"] > steps / 2]
    loads = torch.tensor(tables)  # [steps, L, E]
    means = loads.mean(0)
    values = {"least": loads.min(), "most": loads.max(), "least_on_average": means.min(), "most_on_average": means.max()}
    return {name: round(float(value), 3) for name, value in values.items()}


def pairs(seeds: int, steps: int, quick: bool, balance: str, out: Path) -> Iterator[dict[str, Any]]:
    """Both models for each seed."""
    for seed in range(1, seeds + 1):
        runs = {kind: quality_recipe(kind, seed, steps, quick, balance, out) for kind in KINDS}
        built = out / f"data-{seed}"  # tokenizer and data are the same for both
        fledge("data", "build", str(runs["dense"][1]), "--out", str(built))
        made: dict[str, Any] = {"seed": seed}
        for kind, (name, file) in runs.items():
            events = trained(name, file, built, out)
            last = [event for event in events if event["kind"] == "eval"][-1]
            made[f"{kind}_loss"] = round(last["eval/loss"], 5)
            made[f"{kind}_bits_per_byte"] = round(last["eval/bits_per_byte"], 5)
            made["tokens"] = [event["tokens"] for event in events if event["kind"] == "step"][-1]
            if kind == "moe":
                made["load"] = load_of_second_half(events, steps)
        made["difference"] = round(made["moe_bits_per_byte"] - made["dense_bits_per_byte"], 5)
        print(json.dumps(made), flush=True)
        yield made


def quality(quick: bool, seeds: int, steps: int, balance: str, out: Path) -> dict[str, Any]:
    """Losses of both at equal tokens."""
    out.mkdir(parents=True, exist_ok=True)
    runs = list(pairs(seeds, steps, quick, balance, out))
    differences = [run["difference"] for run in runs]
    counts = {}
    for kind in KINDS:
        count = parameters(load_recipe([str(quality_recipe(kind, 1, steps, quick, balance, out)[1])]).model, 6400)
        counts[kind] = {"total": count.total, "active": count.active}
    return {
        "difference": round(statistics.mean(differences), 5),
        "range": [min(differences), max(differences)],
        "least_load": min(run["load"]["least"] for run in runs),
        "most_load": max(run["load"]["most"] for run in runs),
        "balance": balance,
        "parameters": counts,
        "runs": runs,
        "quick": quick,
    }


def main() -> None:
    parser = options(__doc__ or "")
    parser.add_argument("--rounds", type=int, help="rounds (default 7, with --quick 5)")
    parser.add_argument("--quality", action="store_true", help="losses at equal tokens instead of the time of a step")
    parser.add_argument("--seeds", type=int, help="for --quality: how many (default 3, with --quick 1)")
    parser.add_argument("--steps", type=int, help="for --quality: steps of 4,096 tokens (default 800, with --quick 20)")
    parser.add_argument("--balance", choices=["loss", "bias"], default="loss", help="for --quality")
    parser.add_argument("--out", type=Path, default=Path("runs/moe-quality"), help="for --quality: where runs are kept")
    chosen = parser.parse_args()
    if chosen.quality:
        out = chosen.out / ("quick" if chosen.quick else "full")
        seeds, steps = chosen.seeds or (1 if chosen.quick else 3), chosen.steps or (20 if chosen.quick else 800)
        report(quality(chosen.quick, seeds, steps, chosen.balance, out))
    else:
        report(speed(chosen.quick, chosen.rounds or (5 if chosen.quick else 7)))


if __name__ == "__main__":
    main()
