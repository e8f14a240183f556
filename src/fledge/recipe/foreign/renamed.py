"""Earlier names of fledge's own keys and values, section by section, with their present names."""

from typing import Any

from pydantic import BaseModel

from fledge.recipe.schema import (
    AugmentConfig,
    BatchConfig,
    BatchWarmupConfig,
    CheckpointConfig,
    CleanConfig,
    DataConfig,
    EMAConfig,
    EvaluationConfig,
    GuardsConfig,
    LoggingConfig,
    MoeConfig,
    OptimizerConfig,
    PreferenceStage,
    PromptTestsConfig,
    Recipe,
    RuntimeConfig,
    ScheduleConfig,
    Source,
    StageBase,
)
from fledge.recipe.schema_keys import Models
from fledge.recipe.sections.guards import (
    DiskGuard,
    DivergenceGuard,
    GradSpikeGuard,
    LossSpikeGuard,
    NonFiniteGuard,
    PassRateGuard,
    RepetitionGuard,
    ThroughputGuard,
    TimeGuard,
    ValidationIncreaseGuard,
)

RENAMED: dict[type[BaseModel], dict[str, str]] = {
    Recipe: {"machine": "runtime", "built": "built_dataset", "samples": "generation_samples"},
    MoeConfig: {
        "experts": "num_experts",
        "top_k": "num_experts_per_tok",
        "shared_experts": "num_shared_experts",
        "normalise_top_k": "norm_topk_prob",
        "balance": "load_balancing",
        "balance_weight": "router_aux_loss_coef",
        "z_weight": "router_z_loss_coef",
        "bias_rate": "bias_update_rate",
    },
    RuntimeConfig: {
        "checkpointing": "activation_checkpointing",
        "memory": "memory_budget",
        "parallel": "parallelism",
        "probe": "autotune",
        "workers": "data_workers",
    },
    LoggingConfig: {"every": "every_steps"},
    StageBase: {
        "start": "init_from",
        "length": "duration",
        "averaging": "ema",
        "early_stop": "early_stopping",
        "regression": "prompt_tests",
        "keep": "select_checkpoint",
    },
    PreferenceStage: {"loss": "loss_type", "sft_weight": "sft_loss_weight", "reference": "precompute_ref_log_probs"},
    DataConfig: {
        "context": "max_seq_len",
        "long_conversations": "truncation",
        "train_on": "train_on_turns",
        "max_dropped": "max_drop_fraction",
    },
    Source: {"first_rows": "max_samples", "share": "token_fraction"},
    CleanConfig: {"contamination": "decontaminate", "evaluation": "decontaminate_against"},
    AugmentConfig: {"tail_truncation": "drop_last_turns"},
    BatchConfig: {"micro": "micro_batch_size", "accumulation": "gradient_accumulation_steps", "tokens": "tokens_per_step"},
    BatchWarmupConfig: {"start": "initial_accumulation_steps", "over": "ramp_steps"},
    OptimizerConfig: {"lr": "learning_rate", "decay": "weight_decay_on", "clip": "max_grad_norm"},
    ScheduleConfig: {"decay": "decay_fraction"},
    EMAConfig: {"start": "start_fraction"},
    EvaluationConfig: {"every": "every_steps", "max_rows": "max_packed_rows"},
    CheckpointConfig: {"every": "every_steps", "keep": "keep_last"},
    PromptTestsConfig: {"every": "every_steps"},
    GuardsConfig: {"validation_rise": "validation_increase"},
    NonFiniteGuard: {"in_a_row": "consecutive", "then": "on_rollback"},
    GradSpikeGuard: {"times": "factor", "then": "on_rollback"},
    LossSpikeGuard: {"times": "factor", "then": "on_rollback"},
    DivergenceGuard: {"rise": "min_increase", "then": "on_rollback"},
    ValidationIncreaseGuard: {"times": "patience", "rise": "min_increase"},
    PassRateGuard: {"below": "min_pass_rate"},
    RepetitionGuard: {"above": "max_repetition"},
    ThroughputGuard: {"below": "min_speed_ratio"},
    DiskGuard: {"free": "min_free"},
    TimeGuard: {"after": "max_time"},
}

RENAMED_VALUES: dict[tuple[type[BaseModel], str], dict[Any, Any]] = {
    (DataConfig, "truncation"): {"recent": "keep_recent", "truncate": "keep_start"},
    (MoeConfig, "load_balancing"): {"loss": "aux_loss"},
    (RuntimeConfig, "autotune"): {"again": "refresh"},
    (PreferenceStage, "precompute_ref_log_probs"): {"precomputed": True, "live": False},
}


def new_name(models: Models, name: str) -> str | None:
    """The present name of a key that one of these sections had earlier; None if there was no such key."""
    for model in models:
        for owner in model.__mro__:
            if name in RENAMED.get(owner, {}):
                return RENAMED[owner][name]
    return None


def new_value(models: Models, name: str, value: Any) -> Any:
    """The present name of a value of this key; the value itself if it was not renamed."""
    for model in models:
        values = RENAMED_VALUES.get((model, name), {})
        if isinstance(value, str) and value in values:
            return values[value]
    return value
