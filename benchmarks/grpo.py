"""GRPO from a fine-tuned model: fledge against TRL's GRPOTrainer, in tokens per second of whole updates.

Needs a finished quickstart: `--run runs/quickstart`. Both start from its SFT model, draw 8 answers of at most 64 tokens to each
of 16 prompts of the world at temperature 1, reward those that are exactly the expected one, and take an update; an update's
seconds hold drawing, rewards and training. Tokens are those of prompts and answers that are trained, padding left out. TRL runs
as it ships, and at its best: the fastest of several ways, each tried first. All contenders take turns, each on prompts of its
own order; the first update of each turn is left out. Memory is the highest resident size of a process of its own, less its size
before the model is loaded, when the libraries of both are loaded already. `rewards`: the mean reward of the first and of the
last update of each; fledge begins at the SFT model in each turn, TRL goes on.
"""

import json
import statistics
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from measure import options, report
from opponent import clock, comparison, fastest, load_libraries_aside, memories, resident, resident_at_start, take_turns

from fledge.pipeline import Pipeline
from fledge.recipe import recipe_from_dict
from fledge.run import Console
from fledge.run.events import read_events
from fledge.run.text_files import read_json
from fledge.tokenizer import Message, load_tokenizer

UNIT = "tokens/s"
ANSWERS, NEW_TOKENS, RATE = 8, 64, 1e-5
Prompts = list[dict[str, str]]


@dataclass(frozen=True)
class Work:
    """The seconds of some updates, their tokens and answers, and the mean rewards of the first and the last."""

    seconds: float
    tokens: int
    answers: int
    rewards: tuple[float, float]

    @property
    def speed(self) -> float:
        """Tokens a second."""
        return self.tokens / self.seconds


def start_model(run: Path) -> Path:
    """The SFT model of a quickstart."""
    return run / "sft" / read_json(run / "sft" / "result.json", dict)["model"]


def fledge_recipe(run: Path, out: Path, prompts: int, steps: int, seed: int) -> dict[str, Any]:
    """The recipe of a `grpo` stage on the world's questions with exact answers as rewards."""
    stage = {
        "data": {
            "train": {"path": str(run / "world" / "preference.jsonl"), "columns": {"response": "chosen"}},
            "validation": 0.0,
            "max_seq_len": 192,
            "clean": {"decontaminate": False},
        },
        "kind": "grpo",
        "rewards": "exact_match",
        "rollout": {"num_generations": ANSWERS, "max_new_tokens": NEW_TOKENS},
        "duration": f"{steps} steps",
        "batch": {"micro_batch_size": prompts},
        "optimizer": {"name": "adamw", "learning_rate": RATE, "weight_decay": 0.0},
        "schedule": {"name": "constant", "warmup": 0},
        "evaluation": {"generated_answers": None},
        "metric_for_best_model": "loss",
        "checkpoint": {"every_steps": 100_000},
    }
    model = {"path": str(start_model(run))}
    return {"name": f"grpo-{seed}", "output": str(out), "seed": seed, "model": model, "stages": {"grpo": stage}}


def fledge_works(run: Path, out: Path, prompts: int, steps: int, seed: int) -> Work:
    """A whole `grpo` stage of a new run; all updates but the first count."""
    recipe = recipe_from_dict(fledge_recipe(run, out, prompts, steps + 1, seed))
    events = list(read_events(Pipeline(recipe, Console(quiet=True)).run() / "grpo" / "events.jsonl"))
    rewards = [event["train/reward"] for event in events if event["kind"] == "step"]
    system = [event for event in events if event["kind"] == "system"][1:]
    seconds = [event["system/step_seconds"] for event in system]
    tokens = sum(event["system/step_tokens_per_second"] * each for event, each in zip(system, seconds, strict=True))
    return Work(sum(seconds), round(tokens), prompts * ANSWERS * steps, (rewards[0], rewards[-1]))


def read_prompts(run: Path) -> Prompts:
    """The world's questions as texts that end where an answer begins, and the answers."""
    tokenizer = load_tokenizer(start_model(run))
    rows = [json.loads(line) for line in (run / "world" / "preference.jsonl").read_text(encoding="utf-8").splitlines()]
    made = []
    for row in rows:
        messages = [Message(turn["role"], turn["content"]) for turn in row["messages"]]
        ids = tokenizer.encode_prompt(messages)
        if len(ids) <= 128:
            made.append({"prompt": tokenizer.decode(ids), "answer": row["chosen"]})
    return made


def reward(completions: list[str], answer: list[str], **others: Any) -> list[float]:
    """1 for an answer that is exactly the expected one."""
    return [float(given.strip() == expected.strip()) for given, expected in zip(completions, answer, strict=True)]


class Opponent:
    """TRL's GRPOTrainer. `accumulation` divides the answers of an update into as many micro-batches."""

    def __init__(self, run: Path, rows: Prompts, *, prompts: int, steps: int, accumulation: int, **how: Any) -> None:
        from datasets import Dataset
        from transformers import AutoModelForCausalLM, AutoTokenizer
        from trl import GRPOConfig, GRPOTrainer

        seconds: list[float] = []

        self.seconds, self.answers, self.accumulation, self.calls = seconds, prompts * ANSWERS, accumulation, 0
        self.output = tempfile.TemporaryDirectory()
        arguments = GRPOConfig(
            self.output.name,
            per_device_train_batch_size=self.answers // accumulation, gradient_accumulation_steps=accumulation,
            num_generations=ANSWERS, max_completion_length=NEW_TOKENS, max_steps=steps + 1, learning_rate=RATE,
            lr_scheduler_type="constant", weight_decay=0.0, temperature=1.0, use_cpu=True, report_to=[], save_strategy="no",
            logging_steps=1, disable_tqdm=True, **how,
        )  # fmt: skip
        folder = start_model(run)
        self.trainer = GRPOTrainer(
            AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32), reward_funcs=reward, args=arguments,
            train_dataset=Dataset.from_list(rows), processing_class=AutoTokenizer.from_pretrained(folder),
            callbacks=[clock(seconds)],
        )  # fmt: skip

    def how(self) -> dict[str, Any]:
        """The arguments that decide speed, as the trainer has them."""
        names = ("bf16", "gradient_checkpointing", "torch_compile", "cache_implementation", "beta", "loss_type")
        values = {name: getattr(self.trainer.args, name, None) for name in names}
        return values | {"gradient_accumulation_steps": self.accumulation}

    def __call__(self) -> Work:
        """Take a few updates on other prompts than before; all but the first count."""
        self.seconds.clear()
        self.calls += 1
        self.trainer.train_dataset = self.trainer.train_dataset.shuffle(seed=self.calls)
        self.trainer.state.log_history.clear()
        self.trainer.train()
        logs = [each for each in self.trainer.state.log_history if "reward" in each]
        tokens = logs[-1]["num_tokens"] - logs[0]["num_tokens"]
        rewards = (float(logs[0]["reward"]), float(logs[-1]["reward"]))
        return Work(sum(self.seconds[1:]), round(tokens), self.answers * (len(self.seconds) - 1), rewards)


PLAIN = {"bf16": True, "gradient_checkpointing": False}
WAYS: dict[str, tuple[int, dict[str, Any]]] = {  # micro-batches of an update, and the arguments
    "at once": (1, PLAIN),
    "at once, float32": (1, {"bf16": False, "gradient_checkpointing": False}),
    "in eight parts": (8, PLAIN),
    "at once, static cache": (1, {**PLAIN, "cache_implementation": "static"}),
}


def measure_memory(who: str, way: str, run: Path, prompts: int) -> int:
    """Take a few updates in this process and return how far its resident size rose from that before the model was loaded."""
    rows, before = read_prompts(run), resident_at_start()
    with tempfile.TemporaryDirectory() as out:
        if who == "fledge":
            fledge_works(run, Path(out), prompts, 2, 1)
        else:
            accumulation, arguments = WAYS[way]
            Opponent(run, rows, prompts=prompts, steps=2, accumulation=accumulation, **arguments)()
    return resident("VmHWM") - before


def main() -> None:
    """Measure and print the results as one line of JSON."""
    parser = options(__doc__ or "")
    parser.add_argument("--run", type=Path, default=Path("runs/quickstart"), help="a finished quickstart")
    parser.add_argument("--rounds", type=int, help="rounds (default 5, with --quick 1)")
    parser.add_argument("--steps", type=int, help="updates in each (default 4, with --quick 1)")
    chosen = parser.parse_args()
    run, prompts = chosen.run.resolve(), 4 if chosen.quick else 16
    load_libraries_aside()
    steps, rounds = chosen.steps or (1 if chosen.quick else 4), chosen.rounds or (1 if chosen.quick else 5)
    rows = read_prompts(run)

    def make(accumulation: int, **how: Any) -> Opponent:
        return Opponent(run, rows, prompts=prompts, steps=steps, accumulation=accumulation, **how)

    with tempfile.TemporaryDirectory() as out:
        shipped = make(1)
        shipped()
        names = list(WAYS)[:1] if chosen.quick else list(WAYS)
        ways = {name: partial(make, WAYS[name][0], **WAYS[name][1]) for name in names}
        way, best, tried = fastest(ways, UNIT, trials=1)
        numbers = iter(range(1, rounds + 2))

        def fledge() -> Work:
            threads = torch.get_num_threads()
            try:
                return fledge_works(run, Path(out), prompts, steps, next(numbers))
            finally:
                torch.set_num_threads(threads)  # those of the opponent

        fledge()
        contenders: dict[str, Callable[[], Work]] = {"fledge": fledge, "as_shipped": shipped, "best": best}
        works = take_turns(contenders, rounds, UNIT)
    peak = memories(measure_memory, {"fledge": ("fledge", "", run, prompts), "best": ("TRL", way, run, prompts)})
    report(
        {
            **comparison(works),
            "memory_ratio": round(peak["fledge"] / peak["best"], 3),
            "memory_bytes": peak,
            "tokens_per_second": {
                name: round(statistics.median(work.speed for work in those)) for name, those in works.items()
            },
            "tokens_of_an_answer": {
                name: round(sum(work.tokens for work in those) / sum(work.answers for work in those), 1)
                for name, those in works.items()
            },
            "rewards": {name: [those[0].rewards[0], those[-1].rewards[1]] for name, those in works.items()},
            "as_shipped": shipped.how(),
            "best": {"is": way, "how": best.how(), "tried_tokens_per_second": tried},
            "updates_per_round": steps,
            "rounds": rounds,
            "quick": chosen.quick,
        }
    )


if __name__ == "__main__":
    main()
