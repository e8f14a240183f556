"""The keys of other trainers for the keys of a patch, so that a prescription can be followed where the run was made."""

import re
from collections.abc import Mapping
from typing import Any

from fledge.diagnosis import Case
from fledge.diagnosis.facts import facts_of
from fledge.recipe.foreign.dialects import detect_trainer
from fledge.recipe.units import Duration

HUGGING_FACE = "Hugging Face"
KEYS: dict[str, dict[str, str]] = {
    HUGGING_FACE: {
        "optimizer.learning_rate": "learning_rate", "optimizer.weight_decay": "weight_decay",
        "optimizer.max_grad_norm": "max_grad_norm", "optimizer.name": "optim", "schedule.warmup": "warmup_ratio",
        "schedule.name": "lr_scheduler_type", "schedule.min_lr": "lr_scheduler_kwargs.min_lr",
        "batch.micro_batch_size": "per_device_train_batch_size",
        "batch.gradient_accumulation_steps": "gradient_accumulation_steps", "data.max_seq_len": "max_length",
        "beta": "beta", "loss_type": "loss_type", "early_stopping.patience": "early_stopping_patience",
        "evaluation.every_steps": "eval_steps", "runtime.precision": "(bf16, fp16)", "adapter.r": "r",
        "adapter.lora_alpha": "lora_alpha", "rollout.num_generations": "num_generations",
        "rollout.max_new_tokens": "max_completion_length",
    },
    "LLaMA-Factory": {
        "data.max_seq_len": "cutoff_len", "beta": "pref_beta", "loss_type": "pref_loss", "adapter.r": "lora_rank",
        "sft_loss_weight": "pref_ftx", "data.validation": "val_size",
    },
    "ChatLM-mini": {
        "optimizer.learning_rate": "learn_rate", "batch.micro_batch_size": "batch_size_per_gpu",
        "schedule.warmup": "warmup_steps", "data.max_seq_len": "max_seq_len", "runtime.precision": "mixed_precision",
    },
    "minimind": {
        "optimizer.learning_rate": "learning_rate", "batch.micro_batch_size": "batch_size",
        "batch.gradient_accumulation_steps": "accumulation_steps", "optimizer.max_grad_norm": "grad_clip",
        "data.max_seq_len": "max_seq_len", "runtime.precision": "dtype", "schedule.warmup": "warmup_iters", "beta": "beta",
    },
    "nanoGPT": {
        "optimizer.learning_rate": "learning_rate", "schedule.min_lr": "min_lr", "schedule.warmup": "warmup_iters",
        "batch.micro_batch_size": "batch_size", "batch.gradient_accumulation_steps": "gradient_accumulation_steps",
        "optimizer.max_grad_norm": "grad_clip", "data.max_seq_len": "block_size",
    },
    "LitGPT": {
        "optimizer.learning_rate": "optimizer.init_args.lr", "schedule.warmup": "train.lr_warmup_steps",
        "batch.micro_batch_size": "train.micro_batch_size", "schedule.min_lr": "train.min_lr",
        "optimizer.max_grad_norm": "train.max_norm", "data.max_seq_len": "train.max_seq_length",
    },
    "axolotl": {
        "data.max_seq_len": "sequence_len", "batch.micro_batch_size": "micro_batch_size",
        "adapter.r": "lora_r", "data.validation": "val_set_size",
    },
    "torchtune": {
        "optimizer.learning_rate": "optimizer.lr", "schedule.warmup": "lr_scheduler.num_warmup_steps",
        "batch.micro_batch_size": "batch_size", "optimizer.max_grad_norm": "clip_grad_norm",
        "data.max_seq_len": "tokenizer.max_seq_len",
    },
}  # fmt: skip
"""Trainer → key of a stage of fledge → its key there. What a trainer does not name itself has the name of Hugging Face."""
DURATIONS: dict[str, dict[str, str]] = {
    HUGGING_FACE: {"steps": "max_steps", "epochs": "num_train_epochs"},
    "ChatLM-mini": {"epochs": "epochs"},
    "minimind": {"epochs": "epochs"},
    "nanoGPT": {"steps": "max_iters"},
    "LitGPT": {"steps": "train.max_steps", "epochs": "train.epochs", "tokens": "train.max_tokens"},
    "axolotl": {"steps": "max_steps", "epochs": "num_epochs"},
    "torchtune": {"epochs": "epochs"},
}
"""Trainer → unit of a duration → the key that counts in it; of another trainer those of Hugging Face. The first one is written
where the trainer has no key for a unit."""
SOURCES = {
    "llama": "LLaMA-Factory", "minimind": "minimind", "nanogpt": "nanoGPT", "litgpt": "LitGPT", "torchtune": "torchtune",
    "hugging": HUGGING_FACE, "trl": HUGGING_FACE,
}  # fmt: skip
"""A word in the name of a kind of log → the trainer that writes it."""
COUNTED_IN_STEPS = frozenset({"warmup_steps", "warmup_iters", "train.lr_warmup_steps", "lr_scheduler.num_warmup_steps"})
DURATION = "duration"
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
    units = DURATIONS.get(trainer, DURATIONS[HUGGING_FACE])
    lines = []
    for key, value in patch.items():
        own = stage_key(key)
        lines.append(_duration_line(str(value), units, case) if own == DURATION else _line(own, value, names, case))
    return lines


def _duration_line(text: str, units: Mapping[str, str], case: Case) -> str:
    """A duration under the key that counts in its unit; where the trainer has none, in whole numbers of a unit that it has, by
    the updates of an epoch and their tokens. In the words of fledge where these are not known."""
    duration, facts = Duration.parse(text), facts_of(case)
    if duration.unit in units:
        return f"{units[duration.unit]} = {str(duration).split()[0]}"
    of_token = 1 / facts.batch_tokens if facts.batch_tokens else None
    updates = {"epochs": facts.updates_per_epoch, "steps": 1.0, "tokens": of_token}
    own = updates[duration.unit]
    for unit, name in units.items():
        if own and (each := updates[unit]):
            return f"{name} = {max(1, round(duration.amount * own / each))}"
    return f"{DURATION} (in fledge) = {text}"


def _line(key: str, value: Any, names: Mapping[str, str], case: Case) -> str:
    name = names.get(key)
    if name is None:
        return f"{key} (in fledge) = {value}"
    steps = case.settings.steps
    if name in COUNTED_IN_STEPS and isinstance(value, float) and value < 1 and steps:
        value = round(value * steps)
    return f"{name} = {value}"
