"""Keys of other trainers about the method: kinds of training, preferences, adapters, and what fledge does not have."""

from typing import Any

from fledge.recipe.foreign.answer import (
    Answer,
    Context,
    Rule,
    Table,
    advice,
    as_number,
    boolean,
    for_keys,
    if_true,
    name_list,
    number,
    replaced_by,
    unneeded,
    unsupported,
    word,
)

KIND_KEYS = name_list("stage mode training_stage train_type trainer_type rl")
KINDS_OF_METHODS: dict[str, tuple[str, str]] = {
    **dict.fromkeys(("sft", "full_sft", "finetune", "fine_tune", "instruction", "chat"), ("sft", "")),
    **dict.fromkeys(("pt", "pretrain", "pretraining", "cpt"), ("pretrain", "")),
    **dict.fromkeys(("dpo", "preference"), ("preference", "")),
    **dict.fromkeys(("ipo", "orpo", "simpo"), ("preference", "there is no {}; DPO learns from the same pairs")),
    "rm": ("preference", "there are no reward models; DPO learns from the same pairs without one"),
    "reward": ("preference", "there are no reward models; DPO learns from the same pairs without one"),
    "ppo": ("preference", "there is no PPO; DPO learns from preference pairs without a reward model"),
    "grpo": ("preference", "there is no GRPO; DPO learns from preference pairs without rewards"),
    "kto": ("sft", "there is no KTO; an sft stage trains the rows that are labelled true"),
}
PREFERENCE_KEYS = name_list("""
    pref_beta dpo_beta beta pref_loss rpo_alpha pref_ftx precompute_ref_log_probs max_prompt_length dpo_data_path
    dpo_label_smoothing ref_model ld_alpha sync_ref_model max_completion_length loss_weights precompute_ref_batch_size
    """)
PRETRAIN_KEYS = name_list("""
    n_layer n_embd block_size n_layers dim d_model pretrain_data_path pretraining_dataset pretrain_data max_tokens
    total_tokens
    """)
SFT_KEYS = name_list("""
    sft_data_path assistant_only_loss completion_only_loss train_on_prompt train_on_inputs is_finetune sft_data
    """)
LOSSES = ("pref_loss", "loss_type", "dpo_loss", "dpo_loss_type")
HIGH_BETA = 0.3  # such a beta was made for the mean of log-probabilities, and not for their sum
ADAPTERS_ABSENT = "adapters are not there yet: the whole model is trained"
QUANTIZED = "quantized weights are not supported; optimizer: {name: adamw8bit} saves memory"


def named_kind(value: Any) -> tuple[str, str] | None:
    """The kind of stage by its name in other trainers, and what to say about it."""
    name = word(value)
    if name not in KINDS_OF_METHODS:
        return None
    kind, note = KINDS_OF_METHODS[name]
    return kind, note.format(name.upper())


def _kind(value: Any, context: Context) -> Answer:
    found = named_kind(value)
    if found is None:
        return Answer(note="the kinds of stages are pretrain, sft and preference")
    return Answer((("kind", found[0]),), found[1])


def _is_finetuning(value: Any, context: Context) -> Answer:
    return Answer((("kind", "pretrain" if boolean(value) is False else "sft"),))


def _finetuning_type(value: Any, context: Context) -> Answer:
    """LLaMA-Factory's finetuning_type."""
    if word(value) == "full":
        return Answer(note="leave it out; the whole model is trained")
    return Answer(note=ADAPTERS_ABSENT)


def _loss(value: Any, context: Context) -> Answer:
    given = context.first_value(LOSSES) or value
    losses = [word(name) for name in given] if isinstance(given, list) else [word(given)]
    if losses == ["sigmoid"] and context.kind in (None, "preference"):
        return Answer((("loss_type", "sigmoid"),))
    if sorted(losses) == ["sft", "sigmoid"]:
        return _with_sft_loss(losses, context)
    if context.kind != "preference" and set(losses) <= {"nll", "chunked_nll", "cross_entropy", "ce"}:
        return Answer(note="leave it out; pretrain and sft stages train by cross-entropy")
    if context.kind not in (None, "preference"):
        return Answer(note="pretrain and sft stages train by cross-entropy only")
    return Answer(
        note="the loss of a preference stage is that of DPO only, loss_type: sigmoid; "
        "sft_loss_weight adds the loss of the chosen answer"
    )


def _with_sft_loss(losses: list[str], context: Context) -> Answer:
    """TRL adds the loss of the chosen answer as a second loss, with a weight for each."""
    given = context.first_value(("loss_weights",))
    weights = given if isinstance(given, list) else [1.0, 1.0]
    by_name = dict(zip(losses, map(number, weights), strict=False))
    first, second = by_name.get("sigmoid"), by_name.get("sft")
    if not first or second is None:
        return Answer(note="write the weight of the chosen answer's loss, relative to that of DPO: sft_loss_weight: 0.2")
    return Answer((("loss_type", "sigmoid"), ("sft_loss_weight", second / first)), "relative to the loss of DPO")


def _beta(value: Any, context: Context) -> Answer:
    note = (
        "fledge sums log-probabilities over an answer; if this beta was made for their mean, write 0.1"
        if (number(value) or 0) > HIGH_BETA
        else ""
    )
    return Answer((("beta", as_number(value)),), note)


def _sft_loss_weight(value: Any, context: Context) -> Answer:
    """The weight of the chosen answers' own loss: RPO's alpha, LLaMA-Factory's pref_ftx."""
    return Answer(
        (("sft_loss_weight", 0.0 if value is None else as_number(value)),), "the mean over the chosen answer's tokens"
    )


METHODS: Table = {
    **for_keys(KIND_KEYS, _kind),
    **for_keys("is_finetune is_sft", _is_finetuning),
    "finetuning_type": _finetuning_type,
    **for_keys("tuner train_method tuning_type sft_type", _finetuning_type),
    **for_keys("pref_beta dpo_beta beta rl_beta", _beta),
    **for_keys((*LOSSES, "loss_weights"), _loss),
    **for_keys("pref_ftx rpo_alpha sft_weight_in_dpo nll_loss_coef", _sft_loss_weight),
    **for_keys("dpo_label_smoothing label_smoothing", replaced_by("label_smoothing")),
    **for_keys("precompute_ref_log_probs", replaced_by("precompute_ref_log_probs", lambda value: boolean(value) is not False)),
    **for_keys(
        """
        precompute_ref_batch_size reference_free model_adapter_name ref_adapter_name ref_model ref_model_path
        ref_model_init_kwargs force_use_ref_model reference_model
        """,
        unneeded("the reference is the model that the stage starts from"),
    ),
    **for_keys("sync_ref_model ref_model_mixup_alpha ref_model_sync_steps", unsupported("the reference stays as it is")),
    **for_keys(
        """
        ld_alpha f_divergence_type f_alpha_divergence_coef use_weighting discopop_tau pref_bco_weight
        simpo_gamma desirable_weight undesirable_weight kto_chosen_weight kto_rejected_weight ppo_score_norm
        """,
        unsupported("the loss of a preference stage is that of DPO, with beta, label_smoothing and sft_loss_weight"),
    ),
    **for_keys(
        "use_dft_loss use_asft_loss use_eaft_loss asft_alpha eaft_alpha", unsupported("an sft stage trains by cross-entropy")
    ),
    **for_keys(
        """
        adapter use_peft peft_type use_lora lora peft peft_config adapter_name_or_path qlora lora_config r target_modules
        modules_to_save use_dora use_rslora use_qlora additional_target create_new_adapter module_dropout pissa_init
        use_llama_pro adapter_folder task_type train_bias merge_lora
        """,
        unsupported(ADAPTERS_ABSENT),
    ),
    **for_keys(
        """
        load_in_4bit load_in_8bit quantization_bit quantization double_quantization use_bnb_nested_quant quantize gptq fp8
        quantization_method quantization_config
        """,
        unsupported(QUANTIZED),
    ),
    **for_keys(
        "use_galore use_apollo use_badam use_adam_mini use_lomo", unsupported("the optimizers are adamw, adamw8bit and muon")
    ),
    **for_keys(
        "use_kt use_mca use_megatron_bridge use_hyper_parallel megatron_bridge_args",
        unsupported("fledge trains by its own loop"),
    ),
    **for_keys(
        "push_to_hub hub_model_id hf_use_auth_token push_to_hub_model_id export_dir export_size",
        unsupported("nothing is uploaded; a model directory loads in transformers"),
    ),
    **for_keys(
        """
        temperature top_k top_p do_sample num_beams repetition_penalty length_penalty skip_special_tokens
        """,
        unneeded("fledge generate and fledge chat have it as an option"),
    ),
    **for_keys(
        "infer_backend vllm use_vllm sglang use_kv_cache offload_folder",
        unsupported("fledge generate and fledge chat run a model"),
    ),
    **for_keys(
        """
        num_generations center_rewards_coefficient reward_model reward_funcs reward_weights epsilon_high kl_coef vf_coef
        cliprange
        """,
        unsupported("there is no reinforcement learning; DPO learns from preference pairs"),
    ),
    **for_keys("_component_ class_path _target_", lambda value, context: _component(value, context)),
    "strict": unneeded("an unknown key is always an error"),
    "beta_schedule": unsupported("beta stays as it is"),
    "disable_flash_attn": if_true(
        advice("runtime: {attention: sdpa} is one of the others"), unneeded("the fastest attention is measured")
    ),
}

PREFIXES: tuple[tuple[str, Rule], ...] = (
    ("lora_", unsupported(ADAPTERS_ABSENT)),
    ("loraplus_", unsupported(ADAPTERS_ABSENT)),
    ("pissa_", unsupported(ADAPTERS_ABSENT)),
    ("oft_", unsupported(ADAPTERS_ABSENT)),
    ("peft_", unsupported(ADAPTERS_ABSENT)),
    ("freeze_", unsupported("the whole model is trained")),
    ("bnb_4bit_", unsupported(QUANTIZED)),
    ("quantization_", unsupported(QUANTIZED)),
    ("fp8_", unsupported(QUANTIZED)),
    ("galore_", unsupported("the optimizers are adamw, adamw8bit and muon")),
    ("apollo_", unsupported("the optimizers are adamw, adamw8bit and muon")),
    ("badam_", unsupported("the optimizers are adamw, adamw8bit and muon")),
    ("wandb_", unneeded("events.jsonl and report.html hold the metrics of a run")),
    ("swanlab_", unneeded("events.jsonl and report.html hold the metrics of a run")),
    ("mlflow_", unneeded("events.jsonl and report.html hold the metrics of a run")),
    ("comet_", unneeded("events.jsonl and report.html hold the metrics of a run")),
    ("trackio_", unneeded("events.jsonl and report.html hold the metrics of a run")),
    ("hub_", unneeded("nothing is uploaded; a model directory loads in transformers")),
    ("export_", unneeded("a model directory loads in transformers")),
    ("vllm_", unneeded("fledge generate and fledge chat run a model")),
    ("sglang_", unneeded("fledge generate and fledge chat run a model")),
    ("kt_", unneeded("fledge trains by its own loop")),
    ("hyper_parallel_", unneeded("fledge trains by its own loop")),
    ("ppo_", unsupported("there is no reinforcement learning; DPO learns from preference pairs")),
    ("grpo_", unsupported("there is no reinforcement learning; DPO learns from preference pairs")),
    ("kto_", unsupported("there is no KTO; an sft stage trains the rows that are labelled true")),
    ("reward_model", unsupported("there are no reward models; DPO learns from the same pairs without one")),
    ("ref_model_", unneeded("the reference is the model that the stage starts from")),
    ("fsdp_", unneeded("runtime: {parallelism: fsdp} is the only setting")),
    ("deepspeed_", unneeded("runtime: {parallelism: fsdp} is the only setting")),
    ("ddp_", unneeded("the processes of a run find each other; start them with fledge train --processes N")),
    ("ray_", unneeded("fledge train --cluster ray runs on a Ray cluster")),
    ("image_", unsupported("there are models for text only")),
    ("video_", unsupported("there are models for text only")),
    ("audio_", unsupported("there are models for text only")),
    ("profiler_", unneeded("machine.json and the report hold what was measured")),
    ("dataloader_", unneeded("rows are tokenised and packed before training, and read from the disk without waiting")),
    ("flash_attn_", unneeded("the fastest attention is measured at the start of the run")),
    ("torch_compile_", unneeded("runtime.compile is the only setting")),
)


def _component(value: Any, context: Context) -> Answer:
    """torchtune names a part by its path in Python."""
    from fledge.recipe.foreign.learning import OPTIMIZERS, SCHEDULES, optimizer, schedule

    name = word(value).rpartition(".")[2]
    if name in SCHEDULES:
        return schedule(name, context)
    if name in OPTIMIZERS or name == "adam":
        return optimizer(name, context)
    return Answer(note="leave it out; fledge has its own parts, which the keys of the recipe choose")
