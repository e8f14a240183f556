"""Two users' runs, rebuilt on a small scale: what the doctor says, and what paired runs say of its changes and of theirs.

`t5`: a ChatLM-mini-Chinese (a T5) whose fine-tuning does not change it, with the AdamW that its user's document supposes; and
`t5-adafactor`: with the optimizer that the published code of its trainer has, an Adafactor with a rate of its own. `parrot`: a
small decoder that repeats its input after two epochs without warm-up. Whole stages, three pairs of runs of each change, six
where three cannot tell. Needs the folder of real data. What is done is kept in the folder of `--out`: the same command goes on.
Prints a table for each run.
"""

import json
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import yaml
from measure import data_folder, options, report
from real_runs import fledge

from fledge.doctor import Examination, examine
from fledge.doctor.prove import Proof, prove_steps
from fledge.doctor.schemes import schemes
from fledge.run import Console

Patch = dict[str, Any]
RATE, WARMUP, DIVISOR, ROWS = "optimizer.learning_rate", "schedule.warmup", "schedule.div_factor", "batch.micro_batch_size"
MINUTES = 600.0  # of a proof: enough for whole stages
RUNTIME = {"precision": "fp32", "compile": False, "attention": "sdpa", "threads": 1, "device": "cpu"}


@dataclass(frozen=True, kw_only=True)
class UserRun:
    """A run as its user described it. `stages`: of the recipe, from the folder of rows. `examined`: the stage that is asked
    about. `changes`: what the user would have changed, name → patches, each tried against what helped before it."""

    sections: Callable[[Path], dict[str, Any]]
    stages: Callable[[Path], dict[str, Any]]
    examined: str
    changes: dict[str, Sequence[Patch]] = field(default_factory=dict)


# -- rows ----------------------------------------------------------------------------------------------------------------


def _pairs(name: str) -> Iterator[dict[str, str]]:
    """The questions and answers of one of ChatLM's files."""
    from pyarrow import parquet

    yield from parquet.read_table(data_folder() / "chatlm" / f"my_{name}.parquet").to_pylist()


def _write(file: Path, rows: Sequence[dict[str, Any]]) -> None:
    file.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")


def write_rows(folder: Path) -> Path:
    """The rows of all runs: what is trained first, the pairs of fine-tuning, texts of which half stand there four times, and
    held-out ones of each kind."""
    rows = folder / "rows"
    rows.mkdir(parents=True, exist_ok=True)
    _write(rows / "first.jsonl", list(_pairs("train_dataset_3k")))
    tuned = json.loads((data_folder() / "llamafactory" / "alpaca_zh_demo.json").read_text(encoding="utf-8"))
    _write(rows / "tuned.jsonl", tuned[:320])
    _write(rows / "tuned.held-out.jsonl", tuned[320:416])
    texts = [{"text": pair["response"]} for pair in _pairs("test_dataset_2k") if len(pair["response"]) >= 60]
    once, often, held_out = texts[:200], texts[200:400], texts[400:496]
    _write(rows / "texts.jsonl", [*once, *often * 4])
    _write(rows / "texts.held-out.jsonl", held_out)
    return rows


# -- a T5 that fine-tuning does not change -------------------------------------------------------------------------------


def _t5(folder: Path) -> dict[str, Any]:
    """A T5 in the shape of ChatLM-mini-Chinese, scaled down to 0.9M parameters."""
    shape = folder / "t5"
    shape.mkdir(exist_ok=True)
    config = {
        "model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "is_encoder_decoder": True, "vocab_size": 4000,
        "d_model": 96, "d_kv": 24, "d_ff": 384, "num_layers": 2, "num_decoder_layers": 2, "num_heads": 4, "n_positions": 512,
        "feed_forward_proj": "relu", "dropout_rate": 0.1,
    }  # fmt: skip
    (shape / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return {"model": {"config": str(shape)}, "tokenizer": {"vocab_size": 4000}}


def _t5_stages(optimizer: dict[str, Any], schedule: dict[str, Any]) -> Callable[[Path], dict[str, Any]]:
    """What the user's model had learned before, and his fine-tuning: 5 epochs, 2,085 updates there and some 160 here."""

    def stages(rows: Path) -> dict[str, Any]:
        length = {"max_seq_len": 256}
        first = {
            "kind": "sft", "data": {"train": str(rows / "first.jsonl"), "validation": "2%", **length},
            "batch": {"micro_batch_size": 6}, "duration": "4 epochs",
            "optimizer": {"name": "adafactor", "learning_rate": 1e-2},
        }  # fmt: skip
        tuned = {
            "kind": "sft",
            "data": {"train": str(rows / "tuned.jsonl"), "validation": str(rows / "tuned.held-out.jsonl"), **length},
            "batch": {"micro_batch_size": 6}, "duration": "5 epochs", "optimizer": optimizer, "schedule": schedule,
        }  # fmt: skip
        return {"first": first, "sft": tuned}

    return stages


USERS_SCHEMES: dict[str, Sequence[Patch]] = {
    "the user's scheme A": [{RATE: 5e-5, DIVISOR: 25.0, WARMUP: 0.036, ROWS: 3, "duration": "10 epochs"}],
    "the user's scheme B": [{RATE: 3e-5, DIVISOR: 40.0, WARMUP: 0.05, ROWS: 5, "duration": "8 epochs"}],
    "the user's scheme C, its steps": [{RATE: 3e-5, WARMUP: 0.06, "duration": "8 epochs"}, {ROWS: 3}, {RATE: 5e-5}],
    "twice the epochs alone": [{"duration": "10 epochs"}],
    "the user's rate alone": [{RATE: 5e-5}],
    "half the batch alone": [{ROWS: 3}],
    "three times the warm-up alone": [{WARMUP: 0.144}],
}
"""Of batches of 192, 96 and 160 rows there: 6, 3 and 5 packed rows here. Shares of the warm-up are those of the document."""

T5 = UserRun(
    sections=_t5, examined="sft", changes=USERS_SCHEMES,
    stages=_t5_stages({"learning_rate": 1e-5}, {"name": "onecycle", "warmup": 0.048, "div_factor": 50.0}),
)  # fmt: skip
T5_ADAFACTOR = UserRun(
    sections=_t5, examined="sft",
    stages=_t5_stages({"name": "adafactor", "learning_rate": 1e-2}, {"name": "constant", "warmup": 0}),
    changes={
        "the user's scheme A: half the batch and 10 epochs": [{ROWS: 3, "duration": "10 epochs"}],
        "the user's scheme B: 5/6 of the batch and 8 epochs": [{ROWS: 5, "duration": "8 epochs"}],
        "half the batch alone": [{ROWS: 3}],
        "twice the epochs alone": [{"duration": "10 epochs"}],
        "a tenth of its rate": [{RATE: 1e-3}],
        "its rate, falling": [{"schedule.name": "linear", WARMUP: 0.05}],
    },
)  # fmt: skip
"""The rate of an Adafactor with `relative_step` is min(0.01, 1/√updates): 0.01 in all updates of such a run. Neither the rate
nor the schedule of the user has an effect there, so of his schemes only the batch and the epochs are left."""


# -- a small model that repeats its input --------------------------------------------------------------------------------


def _small_decoder(folder: Path) -> dict[str, Any]:
    """A decoder of 2.8M parameters with MiniMind's tokenizer."""
    model = {
        "hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 6, "num_key_value_heads": 2,
        "intermediate_size": 512, "max_position_embeddings": 256,
    }  # fmt: skip
    return {"model": model, "tokenizer": {"path": str(data_folder() / "tokenizers" / "minimind"), "template": "tokenizer"}}


def _parrot_stages(rows: Path) -> dict[str, Any]:
    texts = {"train": str(rows / "texts.jsonl"), "validation": str(rows / "texts.held-out.jsonl"), "max_seq_len": 256}
    answers = {"train": str(rows / "tuned.jsonl"), "validation": str(rows / "tuned.held-out.jsonl"), "max_seq_len": 256}
    return {
        "pretrain": {
            "data": {**texts, "clean": {"exact_duplicates": False}}, "batch": {"micro_batch_size": 16}, "duration": "2 epochs",
            "optimizer": {"learning_rate": 5e-4}, "schedule": {"name": "cosine", "warmup": 0, "min_lr": "10%"},
        },
        "sft": {
            "data": answers, "batch": {"micro_batch_size": 8}, "duration": "30 steps", "optimizer": {"learning_rate": 5e-5},
        },
    }  # fmt: skip


PARROT = UserRun(
    sections=_small_decoder, stages=_parrot_stages, examined="pretrain",
    changes={
        "the doctor's rate, then without copies": [
            {RATE: 5e-3}, {"data.clean.exact_duplicates": True, "data.clean.near_duplicates": 0.8},
        ],
        "the user's rate and warm-up": [{RATE: 2e-4, WARMUP: 0.018}],
        "the user's rate, warm-up and 5 epochs": [{RATE: 2e-4, WARMUP: 0.018, "duration": "5 epochs"}],
        "the user's warm-up alone": [{WARMUP: 0.018}],
        "5 epochs alone": [{"duration": "5 epochs"}],
    },
)  # fmt: skip

RUNS = {"t5": T5, "t5-adafactor": T5_ADAFACTOR, "parrot": PARROT}


# -- what is done with each ----------------------------------------------------------------------------------------------


def trained(folder: Path, name: str, chosen: UserRun, quick: bool) -> Path:
    """The run, trained where it is not there yet."""
    rows = write_rows(folder)
    stages = chosen.stages(rows)
    if quick:
        stages = {stage: {**one, "duration": "12 steps"} for stage, one in stages.items()}
    recipe = {
        "name": name, "output": str(folder / "runs"), "seed": 3, "runtime": RUNTIME, **chosen.sections(folder),
        "stages": stages,
    }  # fmt: skip
    run, file = folder / "runs" / name, folder / f"{name}.yaml"
    file.write_text(yaml.safe_dump(recipe, sort_keys=False, allow_unicode=True), encoding="utf-8")
    if not (run / "summary.json").exists():
        fledge("train", str(file), "--quiet", *(["--resume"] if (run / "recipe.yaml").exists() else []))
    return run


def doctors_changes(examination: Examination) -> dict[str, Sequence[Patch]]:
    """The doctor's schemes for a stage: A and B at once, C step by step."""
    found: dict[str, Sequence[Patch]] = {}
    for scheme in schemes(examination):
        steps = [dict(step.patch) for step in scheme.steps if step.patch]
        if steps:
            words = f"the doctor's scheme {scheme.letter}" + (", its steps" if len(steps) > 1 else "")
            found[words] = steps
    return found


def row_of(name: str, proof: Proof) -> dict[str, Any]:
    """A patch and what was judged of it, as JSON values."""
    effect = proof.effect
    return {
        "change": name, "patch": proof.patch, "base": proof.base, "given": effect.given, "patched": effect.patched,
        "gain": effect.gain, "interval": effect.interval, "useful": effect.useful, "documents": effect.documents,
        "pairs": len(proof.seeds), "updates": proof.steps, "tokens": proof.tokens, "share": proof.share,
        "outcome": proof.outcome, "seconds": proof.seconds,
    }  # fmt: skip


def judged(folder: Path, name: str, chosen: UserRun, quick: bool) -> dict[str, Any]:
    """What the doctor says of a run, and what paired runs say of each change."""
    run = trained(folder, name, chosen, quick)
    examinations = {one.stage: one for one in examine(run)}
    examination = examinations[chosen.examined]
    changes = {**doctors_changes(examination), **chosen.changes}
    found = [
        {"stage": stage, "cause": one.cause, "confidence": one.sign.finding.confidence, "patch": one.sign.finding.patch}
        for stage, examined in examinations.items()
        for one in examined.diagnoses.found
    ]
    for one in found:
        print(name, json.dumps(one, ensure_ascii=False, default=str), flush=True)
    told: list[dict[str, Any]] = []
    for words, patches in islice(changes.items(), 1 if quick else None):
        for proof in prove_steps(run, chosen.examined, patches, minutes=MINUTES, console=Console(quiet=True)):
            told.append(row_of(words, proof))
            print(name, json.dumps(told[-1], ensure_ascii=False), flush=True)
    return {"findings": found, "changes": told}


def table(values: dict[str, Any]) -> str:
    """The changes of a run in Markdown."""
    lines = ["| change | patch | updates | loss | gain | pairs | verdict |", "|---|---|---|---|---|---|---|"]
    for one in values["changes"]:
        patch = ", ".join(f"{key.split('.', 2)[-1]}: {value}" for key, value in one["patch"].items())
        low, high = one["interval"]
        gain = f"{one['gain']:+.4f} ({low:+.4f} to {high:+.4f})"
        updates, losses = "{} → {}".format(*one["updates"]), f"{one['given']:.3f} → {one['patched']:.3f}"
        lines.append(f"| {one['change']} | {patch} | {updates} | {losses} | {gain} | {one['pairs']} | {one['outcome']} |")
    return "\n".join(lines)


def main() -> None:
    """Judge the runs, and print what was found."""
    parser = options("What do the doctor and paired runs say of two users' runs?")
    parser.add_argument("--only", choices=RUNS, nargs="*", default=list(RUNS), help="runs")
    parser.add_argument("--out", type=Path, required=True, help="folder of the runs and of what was measured")
    chosen = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    chosen.out.mkdir(parents=True, exist_ok=True)
    values = {name: judged(chosen.out, name, RUNS[name], chosen.quick) for name in chosen.only}
    for name, one in values.items():
        print(f"\n{name}\n{table(one)}\n", flush=True)
    report(values)


if __name__ == "__main__":
    main()
