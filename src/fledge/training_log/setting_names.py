"""Names of settings: what other trainers and people call them, and how their values are read."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from fledge.recipe.foreign.adapters import DROPOUTS, RANKS
from fledge.recipe.foreign.answer import boolean, word
from fledge.recipe.foreign.learning import (
    ACCUMULATION,
    DEVICES,
    EPOCHS,
    GLOBAL_BATCH,
    LEARNING_RATE,
    LENGTH,
    MICRO,
    OPTIMIZER,
    SCHEDULE,
    SCHEDULES,
    STEPS,
    TOKENS,
    TOKENS_PER_STEP,
    WARMUP_SHARES,
    WARMUP_STEPS,
)
from fledge.training_log.numbers import parse_number

Converter = Callable[[Any], Any]
OWN_COURSE = ("cosine_with_restarts", "inverse_sqrt", "reduce_lr_on_plateau")
"""Schedules that a recipe replaces by the nearest one of fledge, and whose rates are not those of that one."""
BILLION = {"k": 1e3, "m": 1e6, "b": 1e9}


def as_float(value: Any) -> float | None:
    """The value as a number, also from a text such as `1e-4`, `80,000` or `124.5M`; None for others."""
    if isinstance(value, bool):
        return None
    if isinstance(value, int | float):
        return float(value)
    found = parse_number(value) if isinstance(value, str) else None
    return found.value if found else None


def _positive(value: Any) -> float | None:
    """A number above 0: trainers write -1 or 0 for what is not set."""
    found = as_float(value)
    return found if found is not None and found > 0 and math.isfinite(found) else None


def _text(value: Any) -> str | None:
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    return value.strip() or None if isinstance(value, str) else None


def _schedule(value: Any) -> str | None:
    if not isinstance(value, str) or not value.strip():
        return None
    name = word(value).rpartition(".")[2]
    known = SCHEDULES.get(name)
    return known[0] if known and name not in OWN_COURSE else name


def _optimizer(value: Any) -> str | None:
    return word(value).rpartition(".")[2] or None if isinstance(value, str) else None


def _precision(value: Any) -> str | None:
    name = word(value).rpartition(".")[2].replace("-mixed", "").replace("-true", "")
    table = {
        **dict.fromkeys(("bf16", "bfloat16", "16-bit bf"), "bf16"),
        **dict.fromkeys(("fp16", "float16", "16", "half"), "fp16"),
        **dict.fromkeys(("fp32", "float32", "32", "no", "none", "full"), "fp32"),
    }
    return table.get(name)


@dataclass(frozen=True)
class SettingName:
    """A field of TrainingSettings. `names`: what others call it, in plain form, the most telling first. `convert`: from the
    value as it was written to that of the field, None where it says nothing."""

    field: str
    names: tuple[str, ...]
    convert: Converter = _positive


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


SETTINGS: tuple[SettingName, ...] = (
    SettingName("learning_rate", (*LEARNING_RATE, "optimizer_lr", "学习率", "初始学习率", "最大学习率"), as_float),
    SettingName("min_learning_rate", _words("min_lr min_learning_rate lr_min eta_min end_lr final_lr lr_end 最小学习率"),
        as_float),
    SettingName("schedule", (*SCHEDULE, "学习率调度", "调度器"), _schedule),
    SettingName("warmup_steps", (*WARMUP_STEPS, "warmup", "num_warmup_updates", "预热步数", "热身步数"), as_float),
    SettingName("steps", (*STEPS, "total_optimization_steps", "总步数", "最大步数")),
    SettingName("epochs", (*EPOCHS, "训练轮数", "轮数", "总轮数")),
    SettingName("rows", _words("""num_examples num_train_examples train_samples num_train_samples train_size dataset_size
        num_samples num_rows 样本数 训练样本数 训练集大小""")),
    SettingName("batch_rows", (*GLOBAL_BATCH, *_words("total_train_batch_size train_global_batch_size 总批大小 有效批大小"))),
    SettingName("batch_tokens", (*TOKENS_PER_STEP, "tokens_per_iteration_will_be", "tokens_per_update")),
    SettingName("micro_batch_rows", (*MICRO, "instantaneous_batch_size_per_device", "批大小", "批次大小", "每卡批大小")),
    SettingName("accumulation_steps", (*ACCUMULATION, "gradient_accumulation_steps_per_update", "梯度累积", "梯度累积步数")),
    SettingName("processes", (*DEVICES, *_words("gpu_count n_procs ddp_world_size num_gpus_per_node 卡数 显卡数 进程数"))),
    SettingName("context", (*LENGTH, "序列长度", "最大长度", "max_position_embeddings")),
    SettingName("vocab_size", _words("vocab_size n_vocab padded_vocab_size vocabulary_size 词表大小")),
    SettingName("hidden_size", _words("hidden_size n_embd d_model dim n_embed hidden_dim model_dim 隐藏层大小")),
    SettingName("parameters", _words("""num_parameters total_parameters parameters total_params all_params n_params
        number_of_parameters num_params 参数量""")),
    SettingName("trained_parameters", _words("""trainable_parameters number_of_trainable_parameters trainable_params
        num_trainable_parameters trained_parameters number_of_trainable_params 可训练参数""")),
    SettingName("tokens", (*TOKENS, "total_training_tokens", "总词元数")),
    SettingName("precision", _words("mixed_precision precision dtype torch_dtype amp_dtype compute_dtype 精度"), _precision),
    SettingName("optimizer", (*OPTIMIZER, "优化器"), _optimizer),
    SettingName("weight_decay", _words("weight_decay wd optimizer_weight_decay 权重衰减"), as_float),
    SettingName("max_grad_norm", _words("""max_grad_norm grad_clip gradient_clipping gradient_clip_val clip_grad clip_grad_norm
        max_norm grad_clip_norm 梯度裁剪"""), as_float),
    SettingName("adapter_rank", (*RANKS, "adapter_rank")),
    SettingName("dropout", (*_words("dropout dropout_rate hidden_dropout resid_pdrop"), *DROPOUTS), as_float),
    SettingName("beta", _words("dpo_beta pref_beta beta kl_coef kl_coeff"), as_float),
    SettingName("loss_type", _words("pref_loss loss_type dpo_loss"), _text),
    SettingName("num_generations", _words("num_generations num_return_sequences rollout_n group_size n_samples_per_prompt")),
    SettingName("seed", _words("seed random_seed global_seed 随机种子"), as_float),
    SettingName("early_stopping_patience", _words("early_stopping_patience early_stop_patience patience 早停耐心")),
)  # fmt: skip
BY_NAME: dict[str, SettingName] = {name: one for one in reversed(SETTINGS) for name in one.names}
WARMUP_SHARE_NAMES = (*WARMUP_SHARES, "warmup_share", "warmup_percent", "预热比例")
SWITCHED_PRECISION = ("bf16", "fp16")
"""Switches of Hugging Face: true means this precision."""
NO_VALUE = object()
CHOSEN_SECTION = "chosen section"
"""Key of `TrainingSettings.other`: the stage, class or section that was asked for by name and found."""

_JOIN = re.compile(r"[\s\-]+")


def setting_key(name: str) -> str:
    """The name of a setting in plain form: the last part of a dotted one, lower case, words joined by `_`, no brackets."""
    text = re.sub(r"[(（].*?[)）]", " ", str(name)).strip().strip("'\"`*").lstrip("-").rpartition(".")[2]
    return _JOIN.sub("_", text.strip().lower()).rstrip("_")


def flat(tree: Mapping[Any, Any], prefix: str = "") -> dict[str, Any]:
    """A nested mapping as one: names of inner keys are joined with a dot."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found.update(flat(value, f"{name}."))
        else:
            found[name] = value
    return found


def switch(value: Any) -> bool | None:
    """The value as true or false; None for others."""
    return boolean(value)


def literal(text: str) -> Any:
    """The value of a text: a number, a truth or the text itself without its quotes."""
    text = text.strip().rstrip(",").strip()
    if len(text) > 1 and text[0] == text[-1] and text[0] in "'\"":
        return text[1:-1]
    words = {"true": True, "false": False, "none": None, "null": None}
    if text.lower() in words:
        return words[text.lower()]
    found = parse_number(text)
    return found.value if found else text
