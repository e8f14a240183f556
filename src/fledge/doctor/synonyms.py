"""The keys of other trainers for the keys of a patch, so that a prescription can be followed where the run was made."""

import re
from collections.abc import Mapping
from typing import Any

from fledge.diagnosis import Case
from fledge.recipe.foreign.dialects import detect_trainer

HUGGING_FACE = "Hugging Face"
KEYS: dict[str, dict[str, str]] = {
    HUGGING_FACE: {
        "optimizer.learning_rate": "learning_rate", "optimizer.weight_decay": "weight_decay",
        "optimizer.max_grad_norm": "max_grad_norm", "optimizer.name": "optim", "schedule.warmup": "warmup_ratio",
        "schedule.name": "lr_scheduler_type", "schedule.min_lr": "lr_scheduler_kwargs.min_lr",
        "batch.micro_batch_size": "per_device_train_batch_size", "duration": "num_train_epochs",
        "batch.gradient_accumulation_steps": "gradient_accumulation_steps", "data.max_seq_len": "max_length",
        "beta": "beta", "loss_type": "loss_type", "early_stopping.patience": "early_stopping_patience",
        "evaluation.every_steps": "eval_steps", "runtime.precision": "(bf16, fp16)", "adapter.r": "r",
        "adapter.lora_alpha": "lora_alpha", "answers_per_prompt": "num_generations",
    },
    "LLaMA-Factory": {
        "data.max_seq_len": "cutoff_len", "beta": "pref_beta", "loss_type": "pref_loss", "adapter.r": "lora_rank",
        "sft_loss_weight": "pref_ftx", "data.validation": "val_size",
    },
    "ChatLM-mini": {
        "optimizer.learning_rate": "learn_rate", "batch.micro_batch_size": "batch_size_per_gpu", "duration": "epochs",
        "schedule.warmup": "warmup_steps", "data.max_seq_len": "max_seq_len", "runtime.precision": "mixed_precision",
    },
    "minimind": {
        "optimizer.learning_rate": "learning_rate", "batch.micro_batch_size": "batch_size",
        "batch.gradient_accumulation_steps": "accumulation_steps", "optimizer.max_grad_norm": "grad_clip", "duration": "epochs",
        "data.max_seq_len": "max_seq_len", "runtime.precision": "dtype", "schedule.warmup": "warmup_iters", "beta": "beta",
    },
    "nanoGPT": {
        "optimizer.learning_rate": "learning_rate", "schedule.min_lr": "min_lr", "schedule.warmup": "warmup_iters",
        "batch.micro_batch_size": "batch_size", "batch.gradient_accumulation_steps": "gradient_accumulation_steps",
        "optimizer.max_grad_norm": "grad_clip", "duration": "max_iters", "data.max_seq_len": "block_size",
    },
    "LitGPT": {
        "optimizer.learning_rate": "optimizer.init_args.lr", "schedule.warmup": "train.lr_warmup_steps",
        "batch.micro_batch_size": "train.micro_batch_size", "duration": "train.epochs", "schedule.min_lr": "train.min_lr",
        "optimizer.max_grad_norm": "train.max_norm", "data.max_seq_len": "train.max_seq_length",
    },
    "axolotl": {
        "data.max_seq_len": "sequence_len", "batch.micro_batch_size": "micro_batch_size", "duration": "num_epochs",
        "adapter.r": "lora_r", "data.validation": "val_set_size",
    },
    "torchtune": {
        "optimizer.learning_rate": "optimizer.lr", "schedule.warmup": "lr_scheduler.num_warmup_steps", "duration": "epochs",
        "batch.micro_batch_size": "batch_size", "optimizer.max_grad_norm": "clip_grad_norm",
        "data.max_seq_len": "tokenizer.max_seq_len",
    },
}  # fmt: skip
"""Trainer → key of a stage of fledge → its key there. What a trainer does not name itself has the name of Hugging Face."""
SOURCES = {
    "llama": "LLaMA-Factory", "minimind": "minimind", "nanogpt": "nanoGPT", "litgpt": "LitGPT", "torchtune": "torchtune",
    "hugging": HUGGING_FACE, "trl": HUGGING_FACE,
}  # fmt: skip
"""A word in the name of a kind of log → the trainer that writes it."""
COUNTED_IN_STEPS = frozenset({"warmup_steps", "warmup_iters", "train.lr_warmup_steps", "lr_scheduler.num_warmup_steps"})
STAGE = re.compile(r"^stages\.[^.]+\.")


def stage_key(key: str) -> str:
    """The key below its stage: `optimizer.learning_rate` for `stages.sft.optimizer.learning_rate`."""
    return STAGE.sub("", key)


def dialect_of(case: Case) -> str:
    """The trainer whose names a prescription uses: that of the settings' own keys, else that of the kind of log."""
    own = [*map(str, case.settings.other), *(words for text in case.settings.origin.values() for words in _words(text))]
    found = detect_trainer(own)
    if found in KEYS:
        return found
    source = case.log.source.lower()
    return next((trainer for word, trainer in SOURCES.items() if word in source), HUGGING_FACE)


def _words(text: str) -> list[str]:
    return re.findall(r"[A-Za-z_]{2,}", text)


def in_dialect(patch: Mapping[str, Any], case: Case) -> list[str]:
    """A patch as lines `key = value` in the names of the trainer of the case; what it has no key for keeps fledge's name."""
    trainer = dialect_of(case)
    names = {**KEYS[HUGGING_FACE], **KEYS.get(trainer, {})}
    return [_line(stage_key(key), value, names, case) for key, value in patch.items()]


def _line(key: str, value: Any, names: Mapping[str, str], case: Case) -> str:
    name = names.get(key)
    if name is None:
        return f"{key} (in fledge) = {value}"
    steps = case.settings.steps
    if name in COUNTED_IN_STEPS and isinstance(value, float) and value < 1 and steps:
        value = round(value * steps)
    if key == "duration" and isinstance(value, str):
        value = value.replace(" epochs", "").replace(" epoch", "")
    return f"{name} = {value}"
