"""Tokens that fledge's default recipe needs to reach the final validation loss of the seed's recipe.

Both recipes train a 10M decoder on at least 20 MB of real text (Tang poems, Wikipedia, web pages, plays, word problems)
with equal batches. The seed's recipe (AdamW, 5e-4, cosine, 4 % warm-up, decay 0.1 on everything) reads the text once. The
default recipe gets the share `--budget` of these tokens; the number of tokens at which it reaches the loss is interpolated
between its evaluations. `ratio` is the quotient of the tokens, a median over seeds. Finished runs in `--out` are not
repeated, so an interrupted benchmark continues.
"""

import json
import math
import statistics
from pathlib import Path

import yaml
from measure import options, report
from real_runs import fledge, real_text, trained

from fledge.prepare import Preparation
from fledge.recipe import load_recipe

CONTEXT, ROWS = 256, 32
MODEL = {
    "hidden_size": 320, "num_hidden_layers": 8, "num_attention_heads": 5, "num_key_value_heads": 1,
    "intermediate_size": 768, "max_position_embeddings": CONTEXT,
}  # fmt: skip
SEED_RECIPE = {
    "optimizer": {"name": "adamw", "learning_rate": 5e-4, "weight_decay": 0.1, "weight_decay_on": "everything"},
    "schedule": {"name": "cosine", "warmup": "4%"},
}


def recipe(name: str, seed: int, out: Path, *, quick: bool, steps: int, evaluations: int, changes: dict) -> dict:
    """The recipe of one run; the runs of one seed share tokenizer and data."""
    stage = {
        "data": {"train": real_text(quick), "validation": "1%", "max_seq_len": CONTEXT},
        "batch": {"micro_batch_size": ROWS}, "duration": f"{steps} steps",
        "evaluation": {"every_steps": max(1, steps // evaluations), "max_packed_rows": 320},
        "checkpoint": {"every_steps": max(1, steps // 4), "keep_last": 1},
    }  # fmt: skip
    model = {**MODEL, "num_hidden_layers": 2} if quick else MODEL
    base = {"name": name, "output": str(out), "seed": seed, "model": model, "stages": {"pretrain": stage}}
    for section, values in changes.items():
        if section in ("model", "runtime"):
            base[section] = {**base.get(section, {}), **values}
        else:
            stage[section] = {**stage.get(section, {}), **values}
    return base


def build_data(out: Path, seed: int, quick: bool) -> tuple[Path, int, float]:
    """Build a seed's data once; returns the folder, the tokens of an epoch, and bytes per token of the validation text."""
    folder, file = out / f"data-{seed}", out / f"data-{seed}.yaml"
    file.write_text(
        yaml.safe_dump(recipe("data", seed, out, quick=quick, steps=1, evaluations=1, changes={}), allow_unicode=True)
    )
    fledge("data", "build", str(file), "--out", str(folder))
    preparation = Preparation(load_recipe([str(file)]).model_copy(update={"built_dataset": str(folder)}), print)
    tokenizer = preparation.tokenizer()
    data = preparation.stage_data("pretrain", tokenizer)
    assert data.validation is not None
    bytes_of = [
        tokenizer.decode([int(token) for token in data.validation.examples.sequence(number)[0]], skip_special=True).encode()
        for number in range(data.validation.examples.count)
    ]
    return folder, data.train.num_tokens, sum(map(len, bytes_of)) / data.validation.num_target_tokens


def run(
    name: str, seed: int, out: Path, built: Path, *, quick: bool, steps: int, changes: dict, evaluations: int = 10
) -> list[tuple[int, float]]:
    """Train, or read a finished run: (tokens, validation loss) of each evaluation."""
    folder, file = out / name, out / f"{name}.yaml"
    tree = recipe(name, seed, out, quick=quick, steps=steps, evaluations=evaluations, changes=changes)
    file.write_text(yaml.safe_dump(tree))
    tokens, curve = 0, []
    for event in trained(file, folder, built):
        if event["kind"] == "step":
            tokens = event["train/tokens"]
        elif event["kind"] == "eval":
            curve.append((tokens, event["eval/loss"]))
    return curve


def reached(curve: list, loss: float) -> float | None:
    """Tokens at which a curve first comes down to a loss, interpolated between its evaluations."""
    before = None
    for tokens, value in curve:
        if value <= loss:
            if before is None or before[1] <= value:
                return float(tokens)
            share = (before[1] - loss) / (before[1] - value)
            return before[0] + share * (tokens - before[0])
        before = (tokens, value)
    return None


def compare(seed: int, out: Path, quick: bool, budget: float) -> dict:
    """Train both recipes with one seed: `ratio` is the default's tokens to the final loss ÷ the tokens of the seed's recipe."""
    built, epoch, bytes_per_token = build_data(out, seed, quick)
    steps = 40 if quick else math.floor(epoch / (CONTEXT * ROWS))
    slow = run(f"seed-recipe-{seed}", seed, out, built, quick=quick, steps=steps, changes=SEED_RECIPE)
    fast = run(f"default-{seed}", seed, out, built, quick=quick, steps=round(budget * steps), changes={})
    (slow_tokens, final_loss), (fast_tokens, fast_loss) = slow[-1], fast[-1]
    needed = reached(fast, final_loss)
    return {
        "seed": seed,
        "ratio": None if needed is None else needed / slow_tokens,
        "megabytes": round(epoch * bytes_per_token / 1e6, 1),
        "bytes_per_token": round(bytes_per_token, 3),
        "seed_recipe_tokens": slow_tokens,
        "seed_recipe_bits_per_byte": round(final_loss / math.log(2) / bytes_per_token, 4),
        "default_tokens": fast_tokens,
        "default_bits_per_byte": round(fast_loss / math.log(2) / bytes_per_token, 4),
        "default_needed_tokens": needed,
        "curves": {"seed_recipe": slow, "default": fast},
    }


def main() -> None:
    """Measure and print the results as one line of JSON."""
    parser = options(__doc__ or "")
    parser.add_argument("--out", type=Path, default=Path("runs/loss-for-compute"), help="where runs are kept")
    parser.add_argument("--seeds", type=int, help="how many (default 3, with --quick 1)")
    parser.add_argument("--budget", type=float, default=0.5, help="share of the seed's tokens that the default recipe gets")
    parser.add_argument("--try", dest="trial", help="YAML of changes to the default recipe, tried alone with --steps")
    parser.add_argument("--steps", type=int, help="steps of a trial")
    parser.add_argument("--name", help="name of a trial")
    chosen = parser.parse_args()
    out: Path = chosen.out / ("quick" if chosen.quick else "full")
    out.mkdir(parents=True, exist_ok=True)
    if chosen.trial is not None:
        built, _, _ = build_data(out, 1, chosen.quick)
        changes = yaml.safe_load(chosen.trial)
        curve = run(chosen.name, 1, out, built, quick=chosen.quick, steps=chosen.steps, changes=changes, evaluations=2)
        report({"trial": chosen.trial, "steps": chosen.steps, "curve": curve})
        return
    results = []
    for seed in range(1, (chosen.seeds or (1 if chosen.quick else 3)) + 1):
        results.append(compare(seed, out, chosen.quick, chosen.budget))
        print(json.dumps(results[-1]), flush=True)
    ratios = [one["ratio"] for one in results]
    known = [ratio for ratio in ratios if ratio is not None]
    report(
        {
            "ratio": round(statistics.median(known), 4) if len(known) == len(ratios) else None,
            "range": [round(min(known), 4), round(max(known), 4)] if known else None,
            "seeds": len(ratios),
            "reached": len(known),
            "runs": results,
            "quick": chosen.quick,
        }
    )


if __name__ == "__main__":
    main()
