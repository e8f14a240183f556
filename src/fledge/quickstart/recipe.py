"""The recipe of the quickstart: pretraining, SFT and DPO of a small decoder on the generated world."""

from pathlib import Path
from typing import Any

from fledge.quickstart.budget import MICRO_BATCH_SIZE, Budget
from fledge.recipe import Recipe, recipe_from_dict

MAX_SEQ_LEN, VOCAB_SIZE = 256, 2048
PAIR_SEQ_LEN = MAX_SEQ_LEN // 2  # of one answer with its prompt: rows of pairs then have the shape of other rows, and its code
MODEL = {
    "hidden_size": 192, "num_hidden_layers": 4, "num_attention_heads": 3, "num_key_value_heads": 1,
    "intermediate_size": 512, "max_position_embeddings": MAX_SEQ_LEN, "qk_norm": True,
}  # fmt: skip
NO_CLEANING = {"exact_duplicates": False, "decontaminate": False, "min_tokens": 0}  # the world keeps held-out questions apart
PROMPTS = [
    "你是谁？", "请列出五种水果。", "37+48等于多少？", "“三只红色的猫”用英语怎么说？", "什么是梯度？", "写一首关于月亮的诗。",
    "Who are you?", "Name five fruits.", "What is 62-35?", 'How do you say "two green birds" in Chinese?', "What is a token?",
]  # fmt: skip
TEXTS = ["苹果是", "A cat is", "三只"]


def make_recipe(world: Path, name: str, output: str, seed: int, budget: Budget) -> Recipe:
    """The recipe of a quickstart run on the data in `world`; it can be stored, changed and run like any other."""
    stages = {
        "pretrain": _stage(world, "pretrain", 4e-3, budget.steps("pretrain")),
        "sft": _stage(world, "sft", 4e-3, budget.steps("sft")),
        "dpo": _stage(world, "preference", 3e-4, budget.steps("dpo")) | {"beta": 0.1, "sft_loss_weight": 1.0},
    }
    stages["dpo"]["data"]["max_seq_len"] = PAIR_SEQ_LEN
    stages["dpo"]["batch"]["gradient_accumulation_steps"] = MAX_SEQ_LEN // PAIR_SEQ_LEN
    for stage in (stages["sft"], stages["dpo"]):
        prompts = str(world / "prompts.yaml")
        stage["prompt_tests"] = {"prompts": prompts, "max_new_tokens": 48, **stage["evaluation"]}
        stage["evaluation"]["sets"] = {"world": {"kind": "prompts", "path": prompts, "max_new_tokens": 48}}
    return recipe_from_dict(
        {
            "name": name,
            "output": output,
            "seed": seed,
            "tokenizer": {"vocab_size": VOCAB_SIZE, "template": "chatml"},
            "model": MODEL,
            "stages": stages,
            "generation_samples": {"prompts": PROMPTS, "texts": TEXTS, "max_new_tokens": 48},
            "logging": {"every_steps": 20},
        }
    )


def _stage(world: Path, rows: str, learning_rate: float, steps: int) -> dict[str, Any]:
    """A stage that trains on the generated rows of a file for a number of steps, evaluated four times."""
    return {
        "data": {
            "train": str(world / f"{rows}.jsonl"),
            "validation": str(world / f"{rows}.validation.jsonl"),
            "max_seq_len": MAX_SEQ_LEN,
            "clean": NO_CLEANING,
        },
        "duration": f"{steps} steps",
        "batch": {"micro_batch_size": MICRO_BATCH_SIZE},
        "optimizer": {"name": "muon", "learning_rate": learning_rate, "betas": [0.9, 0.95], "weight_decay": 0.1},
        "schedule": {"name": "cosine", "warmup": 0.05, "min_lr": learning_rate / 20},
        "evaluation": {"every_steps": max(10, steps // 4)},
    }
