"""Keys of other trainers about the method: kinds of training, preferences, adapters, and what fledge does not have."""

from typing import Any

from fledge.recipe.foreign.answer import (
    Answer,
    Around,
    Rule,
    Table,
    absent,
    as_number,
    either,
    every,
    leave,
    names,
    number,
    said,
    switch,
    to,
    word,
)

KIND_KEYS = names("stage mode training_stage train_type trainer_type rl")
KINDS_THERE: dict[str, tuple[str, str]] = {
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
PREFERENCE_KEYS = names("""
    pref_beta dpo_beta beta pref_loss rpo_alpha pref_ftx precompute_ref_log_probs max_prompt_length dpo_data_path
    dpo_label_smoothing ref_model ld_alpha sync_ref_model max_completion_length loss_weights precompute_ref_batch_size
    """)
PRETRAIN_KEYS = names("""
    n_layer n_embd block_size n_layers dim d_model pretrain_data_path pretraining_dataset pretrain_data max_tokens
    total_tokens
    """)
SFT_KEYS = names("""
    sft_data_path assistant_only_loss completion_only_loss train_on_prompt train_on_inputs is_finetune sft_data
    """)
LOSSES = ("pref_loss", "loss_type", "dpo_loss", "dpo_loss_type")
HIGH_BETA = 0.3  # such a beta was made for the mean of log-probabilities, and not for their sum
ADAPTERS_ABSENT = "adapters are not there yet: the whole model is trained"
QUANTIZED = "quantized weights are not supported; optimizer: {name: adamw8bit} saves memory"


def named_kind(value: Any) -> tuple[str, str] | None:
    """The kind of stage by its name in other trainers, and what to say about it."""
    name = word(value)
    if name not in KINDS_THERE:
        return None
    kind, note = KINDS_THERE[name]
    return kind, note.format(name.upper())


def _kind(value: Any, around: Around) -> Answer:
    found = named_kind(value)
    if found is None:
        return Answer(note="the kinds of stages are pretrain, sft and preference")
    return Answer((("kind", found[0]),), found[1])


def _finetuned(value: Any, around: Around) -> Answer:
    return Answer((("kind", "pretrain" if switch(value) is False else "sft"),))


def _method(value: Any, around: Around) -> Answer:
    """LLaMA-Factory's finetuning_type."""
    if word(value) == "full":
        return Answer(note="leave it out; the whole model is trained")
    return Answer(note=ADAPTERS_ABSENT)


def _loss(value: Any, around: Around) -> Answer:
    given = around.first(LOSSES) or value
    losses = [word(name) for name in given] if isinstance(given, list) else [word(given)]
    if losses == ["sigmoid"] and around.kind in (None, "preference"):
        return Answer((("loss_type", "sigmoid"),))
    if sorted(losses) == ["sft", "sigmoid"]:
        return _with_answers(losses, around)
    if around.kind != "preference" and set(losses) <= {"nll", "chunked_nll", "cross_entropy", "ce"}:
        return Answer(note="leave it out; pretrain and sft stages train by cross-entropy")
    if around.kind not in (None, "preference"):
        return Answer(note="pretrain and sft stages train by cross-entropy only")
    return Answer(
        note="the loss of a preference stage is that of DPO only, loss_type: sigmoid; "
        "sft_loss_weight adds the loss of the chosen answer"
    )


def _with_answers(losses: list[str], around: Around) -> Answer:
    """TRL adds the loss of the chosen answer as a second loss, with a weight for each."""
    given = around.first(("loss_weights",))
    weights = given if isinstance(given, list) else [1.0, 1.0]
    by_name = dict(zip(losses, map(number, weights), strict=False))
    first, second = by_name.get("sigmoid"), by_name.get("sft")
    if not first or second is None:
        return Answer(note="write the weight of the chosen answer's loss, relative to that of DPO: sft_loss_weight: 0.2")
    return Answer((("loss_type", "sigmoid"), ("sft_loss_weight", second / first)), "relative to the loss of DPO")


def _beta(value: Any, around: Around) -> Answer:
    note = (
        "fledge sums log-probabilities over an answer; if this beta was made for their mean, write 0.1"
        if (number(value) or 0) > HIGH_BETA
        else ""
    )
    return Answer((("beta", as_number(value)),), note)


def _alpha(value: Any, around: Around) -> Answer:
    """The weight of the chosen answers' own loss: RPO's alpha, LLaMA-Factory's pref_ftx."""
    return Answer(
        (("sft_loss_weight", 0.0 if value is None else as_number(value)),), "the mean over the chosen answer's tokens"
    )


METHODS: Table = {
    **every(KIND_KEYS, _kind),
    **every("is_finetune is_sft", _finetuned),
    "finetuning_type": _method,
    **every("tuner train_method tuning_type sft_type", _method),
    **every("pref_beta dpo_beta beta rl_beta", _beta),
    **every((*LOSSES, "loss_weights"), _loss),
    **every("pref_ftx rpo_alpha sft_weight_in_dpo nll_loss_coef", _alpha),
    **every("dpo_label_smoothing label_smoothing", to("label_smoothing")),
    **every("precompute_ref_log_probs", to("precompute_ref_log_probs", lambda value: switch(value) is not False)),
    **every(
        """
        precompute_ref_batch_size reference_free model_adapter_name ref_adapter_name ref_model ref_model_path
        ref_model_init_kwargs force_use_ref_model reference_model
        """,
        leave("the reference is the model that the stage starts from"),
    ),
    **every("sync_ref_model ref_model_mixup_alpha ref_model_sync_steps", absent("the reference stays as it is")),
    **every(
        """
        ld_alpha f_divergence_type f_alpha_divergence_coef use_weighting discopop_tau pref_bco_weight
        simpo_gamma desirable_weight undesirable_weight kto_chosen_weight kto_rejected_weight ppo_score_norm
        """,
        absent("the loss of a preference stage is that of DPO, with beta, label_smoothing and sft_loss_weight"),
    ),
    **every("use_dft_loss use_asft_loss use_eaft_loss asft_alpha eaft_alpha", absent("an sft stage trains by cross-entropy")),
    **every(
        """
        adapter use_peft peft_type use_lora lora peft peft_config adapter_name_or_path qlora lora_config r target_modules
        modules_to_save use_dora use_rslora use_qlora additional_target create_new_adapter module_dropout pissa_init
        use_llama_pro adapter_folder task_type train_bias merge_lora
        """,
        absent(ADAPTERS_ABSENT),
    ),
    **every(
        """
        load_in_4bit load_in_8bit quantization_bit quantization double_quantization use_bnb_nested_quant quantize gptq fp8
        quantization_method quantization_config
        """,
        absent(QUANTIZED),
    ),
    **every("use_galore use_apollo use_badam use_adam_mini use_lomo", absent("the optimizers are adamw, adamw8bit and muon")),
    **every(
        "use_kt use_mca use_megatron_bridge use_hyper_parallel megatron_bridge_args", absent("fledge trains by its own loop")
    ),
    **every(
        "push_to_hub hub_model_id hf_use_auth_token push_to_hub_model_id export_dir export_size",
        absent("nothing is uploaded; a model directory loads in transformers"),
    ),
    **every(
        """
        temperature top_k top_p do_sample num_beams repetition_penalty length_penalty skip_special_tokens
        """,
        leave("fledge generate and fledge chat have it as an option"),
    ),
    **every(
        "infer_backend vllm use_vllm sglang use_kv_cache offload_folder", absent("fledge generate and fledge chat run a model")
    ),
    **every(
        """
        num_generations center_rewards_coefficient reward_model reward_funcs reward_weights epsilon_high kl_coef vf_coef
        cliprange
        """,
        absent("there is no reinforcement learning; DPO learns from preference pairs"),
    ),
    **every("_component_ class_path _target_", lambda value, around: _component(value, around)),
    "strict": leave("an unknown key is always an error"),
    "beta_schedule": absent("beta stays as it is"),
    "disable_flash_attn": either(
        said("runtime: {attention: sdpa} is one of the others"), leave("the fastest attention is measured")
    ),
}

PREFIXES: tuple[tuple[str, Rule], ...] = (
    ("lora_", absent(ADAPTERS_ABSENT)),
    ("loraplus_", absent(ADAPTERS_ABSENT)),
    ("pissa_", absent(ADAPTERS_ABSENT)),
    ("oft_", absent(ADAPTERS_ABSENT)),
    ("peft_", absent(ADAPTERS_ABSENT)),
    ("freeze_", absent("the whole model is trained")),
    ("bnb_4bit_", absent(QUANTIZED)),
    ("quantization_", absent(QUANTIZED)),
    ("fp8_", absent(QUANTIZED)),
    ("galore_", absent("the optimizers are adamw, adamw8bit and muon")),
    ("apollo_", absent("the optimizers are adamw, adamw8bit and muon")),
    ("badam_", absent("the optimizers are adamw, adamw8bit and muon")),
    ("wandb_", leave("events.jsonl and report.html hold the metrics of a run")),
    ("swanlab_", leave("events.jsonl and report.html hold the metrics of a run")),
    ("mlflow_", leave("events.jsonl and report.html hold the metrics of a run")),
    ("comet_", leave("events.jsonl and report.html hold the metrics of a run")),
    ("trackio_", leave("events.jsonl and report.html hold the metrics of a run")),
    ("hub_", leave("nothing is uploaded; a model directory loads in transformers")),
    ("export_", leave("a model directory loads in transformers")),
    ("vllm_", leave("fledge generate and fledge chat run a model")),
    ("sglang_", leave("fledge generate and fledge chat run a model")),
    ("kt_", leave("fledge trains by its own loop")),
    ("hyper_parallel_", leave("fledge trains by its own loop")),
    ("ppo_", absent("there is no reinforcement learning; DPO learns from preference pairs")),
    ("grpo_", absent("there is no reinforcement learning; DPO learns from preference pairs")),
    ("kto_", absent("there is no KTO; an sft stage trains the rows that are labelled true")),
    ("reward_model", absent("there are no reward models; DPO learns from the same pairs without one")),
    ("ref_model_", leave("the reference is the model that the stage starts from")),
    ("fsdp_", leave("runtime: {parallelism: fsdp} is the only setting")),
    ("deepspeed_", leave("runtime: {parallelism: fsdp} is the only setting")),
    ("ddp_", leave("the processes of a run find each other; start them with fledge train --processes N")),
    ("ray_", leave("fledge train --cluster ray runs on a Ray cluster")),
    ("image_", absent("there are models for text only")),
    ("video_", absent("there are models for text only")),
    ("audio_", absent("there are models for text only")),
    ("profiler_", leave("machine.json and the report hold what was measured")),
    ("dataloader_", leave("rows are tokenised and packed before training, and read from the disk without waiting")),
    ("flash_attn_", leave("the fastest attention is measured at the start of the run")),
    ("torch_compile_", leave("runtime.compile is the only setting")),
)


def _component(value: Any, around: Around) -> Answer:
    """torchtune names a part by its path in Python."""
    from fledge.recipe.foreign.learning import OPTIMIZERS, SCHEDULES, optimizer, schedule

    name = word(value).rpartition(".")[2]
    if name in SCHEDULES:
        return schedule(name, around)
    if name in OPTIMIZERS or name == "adam":
        return optimizer(name, around)
    return Answer(note="leave it out; fledge has its own parts, which the keys of the recipe choose")
