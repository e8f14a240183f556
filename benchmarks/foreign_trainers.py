"""Runs cases of foreign_logs.py with trainers that are libraries; started by it in a process of its own for each trainer.

`python foreign_trainers.py WORK DATA CASES.json`: each case gets a folder in WORK, which is the working folder, so that no log
holds a path of the machine. Standard output of a case goes to its `train.log`.
"""

import contextlib
import copy
import json
import random
import shutil
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM

BLOCK, ROWS = 48, 1500
WIDTH, LAYERS = 64, 2
WORDS = ("red", "blue", "green", "cat", "dog", "bird", "one", "two")
Settings = dict[str, Any]
DATA = Path()


def tokenizer() -> Any:
    """The tokenizer of minimind, with 6,400 tokens."""
    return AutoTokenizer.from_pretrained(DATA / "tokenizers" / "minimind")


def start(case: dict[str, Any]) -> Any:
    """A small Llama: that of the case it starts from, or a fresh one."""
    how = case["how"]
    torch.manual_seed(how.get("seed", 1))
    if case["after"]:
        return AutoModelForCausalLM.from_pretrained(Path(case["after"]) / "model", dtype=torch.float32)
    words = tokenizer()
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=how.get("width", WIDTH), num_hidden_layers=LAYERS, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=160, max_position_embeddings=256, tie_word_embeddings=True,
        bos_token_id=words.bos_token_id, eos_token_id=words.eos_token_id, pad_token_id=words.pad_token_id,
    )  # fmt: skip
    return LlamaForCausalLM(config)


def alpaca() -> list[dict[str, str]]:
    """Questions and answers of one kind, shuffled."""
    rows = json.loads((DATA / "llamafactory" / "alpaca_en_demo.json").read_text(encoding="utf-8"))
    rows = [{"prompt": row["instruction"] + "\n", "completion": row["output"]} for row in rows]
    random.Random(1).shuffle(rows)
    return rows


def word_rows(count: int = 1200) -> list[dict[str, str]]:
    """Questions whose answer is one word of the question."""
    dice = random.Random(1)
    rows = []
    for _ in range(count):
        words = dice.sample(WORDS, 3)
        place = dice.randrange(3)
        rows.append({"prompt": f"{' '.join(words)}: {('first', 'second', 'third')[place]}? ", "completion": words[place]})
    return rows


def blocks(how: Settings) -> Any:
    """Blocks of tokens of running text, for training and for validation."""
    from datasets import Dataset

    words = tokenizer()
    if how.get("texts") == "alpaca":
        text = "\n\n".join(row["prompt"] + row["completion"] for row in alpaca())
    else:
        text = next((DATA / "shakespeare").glob("*.txt")).read_text(encoding="utf-8")
    ids = words(text[: ROWS * BLOCK * 3]).input_ids
    rows = [ids[first : first + BLOCK] for first in range(0, len(ids) - BLOCK, BLOCK)]
    random.Random(how.get("seed", 1)).shuffle(rows)
    made = [{"input_ids": row, "labels": row} for row in rows]
    count = how.get("rows", len(made) - 100)
    return Dataset.from_list(made[100 : 100 + count]), Dataset.from_list(made[:100])


def arguments(name: str, how: Settings) -> Settings:
    """Arguments that all trainers of transformers and TRL share."""
    every = how.get("eval_every")
    return {
        "output_dir": name, "per_device_train_batch_size": how.get("batch", 8), "max_steps": how["max_steps"],
        "gradient_accumulation_steps": how.get("accumulation", 1), "learning_rate": how["learning_rate"],
        "warmup_steps": how.get("warmup_steps", max(1, how["max_steps"] // 15)), "logging_steps": how.get("logging_steps", 1),
        "lr_scheduler_type": how.get("lr_scheduler_type", "cosine"),
        "lr_scheduler_kwargs": how.get("lr_scheduler_kwargs"), "report_to": [how["report"]] if "report" in how else [],
        "use_cpu": True, "save_strategy": "no", "disable_tqdm": True, "seed": how.get("seed", 1), "bf16": False,
        "eval_strategy": "steps" if every else "no", "eval_steps": every, "per_device_eval_batch_size": 16,
        **({"optim": how["optim"]} if "optim" in how else {}),
    }  # fmt: skip


def mean_loss(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
    """A loss as many write it for `compute_loss_func`: it leaves the number of items of the whole update out, and the trainer
    does not divide by the accumulated micro-batches, so that their losses and gradients add up."""
    return _shifted(outputs, labels, 1)


def _shifted(outputs: Any, labels: Any, by: int) -> Any:
    """The mean cross-entropy with targets that stand `by` tokens after the one that is read."""
    logits = outputs.logits[:, : labels.shape[1] - by].flatten(0, 1)
    return torch.nn.functional.cross_entropy(logits, labels[:, by:].flatten())


def not_shifted(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
    """A loss whose targets are the tokens that are read."""
    return _shifted(outputs, labels, 0)


def shifted_twice(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
    """A loss whose targets are the tokens after the next ones."""
    return _shifted(outputs, labels, 2)


def random_targets(outputs: Any, labels: Any, num_items_in_batch: Any = None) -> Any:
    """A loss half of whose targets are drawn at random."""
    drawn = torch.randint_like(labels, outputs.logits.shape[-1])
    return _shifted(outputs, torch.where(torch.rand(labels.shape) < 0.5, drawn, labels), 1)


LOSSES: dict[str, Callable[..., Any]] = {
    "mean": mean_loss, "not shifted": not_shifted, "shifted twice": shifted_twice, "random targets": random_targets,
}  # fmt: skip


def huggingface(case: dict[str, Any]) -> Any:
    """transformers.Trainer on blocks of text."""
    from transformers import Trainer, TrainingArguments

    how, model = case["how"], start(case)
    training, validation = blocks(how)
    more: Settings = {"compute_loss_func": LOSSES[how["own_loss"]]} if "own_loss" in how else {}
    if "learned" in how:
        for name, tensor in model.named_parameters():
            tensor.requires_grad_(how["learned"] in name)
    if how.get("optimizer_of_copy"):
        more["optimizers"] = (torch.optim.AdamW(copy.deepcopy(model).parameters(), lr=how["learning_rate"]), None)
    if "horizon" in how:
        from transformers import get_linear_schedule_with_warmup

        optimizer = torch.optim.AdamW(model.parameters(), lr=how["learning_rate"])
        more["optimizers"] = (optimizer, get_linear_schedule_with_warmup(optimizer, 5, how["horizon"]))
    trainer = Trainer(
        model, TrainingArguments(**arguments(case["name"], how)), train_dataset=training, eval_dataset=validation, **more
    )
    return trainer


def _adapter(how: Settings) -> Any:
    if "lora" not in how:
        return None
    from peft import LoraConfig

    return LoraConfig(r=how["lora"], lora_alpha=2 * how["lora"], target_modules="all-linear", task_type="CAUSAL_LM")


def sft(case: dict[str, Any]) -> Any:
    """TRL's SFTTrainer on questions and answers."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    how = case["how"]
    rows = alpaca() if how["rows"] == "alpaca" else word_rows()
    if how.get("masked"):
        words = tokenizer()
        ids = [words(row["prompt"] + row["completion"]).input_ids[:BLOCK] for row in rows]
        rows = [{"input_ids": one, "completion_mask": [0] * len(one)} for one in ids]
    if how.get("no_end"):  # TRL adds an end token to what it tokenizes itself
        words = tokenizer()
        parts = [(words(row["prompt"]).input_ids, words(row["completion"]).input_ids) for row in rows]
        rows = [{"input_ids": a + b, "completion_mask": [0] * len(a) + [1] * len(b)} for a, b in parts]
    settings = arguments(case["name"], how)
    held, rows = rows[:60], how.get("copies", 1) * rows[60 : 60 + how.get("count", len(rows))]
    return SFTTrainer(
        start(case), SFTConfig(**settings, max_length=how.get("longest", BLOCK), completion_only_loss=how.get("masked")),
        train_dataset=Dataset.from_list(rows),
        eval_dataset=Dataset.from_list(held), processing_class=tokenizer(), peft_config=_adapter(how),
    )  # fmt: skip


def dpo(case: dict[str, Any]) -> Any:
    """TRL's DPOTrainer on pairs of answers."""
    from datasets import Dataset
    from trl import DPOConfig, DPOTrainer

    how = case["how"]
    tree = json.loads((DATA / "llamafactory" / "dpo_en_demo.json").read_text(encoding="utf-8"))
    names = ("rejected", "chosen") if how.get("swapped") else ("chosen", "rejected")
    rows = [
        {"prompt": row["conversations"][-1]["value"][-60:] + "\n", "chosen": row[names[0]]["value"][:120],
         "rejected": row[names[0 if how.get("equal") else 1]]["value"][:120]}
        for row in tree
    ]  # fmt: skip
    rows = rows[: how.get("count", len(rows))]
    settings = arguments(case["name"], {"batch": 4, **how})
    return DPOTrainer(
        start(case), args=DPOConfig(**settings, beta=how["beta"], max_length=64, loss_type=how.get("loss_type", "sigmoid")),
        train_dataset=Dataset.from_list(rows), processing_class=tokenizer(),
    )  # fmt: skip


def word_reward(completions: list[str], **named: Any) -> list[float]:
    """1 for an answer that is the word asked for, and a part of it for the share of letters that are right."""
    answers = named["answer"]
    return [
        sum(a == b for a, b in zip(given.strip(), answer, strict=False)) / max(len(given.strip()), len(answer))
        for given, answer in zip(completions, answers, strict=True)
    ]


def constant_reward(completions: list[str], **named: Any) -> list[float]:
    """1 for every answer."""
    return [1.0 for _ in completions]


def letter_reward(completions: list[str], **named: Any) -> list[float]:
    """The share of an answer's letters that are an `e`."""
    return [given.count("e") / max(1, len(given)) for given in completions]


REWARDS: dict[str, Callable[..., list[float]]] = {"word": word_reward, "constant": constant_reward, "letter": letter_reward}


def grpo(case: dict[str, Any]) -> Any:
    """TRL's GRPOTrainer on questions whose answer is one word."""
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    how = case["how"]
    rows = [{"prompt": row["prompt"], "answer": row["completion"]} for row in word_rows(400)]
    settings = arguments(case["name"], {"batch": 16, **how})
    longest = how.get("longest", 12)
    config = GRPOConfig(**settings, num_generations=8, max_completion_length=longest, beta=how.get("kl", 0.0), temperature=1.0)
    return GRPOTrainer(
        start(case), reward_funcs=REWARDS[how["reward"]], args=config, train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer(),
    )  # fmt: skip


def trained(make: Callable[[dict[str, Any]], Any]) -> Callable[[dict[str, Any]], None]:
    """Train with one of transformers' trainers, and keep what it keeps: its state, the configuration of the model, its card."""

    def run(case: dict[str, Any]) -> None:
        trainer = make(case)
        trainer.train()
        folder = Path(case["name"])
        trainer.save_state()
        trainer.save_model(str(folder / "model"))
        if type(trainer).__module__.startswith("trl"):
            trainer.create_model_card()  # as it does with each checkpoint
        for name in ("config.json", "adapter_config.json", "README.md"):
            if (folder / "model" / name).is_file():
                shutil.copy(folder / "model" / name, folder / name)
        if "report" in case["how"]:
            file = next(folder.rglob("events.out.tfevents.*"))
            (folder / "events").mkdir()
            shutil.move(file, folder / "events" / "events.out.tfevents.1")

    return run


def litgpt(case: dict[str, Any]) -> None:
    """litgpt's pretraining."""
    from litgpt import Config
    from litgpt.args import EvalArgs, LogArgs, TrainArgs
    from litgpt.data import DataModule
    from litgpt.pretrain import setup
    from torch.utils.data import DataLoader

    how = case["how"]
    training, validation = blocks({})

    class Blocks(DataModule):
        def connect(self, tokenizer: Any = None, batch_size: int = 1, max_seq_length: int = -1) -> None:
            self.batch = batch_size

        def train_dataloader(self) -> Any:
            rows = torch.tensor(training["input_ids"])
            return DataLoader(rows, batch_size=self.batch, shuffle=True)  # pyright: ignore[reportArgumentType]

        def val_dataloader(self) -> Any:
            rows = torch.tensor(validation["input_ids"])
            return DataLoader(rows, batch_size=self.batch)  # pyright: ignore[reportArgumentType]

    shape = Config(
        name="small", block_size=BLOCK - 1, vocab_size=6400, padded_vocab_size=6400, n_layer=LAYERS, n_head=4, n_embd=WIDTH,
        bias=False, norm_class_name="RMSNorm", mlp_class_name="LLaMAMLP", intermediate_size=160,
    )  # fmt: skip
    folder, batch = Path(case["name"]), 16
    sys.argv = ["litgpt", "pretrain", "small"]  # it keeps its command line beside the checkpoint
    setup(
        "small", model_config=shape, out_dir=folder / "out", precision="32-true", data=Blocks(),
        train=TrainArgs(
            global_batch_size=batch, micro_batch_size=batch // 2, log_interval=1, max_tokens=how["steps"] * batch * (BLOCK - 1),
            lr_warmup_steps=8, min_lr=how["learning_rate"] / 10, max_norm=1.0, tie_embeddings=False, save_interval=None,
        ),
        eval=EvalArgs(interval=30, max_iters=4), log=LogArgs(),
        optimizer={"class_path": "torch.optim.AdamW", "init_args": {"lr": how["learning_rate"], "weight_decay": 0.1}},
        devices=1, logger_name="csv",
    )  # fmt: skip
    shutil.copy(next((folder / "out").rglob("metrics.csv")), folder / "metrics.csv")


def llamafactory(case: dict[str, Any]) -> None:
    """LLaMA-Factory's fine-tuning, as its command line runs it."""
    from llamafactory.train.tuner import run_exp

    how, folder = case["how"], Path(case["name"])
    model = folder / "start"
    shutil.copytree(Path(case["after"]) / "model", model)
    tokenizer().save_pretrained(model)
    run_exp(
        {
            "model_name_or_path": str(model), "stage": how["stage"], "do_train": True, "finetuning_type": "full",
            "dataset_dir": "llamafactory-data", "template": "default", "cutoff_len": 64, "overwrite_cache": True,
            "dataset": {"sft": "alpaca_en_demo", "dpo": "dpo_en_demo"}[how["stage"]], "output_dir": str(folder / "out"),
            "per_device_train_batch_size": 4, "gradient_accumulation_steps": 2, "learning_rate": how["learning_rate"],
            "max_steps": how["max_steps"], "lr_scheduler_type": "cosine", "warmup_steps": 6, "logging_steps": 2,
            "save_strategy": "no", "report_to": "none", "use_cpu": True, "bf16": False, "plot_loss": False, "seed": 1,
            "disable_gradient_checkpointing": True,
        }
    )  # fmt: skip
    for name in ("trainer_log.jsonl", "all_results.json", "config.json"):
        if (folder / "out" / name).is_file():
            shutil.copy(folder / "out" / name, folder / name)


RUNS: dict[str, Callable[[dict[str, Any]], None]] = {
    "hf": trained(huggingface),
    "trl_sft": trained(sft),
    "trl_dpo": trained(dpo),
    "trl_grpo": trained(grpo),
    "litgpt": litgpt,
    "llamafactory": llamafactory,
}
"""Name of a trainer → what runs a case with it."""


@contextlib.contextmanager
def output_to(file: Path) -> Iterator[None]:
    """Send standard output to a file."""
    with file.open("w", encoding="utf-8") as opened, contextlib.redirect_stdout(opened):
        yield


def main() -> None:
    """Run the cases of the file, one after the other; one that fails is told and does not stop the others."""
    for case in json.loads(Path(sys.argv[3]).read_text(encoding="utf-8")):
        shutil.rmtree(case["name"], ignore_errors=True)
        Path(case["name"]).mkdir()
        began = time.process_time()
        try:
            with output_to(Path(case["name"]) / "train.log"):
                RUNS[case["trainer"]](case)
        except Exception:  # a library that does not run here is reported, and the next case is tried
            Path(case["name"], "failed").write_text(traceback.format_exc(), encoding="utf-8")
        print(f"{case['name']}: {time.process_time() - began:.1f} CPU s", flush=True)


if __name__ == "__main__":
    DATA = Path(sys.argv[2]).resolve()
    import os

    os.chdir(sys.argv[1])
    main()
