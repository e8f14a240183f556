"""The trainer that a configuration was written for, from keys that only this trainer has."""

from collections.abc import Collection

from fledge.recipe.foreign.answer import name_list

CHARACTERISTIC_KEYS: dict[str, frozenset[str]] = {  # keys that one trainer has and the others do not have
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
COSINE_BY_DEFAULT = {
    "nanoGPT",
    "LitGPT",
    "minimind",
}  # trainers whose learning rate follows a cosine unless a schedule is named


def detect_trainer(names: Collection[str]) -> str:
    """The name of the trainer whose configuration has keys of these names; `another trainer` if it is unclear."""
    scores = {trainer: len(keys & set(names)) for trainer, keys in CHARACTERISTIC_KEYS.items()}
    best = max(scores, key=lambda trainer: scores[trainer])
    common = len(HUGGING_FACE & set(names))
    if scores[best] >= 2 or (scores[best] == 1 and common >= 2 and best in ("LLaMA-Factory", "TRL")):
        return best
    return "Hugging Face TrainingArguments" if common >= 2 else "another trainer"
