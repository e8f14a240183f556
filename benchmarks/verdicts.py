"""The verdict on ruined SFT stages and on healthy ones: does each get the right decision, for the right reason?

A small model that was pretrained on the quickstart's world is trained on its conversations, a few rows of them, with each of
these faults and without one: identity rows × 50, half of the answers given to other questions, targets in the prompts, ends of
answers that are no targets. The first two are faults of the data; the last two change the loss weights of the prepared rows,
which no recipe can ask for. The validation rows and the sets are whole. Prints, for each run, the decision and its reasons.
"""

import json
import random
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
from measure import options, report

from fledge.data.storage import Examples
from fledge.pipeline import Pipeline
from fledge.prepare import Preparation, PreparedStage
from fledge.quickstart.recipe import MODEL, VOCAB_SIZE
from fledge.recipe import recipe_from_dict
from fledge.run import Console, resolve_model_path
from fledge.tokenizer import Tokenizer
from fledge.world import Sizes, build

Rows = list[dict[str, Any]]
RUNTIME = {"precision": "fp32", "compile": False, "attention": "sdpa", "threads": 1, "device": "cpu"}
IDENTITY_TIMES, MAX_SEQ_LEN = 50, 256


def identity_rows(rows: Rows, seed: int) -> Rows:
    """The rows with those about the assistant's identity 50 times."""
    many = [row for row in rows for _ in range(IDENTITY_TIMES if row["task"] == "identity" else 1)]
    random.Random(seed).shuffle(many)
    return many


def exchanged_answers(rows: Rows, seed: int) -> Rows:
    """The rows with half of the last answers given to other questions."""
    draw = random.Random(seed)
    chosen = draw.sample(range(len(rows)), len(rows) // 2)
    answers = {number: rows[other]["messages"][-1] for number, other in zip(chosen, [*chosen[1:], chosen[0]], strict=True)}
    return [{**row, "messages": [*row["messages"][:-1], answers.get(i, row["messages"][-1])]} for i, row in enumerate(rows)]


def prompts_trained(examples: Examples, tokenizer: Tokenizer) -> np.ndarray:
    """Weights with every token a target."""
    return np.ones(len(examples.tokens), np.float32)


def ends_untrained(examples: Examples, tokenizer: Tokenizer) -> np.ndarray:
    """Weights with no end of an answer a target."""
    tokens, weights = (np.asarray(values[0 : len(values)]) for values in (examples.tokens, examples.weights))
    return np.where(np.isin(tokens, list(tokenizer.stop_ids)), 0, weights).astype(np.float32)


@contextmanager
def changed_weights(change: Callable[[Examples, Tokenizer], np.ndarray]) -> Iterator[None]:
    """A context in which the training rows of prepared stages have other loss weights."""
    prepare = Preparation.prepare

    def faulty(preparation: Preparation, name: str, tokenizer: Tokenizer) -> PreparedStage:
        prepared = prepare(preparation, name, tokenizer)
        train = prepared.data.train
        tokens = np.concatenate([train.examples.sequence(n)[0] for n in range(len(train.examples.offsets) - 1)])
        weights = change(train.examples, tokenizer)
        train.examples = replace(train.examples, tokens=tokens, weights=weights, digest=None, counted_target_tokens=None)
        return prepared

    with patch.object(Preparation, "prepare", faulty):
        yield


DATA_FAULTS: dict[str, Callable[[Rows, int], Rows]] = {
    "identity × 50": identity_rows,
    "half of the answers exchanged": exchanged_answers,
}
WEIGHT_FAULTS = {"prompts unmasked": prompts_trained, "ends untrained": ends_untrained}
EXPECTED: dict[str, set[str]] = {  # reasons of which one must stand among those that decide
    "healthy": {"learned"},
    "identity × 50": {"identity_template", "identity_targets"},
    "half of the answers exchanged": {"misfits", "off_topic"},
    "prompts unmasked": {"prompt_targets"},
    "ends untrained": {"trained_ends", "ended"},
}


def stage(folder: Path, world: Path, train: Path, steps: int) -> dict[str, Any]:
    """The SFT stage of all runs."""
    return {
        "data": {
            "train": str(train), "validation": str(world / "sft.validation.jsonl"), "max_seq_len": MAX_SEQ_LEN,
            "clean": {"exact_duplicates": False, "decontaminate": False, "min_tokens": 0},
        },
        "duration": f"{steps} steps",
        "batch": {"micro_batch_size": 4},
        "optimizer": {"name": "muon", "learning_rate": 4e-3, "betas": [0.9, 0.95], "weight_decay": 0.1},
        "schedule": {"name": "cosine", "warmup": 0.05, "min_lr": 2e-4},
        "evaluation": {
            "every_steps": steps // 3, "max_packed_rows": 16,
            "verdict": {"min_pass_rate": None},  # after so few steps even the healthy model keeps few of the rules
            "sets": {"world": {"kind": "prompts", "path": str(world / "prompts.yaml"), "max_new_tokens": 48},
                     "questions": {"kind": "answers", "path": str(folder / "questions.jsonl"), "max_new_tokens": 48}},
        },
    }  # fmt: skip


def run(folder: Path, world: Path, base: Path, fault: str, seed: int, steps: int) -> dict[str, Any]:
    """Train one stage with a fault; returns its verdict."""
    rows = [json.loads(line) for line in (world / "sft.jsonl").read_text(encoding="utf-8").splitlines()]
    rows = random.Random(seed).sample(rows, min(len(rows), 40 * steps))
    rows = DATA_FAULTS.get(fault, lambda kept, _: kept)(rows, seed)
    name = f"{fault.replace(' ', '-').replace('×', 'x')}-{seed}"
    train = folder / f"{name}.jsonl"
    train.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    recipe = {
        "name": name, "output": str(folder), "seed": seed, "model": {"path": str(base)}, "runtime": RUNTIME,
        "stages": {"sft": stage(folder, world, train, steps)},
    }  # fmt: skip
    (folder / name / "sft" / "result.json").unlink(missing_ok=True)  # a run that is there is only evaluated again
    pipeline = Pipeline(recipe_from_dict(recipe), Console(quiet=True), allow=["stages.sft.evaluation"])
    if fault in WEIGHT_FAULTS:
        with changed_weights(WEIGHT_FAULTS[fault]):
            root = pipeline.run()
    else:
        root = pipeline.run()
    return json.loads((root / "sft" / "result.json").read_text(encoding="utf-8"))["verdict"]


def is_right(fault: str, verdict: dict[str, Any]) -> bool:
    """Whether a verdict has the right decision for a right reason."""
    deciding = {reason["check"] for reason in verdict["reasons"] if reason["decision"] == verdict["decision"]}
    return (verdict["decision"] == "release") == (fault == "healthy") and bool(deciding & EXPECTED[fault])


def pretrained(folder: Path, world: Path, steps: int) -> Path:
    """A model that has read the texts of the world."""
    recipe = {
        "name": "base", "output": str(folder), "seed": 7, "tokenizer": {"vocab_size": VOCAB_SIZE}, "model": MODEL,
        "runtime": RUNTIME,
        "stages": {"pretrain": {
            "data": {"train": str(world / "pretrain.jsonl"), "validation": str(world / "pretrain.validation.jsonl"),
                     "max_seq_len": MAX_SEQ_LEN},
            "duration": f"{steps} steps", "batch": {"micro_batch_size": 8},
            "optimizer": {"name": "muon", "learning_rate": 4e-3}, "evaluation": {"every_steps": steps},
        }},
    }  # fmt: skip
    return Pipeline(recipe_from_dict(recipe), Console(quiet=True)).run() / "pretrain"


def write_questions(folder: Path, world: Path, count: int) -> None:
    """Held-out questions of the world with their answers, as conversations."""
    lines = (world / "questions.jsonl").read_text(encoding="utf-8").splitlines()
    questions = [json.loads(line) for line in random.Random(0).sample(lines, count)]
    with (folder / "questions.jsonl").open("w", encoding="utf-8") as file:
        for one in questions:
            messages = [*one["messages"], {"role": "assistant", "content": one["reference"]}]
            file.write(json.dumps({"messages": messages, "group": one["task"]}, ensure_ascii=False) + "\n")


def main() -> None:
    """Train all runs and print their verdicts."""
    parser = options(__doc__ or "")
    parser.add_argument(
        "--base", type=Path, help="run or stage of a model that was pretrained on the world (default: trained now)"
    )
    parser.add_argument("--world", type=Path, help="folder of the world (default: made now)")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--steps", type=int, default=80)
    parser.add_argument("--only", action="append", default=[], choices=tuple(EXPECTED))
    parser.add_argument("--keep", type=Path, help="folder of the runs (default: a temporary one)")
    arguments = parser.parse_args()
    seeds, results = arguments.seeds[:1] if arguments.quick else arguments.seeds, []
    with tempfile.TemporaryDirectory() as temporary:
        folder = arguments.keep or Path(temporary)
        folder.mkdir(parents=True, exist_ok=True)
        world = arguments.world or folder / "world"
        if arguments.world is None:
            build(7, world, Sizes(pretrain=8000, sft=20_000))
        base = resolve_model_path(str(arguments.base or pretrained(folder, world, 150)))
        write_questions(folder, world, 60)
        for seed in seeds:
            for fault in arguments.only or EXPECTED:
                verdict = run(folder, world, base, fault, seed, arguments.steps)
                reasons = [one for one in verdict["reasons"] if one["decision"] == verdict["decision"]]
                results.append({"fault": fault, "seed": seed, "decision": verdict["decision"],
                                "right": is_right(fault, verdict),
                                "checks": [one["check"] for one in reasons]})  # fmt: skip
                print(f"{fault}, seed {seed}: {verdict['decision']}", flush=True)
                for one in verdict["reasons"]:
                    print(f"  {one['decision'] or 'note'}: {one['message']}", flush=True)
    rights = Counter(one["fault"] for one in results if one["right"])
    report({"right": dict(rights), "runs": results})


if __name__ == "__main__":
    main()
