"""How many tokens fledge's default recipe needs to reach the final validation loss of the seed's recipe.

Both train the same 10M decoder on the same ≥ 20 MB of real text (Tang poems, Wikipedia, web pages, plays, word
problems) with the same batch. The seed's recipe (AdamW, 5e-4, cosine, 4 % warm-up, decay 0.1 on everything) reads all
of it once. The default recipe gets `--budget` of those tokens and must reach that loss; where it does so earlier is
read off its evaluations, interpolated. `ratio` is tokens by tokens, a median over seeds. Finished runs in `--out` are
not repeated, so an interrupted benchmark goes on.
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


def recipe(name: str, seed: int, out: Path, quick: bool, length: str, evaluations: int, changes: dict) -> dict:
    """One run; the runs of one seed share tokenizer and data."""
    steps = int(length.split()[0])
    stage = {
        "data": {"train": real_text(quick), "validation": "1%", "max_seq_len": CONTEXT},
        "batch": {"micro_batch_size": ROWS}, "duration": length,
        "evaluation": {"every_steps": max(1, steps // evaluations), "max_packed_rows": 320},
        "checkpoint": {"every_steps": max(1, steps // 4), "keep_last": 1},
    }  # fmt: skip
    model = {**MODEL, "num_hidden_layers": 2} if quick else MODEL
    base = {"name": name, "output": str(out), "seed": seed, "model": model, "stages": {"pretrain": stage}}
    for section, values in changes.items():
        if section in ("model", "machine"):
            base[section] = {**base.get(section, {}), **values}
        else:
            stage[section] = {**stage.get(section, {}), **values}
    return base


def build_data(out: Path, seed: int, quick: bool) -> tuple[Path, int, float]:
    """Build a seed's data once; returns the folder, the tokens of an epoch, and bytes per token of the validation text."""
    folder, file = out / f"data-{seed}", out / f"data-{seed}.yaml"
    file.write_text(yaml.safe_dump(recipe("data", seed, out, quick, "1 steps", 1, {}), allow_unicode=True))
    fledge("data", "build", str(file), "--out", str(folder))
    preparation = Preparation(load_recipe([str(file)]).model_copy(update={"built": str(folder)}), print)
    tokenizer = preparation.tokenizer()
    data = preparation.stage_data("pretrain", tokenizer)
    assert data.validation is not None
    bytes_of = [
        tokenizer.decode([int(token) for token in data.validation.examples.sequence(number)[0]], skip_special=True).encode()
        for number in range(data.validation.examples.count)
    ]
    return folder, data.train.num_tokens, sum(map(len, bytes_of)) / data.validation.num_target_tokens


def run(name: str, seed: int, out: Path, built: Path, quick: bool, steps: int, evaluations: int, changes: dict) -> list:
    """Train, or read what was trained before: (tokens, validation loss) of each evaluation."""
    folder, file = out / name, out / f"{name}.yaml"
    file.write_text(yaml.safe_dump(recipe(name, seed, out, quick, f"{steps} steps", evaluations, changes)))
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


def main() -> None:
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
        curve = run(chosen.name, 1, out, built, chosen.quick, chosen.steps, 2, yaml.safe_load(chosen.trial))
        report({"trial": chosen.trial, "steps": chosen.steps, "curve": curve})
        return
    pairs, results = [], []
    for seed in range(1, (chosen.seeds or (1 if chosen.quick else 3)) + 1):
        built, epoch, bytes_per_token = build_data(out, seed, chosen.quick)
        steps = 40 if chosen.quick else math.floor(epoch / (CONTEXT * ROWS))
        shorter = round(chosen.budget * steps)
        slow = run(f"seed-recipe-{seed}", seed, out, built, chosen.quick, steps, 10, SEED_RECIPE)
        fast = run(f"default-{seed}", seed, out, built, chosen.quick, shorter, 10, {})
        goal = slow[-1][1]
        needed = reached(fast, goal)
        pairs.append(None if needed is None else needed / slow[-1][0])
        results.append(
            {
                "seed": seed,
                "megabytes": round(epoch * bytes_per_token / 1e6, 1),
                "bytes_per_token": round(bytes_per_token, 3),
                "seed_recipe_tokens": slow[-1][0],
                "seed_recipe_bits_per_byte": round(goal / math.log(2) / bytes_per_token, 4),
                "default_tokens": fast[-1][0],
                "default_bits_per_byte": round(fast[-1][1] / math.log(2) / bytes_per_token, 4),
                "default_needed_tokens": needed,
                "curves": {"seed_recipe": slow, "default": fast},
            }
        )
        print(json.dumps(results[-1]), flush=True)
    known = [pair for pair in pairs if pair is not None]
    report(
        {
            "ratio": round(statistics.median(known), 4) if len(known) == len(pairs) else None,
            "range": [round(min(known), 4), round(max(known), 4)] if known else None,
            "seeds": len(pairs),
            "reached": len(known),
            "runs": results,
            "quick": chosen.quick,
        }
    )


if __name__ == "__main__":
    main()
