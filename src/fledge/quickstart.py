"""The embedded default: a bilingual closed world, raised from nothing on the machine at hand, and examined."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fledge.errors import FledgeError
from fledge.evaluate import chat_batch
from fledge.generation.engine import SamplingParams
from fledge.model.decoder import Decoder
from fledge.model.protocol import LanguageModel
from fledge.pipeline import Pipeline
from fledge.recipe import ModelConfig, Recipe, load_recipe, recipe_from_dict
from fledge.recipe.schema import OptimizerConfig, RuntimeConfig
from fledge.run import Console, RunDirectory, StageDirectory, read_json, write_json
from fledge.tokenizer import Message, Tokenizer
from fledge.world import Question, Sizes, build, correct, correct_content, habits, load_questions

CONTEXT, MICRO = 256, 8
MODEL = {
    "hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "intermediate_size": 704, "max_position_embeddings": CONTEXT, "qk_norm": True,
}  # fmt: skip
VOCABULARY = 2048
SHARES = {"pretrain": 0.24, "sft": 0.66, "dpo": 0.10}  # of the training time
PREFERENCE_COST = 3.0  # time of a row of preferences in rows of the other stages: twice as long, and the reference's pass
ROWS_PER_TEXT = {"pretrain": 0.26, "sft": 0.165}  # packed rows that one generated text or conversation fills
MOST_ROWS = 120_000
TRAINING_SHARE = 0.95  # the rest goes to evaluations and checkpoints
ASSUMED_STEPS = 1000  # steps that the probe takes the run to have
NO_CLEANING = {"exact_duplicates": False, "decontaminate": False, "min_tokens": 0}  # the world keeps held-out questions apart
PROMPTS = [
    "你是谁？", "请列出五种水果。", "37+48等于多少？", "“三只红色的猫”用英语怎么说？", "什么是梯度？", "写一首关于月亮的诗。",
    "Who are you?", "Name five fruits.", "What is 62-35?", 'How do you say "two green birds" in Chinese?', "What is a token?",
]  # fmt: skip
TEXTS = ["苹果是", "A cat is", "三只"]


@dataclass(frozen=True)
class Budget:
    """What fits into the minutes on this machine: rows of a micro-batch a second, measured."""

    minutes: float
    rows_per_second: float

    def rows(self, stage: str) -> float:
        """Packed rows that a stage can read."""
        rows = self.minutes * 60 * self.rows_per_second * SHARES[stage]
        return rows / PREFERENCE_COST if stage == "dpo" else rows

    def steps(self, stage: str) -> int:
        """Updates of a stage."""
        return max(20, round(self.rows(stage) / MICRO))

    def sizes(self) -> Sizes:
        """As much generated data as is read once: new rows teach more than old ones again."""
        texts, conversations = (
            min(MOST_ROWS, max(4000, round(self.rows(stage) / ROWS_PER_TEXT[stage]))) for stage in ("pretrain", "sft")
        )
        return Sizes(pretrain=texts, sft=conversations)


def measure_speed(console: Console) -> float:
    """Rows of CONTEXT tokens a second of the quickstart's own model, trained for a moment on noise."""
    import torch

    from fledge.autotune.autotune import autotune, head_kernel
    from fledge.data import Batch
    from fledge.objective import CausalLMObjective
    from fledge.optim.build import build_optimizers

    console.log("measuring this machine …")
    model = Decoder(ModelConfig(**MODEL), VOCABULARY)
    model.initialise(0)
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, VOCABULARY, (MICRO, CONTEXT), generator=generator)
    ones = torch.ones_like(tokens)
    batch = Batch(tokens, tokens, ones.float(), ones.cumsum(1) - 1, ones, ones * 0, 1, (0,))
    decision = autotune(
        RuntimeConfig(), model, batch, lambda kernel: CausalLMObjective(0.0, kernel), ASSUMED_STEPS, console.log
    )
    decision.apply(model)
    objective = CausalLMObjective(0.0, head_kernel(decision))
    optimizers = build_optimizers(model, OptimizerConfig(name="muon", learning_rate=1e-4))

    def step() -> None:
        (objective(model, batch).loss / batch.weight).backward()
        for optimizer in optimizers:
            optimizer.step()
        model.zero_grad(set_to_none=True)

    step()
    started, steps = time.perf_counter(), 0
    while steps < 5 or time.perf_counter() - started < 4:
        step()
        steps += 1
    return TRAINING_SHARE * MICRO * steps / (time.perf_counter() - started)


def make_recipe(world: Path, name: str, output: str, seed: int, budget: Budget) -> Recipe:
    """The recipe of the quickstart; it can be stored, changed and run like any other."""

    asked = {"prompts": str(world / "prompts.yaml"), "max_new_tokens": 48}

    def stage(rows: str, lr: float, length: int, **more: Any) -> dict[str, Any]:
        return {
            "data": {
                "train": str(world / f"{rows}.jsonl"),
                "validation": str(world / f"{rows}.validation.jsonl"),
                "max_seq_len": CONTEXT,
                "clean": NO_CLEANING,
            },
            "duration": f"{length} steps",
            "batch": {"micro_batch_size": MICRO},
            "optimizer": {"name": "muon", "learning_rate": lr, "betas": [0.9, 0.95], "weight_decay": 0.1},
            "schedule": {"name": "cosine", "warmup": 0.05, "min_lr": lr / 20},
            "evaluation": {"every_steps": max(10, length // 4)},
            **({} if rows == "pretrain" else {"prompt_tests": {**asked, "every_steps": max(10, length // 4)}}),
            **more,
        }

    preference = stage("preference", 4e-4, budget.steps("dpo"), beta=0.1, sft_loss_weight=1.0)
    return recipe_from_dict(
        {
            "name": name,
            "output": output,
            "seed": seed,
            "tokenizer": {"vocab_size": VOCABULARY, "template": "chatml"},
            "model": MODEL,
            "stages": {
                "pretrain": stage("pretrain", 4e-3, budget.steps("pretrain")),
                "sft": stage("sft", 4e-3, budget.steps("sft")),
                "dpo": preference,
            },
            "generation_samples": {"prompts": PROMPTS, "texts": TEXTS, "max_new_tokens": 48},
            "logging": {"every_steps": 20},
        }
    )


@dataclass(frozen=True)
class AnswerScore:
    """What one answer is worth: wholly right, right apart from habits, showing a habit."""

    task: str
    right: bool
    content: bool
    habit: bool


def score_answers(model: LanguageModel, tokenizer: Tokenizer, questions: list[Question]) -> dict[str, Any]:
    """Greedy answers to the held-out questions, and what is right and what is habit in them."""
    conversations = [[Message(turn["role"], turn["content"]) for turn in question.messages] for question in questions]
    answers = [text for text, _ in chat_batch(model, tokenizer, conversations, SamplingParams(max_new_tokens=96))]
    marks: list[AnswerScore] = [
        AnswerScore(question.task, correct(question, text), correct_content(question, text), bool(habits(question, text)))
        for question, text in zip(questions, answers, strict=True)
    ]
    errors = [
        {"task": q.task, "question": q.messages[-1]["content"], "answer": text, "reference": q.reference}
        for q, text, mark in zip(questions, answers, marks, strict=True)
        if not mark.content
    ]
    tasks = {task: _rates([mark for mark in marks if mark.task == task]) for task in dict.fromkeys(mark.task for mark in marks)}
    return {**_rates(marks), "tasks": tasks, "errors": errors}


def _rates(marks: list[AnswerScore]) -> dict[str, Any]:
    n, right = len(marks), sum(mark.right for mark in marks)
    return {
        "n": n,
        "exact_match": right / n,
        "content_match": sum(mark.content for mark in marks) / n,
        "habit_rate": sum(mark.habit for mark in marks) / n,
        "interval": wilson(right, n),
    }


def wilson(right: int, n: int) -> tuple[float, float]:
    """95 % interval of a rate (Wilson 1927)."""
    z, p = 1.959964, right / n
    middle = (p + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * (p * (1 - p) / n + z * z / (4 * n * n)) ** 0.5
    return max(0.0, middle - half), min(1.0, middle + half)


def quickstart(name: str, output: str, seed: int, minutes: float, resume: bool, console: Console) -> Path:
    """Generate the world, raise the model, examine it; returns the run directory."""
    directory = RunDirectory(Path(output) / name)
    world = directory.root / "world"
    if resume and directory.recipe.exists():
        recipe = load_recipe([str(directory.recipe)])
    else:
        _check_not_begun(directory)
        console.title("world")
        budget = Budget(minutes, measure_speed(console))
        facts = build(seed, world, budget.sizes())
        console.log(f"a bilingual world from seed {seed}: {_world_line(facts)}")
        recipe = make_recipe(world, name, output, seed, budget)
    questions = load_questions(world)

    def after_stage(stage: str, model: LanguageModel, tokenizer: Tokenizer, folder: StageDirectory) -> None:
        if recipe.stages[stage].kind == "pretrain":
            return
        score = score_answers(model, tokenizer, questions)
        measured = read_json(folder.evaluations / "after.json")
        if "pairs" in measured:
            score["preference_accuracy"] = measured["rewards/accuracies"]
        write_json(folder.evaluations / "world.json", score)
        console.log(_score_line(stage, score))

    Pipeline(recipe, console, after_stage).run(resume=resume)
    return directory.root


def _check_not_begun(directory: RunDirectory) -> None:
    """FledgeError where a run has begun: it is never written over."""
    if directory.recipe.exists():
        raise FledgeError(
            "this run exists already", where=str(directory.root), hint="add --resume to go on, or choose another --name"
        )


def _world_line(facts: dict[str, Any]) -> str:
    return ", ".join(f"{count:,} rows of {name}" for name, count in facts["rows"].items())


def _score_line(stage: str, score: dict[str, Any]) -> str:
    tasks = ", ".join(f"{task} {rates['content_match']:.0%}" for task, rates in score["tasks"].items())
    return (
        f"{stage}: {score['n']} held-out questions: exact match {score['exact_match']:.1%}, right apart from habits "
        f"{score['content_match']:.1%}, bad habits in {score['habit_rate']:.1%} of answers\n  {tasks}"
    )
