"""Keys of other trainers about the training method: kinds of stages, preference losses, adapters, inference."""

from typing import Any

from fledge.recipe.foreign.adapters import ADAPTER_KEYS, ADAPTER_PREFIXES
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
    integer,
    number,
    replaced_by,
    unneeded,
    unsupported,
    word,
)
from fledge.recipe.foreign.learning import OPTIMIZER_NAMES, OPTIMIZERS, SCHEDULES, optimizer, schedule
from fledge.recipe.foreign.quantization import QUANTIZATION_KEYS, QUANTIZATION_PREFIXES
from fledge.recipe.foreign.stage_kinds import KIND_KEYS, STAGE_KINDS, cross_entropy_kinds, loss_types, method_named
from fledge.recipe.schema_keys import KINDS

LOSSES = ("pref_loss", "loss_type", "dpo_loss", "dpo_loss_type")
LOSS_ALIASES = {"dpo": "sigmoid", "slic": "hinge"}  # names of losses in other trainers -> values of `loss_type`
KTO = {"kto", "kto_pair"}
CROSS_ENTROPY = {"nll", "chunked_nll", "cross_entropy", "ce"}
LOSSES_OF_MEANS = {
    "ipo",
    "sigmoid_norm",
    "simpo",
    "orpo",
}  # values of `loss_type` that take the mean of log-probabilities over an answer, not their sum
HIGH_BETA = 0.3  # a beta above this value was chosen for the mean of log-probabilities
REWARD_MODEL = "name its directory in rewards of a grpo stage, such as rewards: {model: DIR}"
PREFERENCE_LOSSES = (
    f"a preference stage has the losses {', '.join(loss_types('preference'))}, with beta, label_smoothing and sft_loss_weight"
)
OTHER_OPTIMIZERS = f"the optimizers are {OPTIMIZER_NAMES}"


def _kind(value: Any, context: Context) -> Answer:
    method = method_named(value)
    if method is None:
        return Answer(note=f"the kinds of stages are {', '.join(KINDS)}")
    loss_type = (("loss_type", method.loss_type),) if method.loss_type else ()
    return Answer((("kind", method.kind), *loss_type), method.note)


def _reward_model(value: Any, context: Context) -> Answer:
    """The answer to a path, or to a flag for a stage that trains a reward model."""
    is_one = boolean(value) if not isinstance(value, str) or word(value) in ("true", "false") else None
    if is_one is None:
        return Answer(note=REWARD_MODEL)
    return Answer((("kind", "reward"),)) if is_one else Answer(note="leave it out; it is off")


def _num_labels(value: Any, context: Context) -> Answer:
    if integer(value) == 1:
        return Answer((("kind", "reward"),), "a reward model gives one number")
    return Answer(note="a model writes, or gives one number (kind: reward); there are no classes")


def _is_finetuning(value: Any, context: Context) -> Answer:
    return Answer((("kind", "pretrain" if boolean(value) is False else "sft"),))


def _loss_names(value: Any, context: Context) -> list[str]:
    """The losses that a configuration names, as values of `loss_type` where fledge has them."""
    losses = context.first_value(LOSSES) or value
    names = [word(name) for name in losses] if isinstance(losses, list) else [word(losses)]
    return [LOSS_ALIASES.get(name, name) for name in names]


def _loss(value: Any, context: Context) -> Answer:
    """The answer to the name of a loss, or to a list of names as in TRL: `[sigmoid, sft]`."""
    names, types = _loss_names(value, context), loss_types(context.kind)
    if set(names) <= KTO:
        return Answer(note="KTO is a kind of stage, for rows with a label: kind: kto")
    preference = [name for name in names if name in types]
    if len(preference) == 1 and names == preference:
        return Answer((("loss_type", preference[0]),))
    if len(preference) == 1 and sorted(names) == sorted([preference[0], "sft"]):
        return _with_sft_loss(preference[0], names, context)
    if context.kind is not None and not types and not STAGE_KINDS[context.kind].smooths_targets:
        return Answer(note=f"leave it out; a {context.kind} stage has one loss")
    if set(names) <= CROSS_ENTROPY and (context.kind is None or not types):
        return Answer(note=f"leave it out; {cross_entropy_kinds()} stages train by cross-entropy")
    if not types:
        return Answer(note=f"{cross_entropy_kinds()} stages train by cross-entropy only")
    return Answer(
        note=f"the losses of a preference stage are {', '.join(types)}: loss_type: {types[0]}; "
        "sft_loss_weight adds the loss of the chosen answer"
    )


def _with_sft_loss(loss_type: str, names: list[str], context: Context) -> Answer:
    """The answer to a preference loss and the SFT loss together, each with an entry in `loss_weights`, as in TRL."""
    listed = context.first_value(("loss_weights",))
    weights = dict(zip(names, map(number, listed if isinstance(listed, list) else [1.0, 1.0]), strict=False))
    preference, sft = weights.get(loss_type), weights.get("sft")
    if not preference or sft is None:
        return Answer(note="write the weight of the chosen answer's loss relative to the preference loss: sft_loss_weight: 0.2")
    return Answer((("loss_type", loss_type), ("sft_loss_weight", sft / preference)), "relative to the preference loss")


def _simpo_gamma(value: Any, context: Context) -> Answer:
    """The answer to the margin of SimPO, which names the loss where the configuration does not."""
    loss = () if context.has(LOSSES) else (("loss_type", "simpo"),)
    return Answer((*loss, ("simpo_gamma", as_number(value))))


def _uses_means(context: Context) -> bool:
    """Whether the configuration names a loss on mean log-probabilities."""
    method = method_named(context.first_value(KIND_KEYS))
    names = {*_loss_names(None, context), *([method.loss_type] if method else [])}
    return bool(names & LOSSES_OF_MEANS)


def _beta(value: Any, context: Context) -> Answer:
    note = (
        "fledge sums log-probabilities over an answer; if this beta was chosen for their mean, write 0.1"
        if (number(value) or 0) > HIGH_BETA and not _uses_means(context)
        else ""
    )
    return Answer((("beta", as_number(value)),), note)


def _sft_loss_weight(value: Any, context: Context) -> Answer:
    """The answer to a weight of the chosen answer's own loss: `rpo_alpha` of TRL, `pref_ftx` of LLaMA-Factory."""
    return Answer(
        (("sft_loss_weight", 0.0 if value is None else as_number(value)),), "the mean over the chosen answer's tokens"
    )


def _component(value: Any, context: Context) -> Answer:
    """The answer to a class by its path in Python, as torchtune and LitGPT name optimizers and schedules."""
    name = word(value).rpartition(".")[2]
    if name in SCHEDULES:
        return schedule(name, context)
    if name in OPTIMIZERS or name == "adam":
        return optimizer(name, context)
    return Answer(note="leave it out; fledge uses its own classes; keys of the recipe choose between them")


METHODS: Table = {
    **for_keys(KIND_KEYS, _kind),
    **for_keys("is_finetune is_sft", _is_finetuning),
    **ADAPTER_KEYS,
    **for_keys("pref_beta dpo_beta beta rl_beta", _beta),
    **for_keys((*LOSSES, "loss_weights"), _loss),
    **for_keys("pref_ftx rpo_alpha sft_weight_in_dpo nll_loss_coef", _sft_loss_weight),
    **for_keys("simpo_gamma", _simpo_gamma),
    **for_keys("desirable_weight kto_chosen_weight", replaced_by("desirable_weight")),
    **for_keys("undesirable_weight kto_rejected_weight", replaced_by("undesirable_weight")),
    **for_keys("dpo_label_smoothing label_smoothing", replaced_by("label_smoothing")),
    **for_keys("precompute_ref_log_probs", replaced_by("precompute_ref_log_probs", lambda value: boolean(value) is not False)),
    **for_keys(
        """
        precompute_ref_batch_size reference_free model_adapter_name ref_adapter_name ref_model ref_model_path
        ref_model_init_kwargs force_use_ref_model reference_model
        """,
        unneeded("the reference is the model that the stage starts from"),
    ),
    **for_keys(
        "sync_ref_model ref_model_mixup_alpha ref_model_sync_steps",
        unsupported("the reference model does not change during a stage"),
    ),
    **for_keys(
        """
        ld_alpha dpo_use_weighting f_divergence_type f_alpha_divergence_coef use_weighting discopop_tau pref_bco_weight
        ppo_score_norm
        """,
        unsupported(PREFERENCE_LOSSES),
    ),
    **for_keys(
        "use_dft_loss use_asft_loss use_eaft_loss asft_alpha eaft_alpha", unsupported("an sft stage trains by cross-entropy")
    ),
    **QUANTIZATION_KEYS,
    **for_keys("use_galore use_apollo use_badam use_adam_mini use_lomo", unsupported(OTHER_OPTIMIZERS)),
    **for_keys(
        "use_kt use_mca use_megatron_bridge use_hyper_parallel megatron_bridge_args",
        unsupported("fledge trains by its own loop"),
    ),
    **for_keys(
        "push_to_hub hub_model_id hf_use_auth_token push_to_hub_model_id export_dir export_size",
        unsupported("nothing is uploaded; a model directory loads in transformers"),
    ),
    **for_keys(
        "temperature top_k top_p do_sample repetition_penalty skip_special_tokens",
        unneeded("sampling is set by options of fledge generate and fledge chat"),
    ),
    **for_keys(
        "infer_backend vllm use_vllm sglang use_kv_cache offload_folder",
        unsupported("fledge generate and fledge chat run a model"),
    ),
    **for_keys("num_generations", replaced_by("rollout.num_generations")),
    **for_keys("reward_funcs", advice("write rewards, such as rewards: {function: MODULE:FUNCTION}")),
    **for_keys("reward_weights", advice("each of rewards has a weight: rewards: [{rule: exact_match, weight: 1}]")),
    **for_keys("kl_coef", replaced_by("beta")),
    **for_keys("cliprange", replaced_by("epsilon")),
    **for_keys("steps_per_generation", advice("rollout.updates_per_rollout is the number of updates that share answers")),
    **for_keys("vf_coef", unsupported("a grpo stage has no value model")),
    **for_keys("center_rewards_coefficient", replaced_by("center_rewards_coefficient", lambda value: number(value) or 0.0)),
    **for_keys("reward_model", _reward_model),
    **for_keys("num_labels", _num_labels),
    **for_keys("num_beams length_penalty", unsupported("there is no beam search; answers are sampled or greedy")),
    **for_keys("_component_ class_path _target_", _component),
    "strict": unneeded("an unknown key is always an error"),
    "beta_schedule": unsupported("beta does not change during a stage"),
    "disable_flash_attn": if_true(
        advice("another attention is chosen with runtime: {attention: sdpa}"), unneeded("the fastest attention is measured")
    ),
}

PREFIXES: tuple[tuple[str, Rule], ...] = (
    *ADAPTER_PREFIXES,
    ("freeze_", unsupported("the whole model is trained")),
    *QUANTIZATION_PREFIXES,
    ("galore_", unsupported(OTHER_OPTIMIZERS)),
    ("apollo_", unsupported(OTHER_OPTIMIZERS)),
    ("badam_", unsupported(OTHER_OPTIMIZERS)),
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
    ("ppo_", unsupported("a grpo stage trains on rewards without a value model")),
    ("grpo_", advice("the keys of a grpo stage are in docs/recipes.md")),
    ("reward_model", advice(REWARD_MODEL)),
    ("ref_model_", unneeded("the reference is the model that the stage starts from")),
    ("fsdp_", unneeded("runtime: {parallelism: fsdp} is the only setting")),
    ("deepspeed_", unneeded("runtime: {parallelism: fsdp} is the only setting")),
    ("ddp_", unneeded("the processes of a run find each other; start them with fledge train --processes N")),
    ("ray_", unneeded("fledge train --cluster ray runs on a Ray cluster")),
    ("image_", unsupported("there are models for text only")),
    ("video_", unsupported("there are models for text only")),
    ("audio_", unsupported("there are models for text only")),
    ("profiler_", unneeded("compute.json and report.html of a run hold what was measured")),
    ("dataloader_", unneeded("rows are tokenised and packed before training, and read from the disk without waiting")),
    ("flash_attn_", unneeded("the fastest attention is measured at the start of the run")),
    ("torch_compile_", unneeded("runtime.compile is the only setting")),
)
