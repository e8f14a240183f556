"""Writes a realistic run directory: three stages, with hostile text wherever text can come from."""

import json
import math
import random
from pathlib import Path

HOSTILE = "<script>alert('x')</script>"
KINDS = {"pretrain": "pretrain", "sft": "sft", "dpo": "preference"}
TASKS = ("arithmetic", "colours", "greetings")
QUESTIONS = ("What is 3 + 4?", "Which colour is the sky?", f"Say hello to {HOSTILE}")


def write_run(root: Path, stages: tuple[str, ...] = ("pretrain", "sft", "dpo"), steps: int = 600) -> Path:
    """Write the run directory with these stages; each stage has `steps` steps."""
    root.mkdir(parents=True, exist_ok=True)
    dump(
        root / "summary.json",
        {
            "name": root.name,
            "seconds": 731.4,
            "stages": list(stages),
            "tokenizer": {"vocab_size": 2048, "bytes_per_token": 3.214, "trained": True},
        },
    )
    dump(root / "environment.json", environment())
    recipe = [f"name: {root.name}", f"# {HOSTILE}", "stages:", *(f"  {name}: {{}}" for name in stages)]
    (root / "recipe.yaml").write_text("\n".join(recipe) + "\n", encoding="utf-8")
    for number, name in enumerate(stages):
        write_stage(root / name, KINDS.get(name, "sft"), number, steps)
    return root


def environment() -> dict[str, object]:
    """The content of environment.json."""
    return {
        "python": "3.11.7",
        "torch": "2.9.0",
        "cpu": "Example CPU @ 2.4 GHz",
        "cores": 8,
        "threads": 8,
        "memory_bytes": 16 * 2**30,
        "device": "cpu",
        "precision": "float32",
        "compile": False,
        "attention": None,
        "probe": {"matmul_gflops": 212.4, "tokens_per_second": 15300.0},
        "fledge": "0.1.0",
        "git": "1a2b3c4",
    }


def write_stage(folder: Path, kind: str, number: int, steps: int) -> None:
    """Write the directory of stage number `number`."""
    (folder / "eval").mkdir(parents=True)
    dump(
        folder / "plan.json",
        {
            "kind": kind,
            "label": {"pretrain": "document", "sft": "conversation", "preference": "pair"}[kind],
            "loss_unit": "nats/pair" if kind == "preference" else "nats/token",
            "steps": steps,
            "epochs": 2.0,
            "tokens": steps * 4096,
            "warmup_steps": steps // 20,
            "parameters": 3_214_592,
            "context": 256,
            "rows": 12_000,
        },
    )
    dump(folder / "data_report.json", data_report(number))
    lines = [json.dumps(row) for row in events(kind, number, steps)]
    if kind == "sft":
        lines.insert(5, '{"kind": "step", "step": 5')
    (folder / "events.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")
    dump(folder / "eval" / "before.json", evaluation(kind, number, False))
    dump(folder / "eval" / "after.json", evaluation(kind, number, True))
    case = {"kind": "loss", "group": f"s {HOSTILE}", "loss": 9.5, "where": "v.jsonl:7", "text": f"t {HOSTILE}", "targets": "x"}
    (folder / "eval" / "errors.jsonl").write_text(json.dumps(case) + "\n" + json.dumps({**case, "loss": None}) + "\n")
    if kind != "pretrain":
        dump(folder / "eval" / "world.json", world(number))


def data_report(number: int) -> dict[str, object]:
    """The content of data_report.json."""
    source = {
        "name": f"stories-{number}",
        "path": f"data/stories-{number}.jsonl",
        "rows": 12_000,
        "used_rows": 11_900,
        "dropped": {"too long": 60, "duplicate": 37, f"empty {HOSTILE}": 3},
        "truncated_rows": 12,
        "split_rows": 12,
        "shortened_rows": 3,
        "tokens": 2_431_000,
        "target_tokens": 731_000,
        "first_events": [
            {"reason": "duplicate", "where": "data/stories.jsonl:481", "detail": f"same as line 12 {HOSTILE}"},
            {"reason": "too long", "where": "data/stories.jsonl:902", "detail": "913 tokens, context 256"},
        ],
    }
    other = {"name": "extra", "path": "data/extra.txt", "rows": 500, "used_rows": 490, "dropped": {}, "tokens": 9_100}
    return {
        "sources": [source, other],
        "train": {
            "examples": 11_305,
            "packed_rows": 9_000,
            "tokens": 2_309_450,
            "target_tokens": 694_000,
            "padding_share": 0.031,
        },
        "validation": {
            "examples": 595,
            "packed_rows": 470,
            "tokens": 121_550,
            "target_tokens": 37_000,
            "padding_share": 0.044,
        },
    }


def events(kind: str, number: int, steps: int) -> list[dict[str, object]]:
    """The events of a stage: steps, system figures, evaluations, prompt tests, a checkpoint, and an alert."""
    chance = random.Random(number)
    start, floor = (7.6, 1.6) if kind == "pretrain" else (2.4, 0.7) if kind == "sft" else (0.69, 0.2)
    rows: list[dict[str, object]] = []
    for step in range(1, steps + 1):
        share = step / steps
        level = floor + (start - floor) * math.exp(-6 * share)
        row: dict[str, object] = {
            "kind": "step",
            "step": step,
            "train/epoch": 2 * share,
            "train/loss": level * chance.gauss(1, 0.05),
            "train/grad_norm": (0.4 + 3 * math.exp(-9 * share)) * math.exp(chance.gauss(0, 0.25)),
            "train/lr": 3e-4 * min(1, share * 20) * (0.55 + 0.45 * math.cos(math.pi * share)),
            "train/tokens": step * 4096,
            "train/target_tokens": step * 1200,
        }
        if kind == "preference":
            gap = 2.2 * (1 - math.exp(-4 * share)) + chance.gauss(0, 0.2)
            row |= {"train/rewards/chosen": gap * 0.3, "train/rewards/rejected": -gap * 0.7, "train/rewards/margins": gap}
            row |= {"train/rewards/accuracies": min(1, 0.5 + 0.45 * (1 - math.exp(-5 * share)) + chance.gauss(0, 0.04))}
            row |= {"train/logps/chosen": -30 - 2 * share, "train/logps/rejected": -32 - 14 * share}
        rows.append(row)
        if step % 10 == 0:
            speed = 15_300 * chance.gauss(1, 0.03)
            memory = 1.3e9 + 2e8 * min(1, share * 4)
            rows.append(
                {
                    "kind": "system",
                    "step": step,
                    "system/seconds": step * 0.27,
                    "system/tokens_per_second": speed,
                    "system/memory_bytes": memory,
                }
            )
        if step % (steps // 8) == 0:
            loss = level * 1.04
            rows.append({"kind": "eval", "step": step, "eval/loss": loss, "eval/token_accuracy": 0.7 - level / 12})
            if kind == "sft":
                results = {"prompt_tests/pass_rate": 0.2 + 0.7 * share, "prompt_tests/repetition": 0.3 * (1 - share)}
                rows.append({"kind": "prompt_tests", "step": step, **results})
            if kind == "preference":
                rows[-1] |= {"eval/rewards/accuracies": 0.5 + 0.42 * share, "eval/rewards/margins": 1.9 * share}
    rows.append({"kind": "checkpoint", "step": steps, "path": f"checkpoints/{steps}", "bytes": 12_900_000})
    if kind == "sft":
        rows.append({"kind": "alert", "step": 40, "severity": "warning", "message": f"gradient norm spiked {HOSTILE}"})
        rows.append({"kind": "finding", "step": 50, "severity": "warning", "cause": "x", "message": f"rows repeat {HOSTILE}"})
        rows.append({"kind": "stop", "step": steps, "reason": "no improvement in 3 evaluations"})
    return rows


def evaluation(kind: str, number: int, after: bool) -> dict[str, object]:
    """The content of eval/before.json, or of eval/after.json."""
    loss = {"pretrain": (7.612, 1.634), "sft": (2.431, 0.702), "preference": (0.693, 0.214)}[kind][after]
    answers = ("soft  the 7 and", "The answer is 7.", "7")
    answer = answers[min(2, number + after)]
    result: dict[str, object] = {"loss": loss, "perplexity": math.exp(loss), "token_accuracy": 0.61 if after else 0.07}
    if kind != "preference":
        result["loss_percentiles"] = [{"percent": percent, "loss": loss * percent / 60} for percent in (25, 50, 75, 95)]
        result["loss_histogram"] = {"width": 0.25, "tokens": [40, 30, 20, 10]}
        result["loss_by_position"] = [
            {"from": 0, "to": 15, "loss": loss * 1.4, "tokens": 900.0},
            {"from": 16, "to": None, "loss": loss, "tokens": 3000.0},
        ]  # fmt: skip
    if kind == "preference":
        result["rewards/accuracies"] = 0.93 if after else 0.0
        result["rewards/margins"] = 1.87 if after else 0.0
    result["samples"] = [
        {
            "prompt": prompt,
            "answer": f"{answer}\n{HOSTILE if number else ''} and so on it goes",
            "finish_reason": "stop" if after and number else "length",
        }
        for prompt in QUESTIONS
    ]
    if kind == "pretrain":
        story = "there was a small bird who wanted to fly over the river." if after else "qu ing ;; the"
        result["samples"] = [{"prompt": "Once upon a time", "answer": story, "finish_reason": "length"}, *result["samples"]]  # type: ignore[misc]
    return result


def world(number: int) -> dict[str, object]:
    """The content of eval/world.json."""
    exact = 0.82 + 0.09 * (number == 2)
    return {
        "exact_match": exact,
        "content_match": exact + 0.04,
        "habit_rate": 0.46 if number == 1 else 0.03,
        "preference_accuracy": 0.9,
        "n": 500,
        "interval": [exact - 0.03, exact + 0.03],
        "tasks": {
            name: {"n": 50, "exact_match": exact - 0.1 * at, "content_match": exact, "habit_rate": 0.1 * at}
            for at, name in enumerate(TASKS)
        },
        "errors": [
            {
                "task": "arithmetic",
                "question": f"What is {n} + 9?",
                "answer": f"{n + 8} {HOSTILE}",
                "reference": str(n + 9),
            }
            for n in range(70)
        ],
    }


def dump(path: Path, value: object) -> None:
    """Write a value as JSON."""
    path.write_text(json.dumps(value), encoding="utf-8")
