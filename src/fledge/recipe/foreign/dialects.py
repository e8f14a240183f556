"""Which trainer a configuration is of, and which stages it is about."""

import re
from collections.abc import Collection, Mapping
from typing import Any

from fledge.recipe.foreign.answer import Context, name_list, word
from fledge.recipe.foreign.methods import KIND_KEYS, PREFERENCE_KEYS, PRETRAIN_KEYS, SFT_KEYS, named_kind
from fledge.recipe.foreign.sizes import PATHS

CHARACTERISTIC_KEYS: dict[str, frozenset[str]] = {  # keys that one trainer has, and the others have not
    "LLaMA-Factory": frozenset(
        name_list("""
    finetuning_type cutoff_len stage dataset_dir pref_beta pref_loss pref_ftx preprocessing_num_workers plot_loss
    val_size lora_target neat_packing mask_history overwrite_cache template interleave_probs mix_strategy
    """)
    ),
    "TRL": frozenset(
        name_list("""
    dataset_name assistant_only_loss completion_only_loss max_prompt_length max_completion_length
    precompute_ref_log_probs dataset_train_split dataset_test_split dataset_num_proc packing_strategy
    lora_target_modules rpo_alpha use_peft attn_implementation dataset_text_field chat_template_path
    precompute_ref_batch_size sync_ref_model dataset_config
    """)
    ),
    "axolotl": frozenset(
        name_list("""
    base_model sequence_len sample_packing val_set_size adapter datasets pad_to_sequence_len train_on_inputs
    dataset_prepared_path evals_per_epoch saves_per_epoch eval_sample_packing lora_model_dir rl
    """)
    ),
    "torchtune": frozenset(
        name_list("""
    _component_ checkpointer metric_logger enable_activation_checkpointing optimizer_in_bwd log_every_n_steps
    """)
    ),
    "LitGPT": frozenset(
        name_list("""
    global_batch_size lr_warmup_steps checkpoint_dir logger_name out_dir save_interval max_tokens class_path
    """)
    ),
    "nanoGPT": frozenset(
        name_list("""
    n_layer n_head n_embd block_size max_iters warmup_iters lr_decay_iters eval_iters decay_lr eval_interval
    """)
    ),
    "minimind": frozenset(
        name_list("""
    n_routed_experts accumulation_steps use_moe n_kv_heads n_shared_experts grad_clip save_interval dpo_beta dim
    n_layers n_heads sft_data_path dpo_data_path min_learning_rate amp_dtype
    """)
    ),
    "ChatLM-mini": frozenset(
        name_list("""
    learn_rate batch_size_per_gpu keep_latest_n_ckp div_factor train_state_dir finetune_from_ckp_file
    """)
    ),
}
HUGGING_FACE = frozenset(
    name_list("""
    per_device_train_batch_size num_train_epochs output_dir lr_scheduler_type load_best_model_at_end
    per_device_eval_batch_size gradient_accumulation_steps warmup_ratio save_total_limit eval_strategy
    evaluation_strategy logging_steps save_steps
    """)
)
COSINE_BY_DEFAULT = {"nanoGPT", "LitGPT", "minimind"}  # trainers whose rate falls along a cosine where nothing is written

_SECTIONS = (
    (re.compile(r"dpo|preference"), "dpo"),
    (re.compile(r"sft|fine_?tun|instruct"), "sft"),
    (re.compile(r"pre_?train|^pt$"), "pretrain"),
)
STAGE_KINDS = {"pretrain": "pretrain", "sft": "sft", "dpo": "preference"}
STAGE_NAMES = {kind: name for name, kind in STAGE_KINDS.items()}


def detect_trainer(names: Collection[str]) -> str:
    """The trainer that has these keys, in words."""
    scores = {trainer: len(signs & set(names)) for trainer, signs in CHARACTERISTIC_KEYS.items()}
    best = max(scores, key=lambda trainer: scores[trainer])
    common = len(HUGGING_FACE & set(names))
    if scores[best] >= 2 or (scores[best] == 1 and common >= 2 and best in ("LLaMA-Factory", "TRL")):
        return best
    return "Hugging Face TrainingArguments" if common >= 2 else "another trainer"


def stage_of_section(name: str) -> str | None:
    """The stage that a section is about by its name: `sft`, `TrainConfigSFT`, `pretraining`."""
    return next((stage for pattern, stage in _SECTIONS if pattern.search(name.lower())), None)


def guessed_kind(beside: Mapping[str, Any]) -> str:
    """The kind of stage that keys without a stage are about."""
    context = Context(beside)
    for key in KIND_KEYS:
        if context.has((key,)) and (found := named_kind(beside[key])):
            return found[0]
    if context.has(PREFERENCE_KEYS):
        return "preference"
    if context.has(SFT_KEYS) or context.has(PATHS[:-1]) or word(context.first_value(("finetuning_type",))) in ("lora", "full"):
        return "sft"
    return "pretrain" if context.has(PRETRAIN_KEYS) else "sft"
