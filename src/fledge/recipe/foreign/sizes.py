"""Keys of other trainers about the model: where it is, how large it is, and a mixture of experts."""

from typing import Any

from fledge.recipe.foreign.answer import (
    Answer,
    Around,
    Table,
    absent,
    as_number,
    either,
    every,
    leave,
    names,
    plain,
    said,
    switch,
    to,
    whole,
    word,
)
from fledge.recipe.schema_keys import preset_names

PATHS = names("""
    model_name_or_path model_path base_model pretrained_model_name_or_path pretrained_model pretrained_path model_id
    base_model_path model_dir checkpoint_dir finetune_from_ckp_file init_checkpoint from_pretrained load_from
    pretrained_model_path from_weight initial_checkpoint_dir model_name
    """)
WIDTH = names("n_embd dim d_model embed_dim embedding_dim n_embed hidden_size emb_dim model_dim")
LAYERS = names("n_layer n_layers num_layers num_hidden_layers depth")
HEADS = ("n_head", "n_heads", "num_heads", "num_attention_heads")
KV_HEADS = names("""
    n_kv_heads n_kv_head num_kv_heads num_key_value_heads n_query_groups num_query_groups kv_heads
    """)
INNER = names("intermediate_size hidden_dim ffn_dim d_ff ffn_hidden_size mlp_dim n_inner")
EXPERTS = names("n_routed_experts num_experts num_local_experts n_experts moe_num_experts n_expert")
ACTIVE = names("""
    num_experts_per_tok experts_per_token moe_top_k n_expert_per_token num_experts_per_token n_activated_experts
    """)
SHARED = ("n_shared_experts", "num_shared_experts", "n_shared_expert")
BALANCE = names("aux_loss_alpha moe_aux_loss_coef router_aux_loss_coef aux_loss_coef moe_loss_coeff")
TORCH_FILES = names(".pt .pth .bin .ckpt .safetensors")


def _path(value: Any, around: Around) -> Answer:
    if not isinstance(value, str) or not value.strip():
        return Answer(note="write the directory of a model: model: {path: models/base}")
    if not around.model_key:
        return Answer(note="leave it out; a stage starts from the model of the stage before")
    name = value.strip()
    suffix = next((end for end in TORCH_FILES if name.lower().endswith(end)), "")
    if suffix:
        note = f"a model is a directory with config.json and model.safetensors, not a {suffix} file"
        return Answer(((around.model_key, name[: -len(suffix)] or "model"),), note)
    remote = name.count("/") == 1 and not name.startswith(("/", ".", "~")) and not name.endswith("/")
    return Answer(((around.model_key, name),), "a directory on this machine: download the model first" if remote else "")


def _name(value: Any, around: Around) -> Answer:
    """`model_name`: a model to start from, or only what it is called."""
    if isinstance(value, str) and "/" in value and not around.has(PATHS[:-1]):
        return _path(value, around)
    return Answer(note="leave it out; a model has no name, a run has one: name")


def _start(value: Any, around: Around) -> Answer:
    """nanoGPT's init_from: scratch, resume, or a GPT-2."""
    if word(value) == "scratch":
        return Answer(note="leave it out; without model.path the model is trained from scratch")
    if word(value) == "resume":
        return Answer(note="leave it out; the same command goes on with a run that was interrupted")
    return Answer(note="write the directory of a Llama or Qwen3 model: model: {path: models/base}")


def _size(value: Any, around: Around) -> Answer:
    """`26M`: fledge has some sizes as presets."""
    name = word(value).replace("_", "-")
    if name in preset_names():
        return Answer(
            (("preset", name),), "the preset sets sizes and learning for each kind of stage; what you write goes before it"
        )
    return Answer(note=f"leave it out; the sizes say it; there are the presets {', '.join(preset_names())}")


def inner_width(width: int) -> int:
    """The feed-forward width that has as many weights as one of four times the width without a gate: 8/3, in steps of 64."""
    return -(-8 * width // 192) * 64


def _width(value: Any, around: Around) -> Answer:
    width = whole(value)
    if width is None or width < 1 or around.has(INNER) or "intermediate_size" in around.sizes:
        return Answer((("model.hidden_size", plain(value)),))
    return Answer(
        (("model.hidden_size", width), ("model.intermediate_size", inner_width(width))),
        "the feed-forward network is SwiGLU: 8/3 of the width has as many weights as 4 times without a gate",
    )


def _heads(value: Any, around: Around) -> Answer:
    heads = plain(value)
    if around.has(KV_HEADS) or "num_key_value_heads" in around.sizes:
        return Answer((("model.num_attention_heads", heads),))
    return Answer(
        (("model.num_attention_heads", heads), ("model.num_key_value_heads", heads)),
        "every head has its own keys and values, as in your configuration",
    )


def _mixture(value: Any, around: Around) -> Answer:
    """A mixture of experts by all of its keys together."""
    on = around.first(("use_moe",))
    if switch(on) is False:
        return Answer(note="leave it out; without model.moe the model is dense")
    experts, active, shared = around.whole(EXPERTS), around.whole(ACTIVE), around.whole(SHARED)
    if experts is None and active is None and on is None:
        return Answer(note="a mixture of experts is model: {moe: {num_experts: 4, num_experts_per_tok: 2}}")
    moe: dict[str, Any] = {
        "num_experts": 4 if experts is None else experts,
        "num_experts_per_tok": 2 if active is None else active,
    }
    if shared:
        moe["num_shared_experts"] = shared
    if switch(around.first(("norm_topk_prob",))) is False or moe["num_experts_per_tok"] == 1:
        moe["norm_topk_prob"] = False
    if around.number(BALANCE) is not None:
        moe["router_aux_loss_coef"] = around.number(BALANCE)
    assumed = "a count that is not given is taken as 4 experts, 2 per token" if experts is None or active is None else ""
    return Answer((("model.qk_norm", not shared), *((f"model.moe.{key}", item) for key, item in moe.items())), assumed)


_FIXED = leave("a model trained from scratch is a decoder with RMSNorm, rotary positions and a SwiGLU network, without biases")

SIZES: Table = {
    **every(PATHS, _path),
    "model_name": _name,
    "init_from": _start,
    "model_size": _size,
    **every(WIDTH, _width),
    **every(LAYERS, to("model.num_hidden_layers", plain)),
    **every(HEADS, _heads),
    **every(KV_HEADS, to("model.num_key_value_heads", plain)),
    **every(INNER, to("model.intermediate_size", plain)),
    **every("norm_eps rms_norm_epsilon layer_norm_eps layernorm_epsilon", to("model.rms_norm_eps")),
    **every("rope_base rope_theta_base rotary_base", to("model.rope_theta")),
    **every(
        "tie_embeddings weight_tying tied_embeddings tie_weights",
        to("model.tie_word_embeddings", lambda value: switch(value) is not False),
    ),
    **every("dropout_rate resid_pdrop hidden_dropout hidden_dropout_prob resid_dropout", to("model.dropout")),
    **every(
        """
        attn_pdrop embd_pdrop attention_dropout attn_dropout disable_dropout attention_probs_dropout_prob
        """,
        leave("model.dropout is the only one, and it is 0 unless you write it"),
    ),
    **every("init_std initializer_std weight_init_std", to("model.initializer_range")),
    **every("padded_vocab_size n_vocab vocabulary_size", to("tokenizer.vocab_size", plain)),
    **every("use_qk_norm qk_layernorm norm_qk", to("model.qk_norm", lambda value: switch(value) is not False)),
    **every(("use_moe", *EXPERTS, *ACTIVE, *SHARED, *BALANCE, "norm_topk_prob"), _mixture),
    **every(
        """
        scoring_func seq_aux topk_group n_group router_jitter_noise moe_grouped_gemm moe_token_dispatcher_type
        moe_layer_freq first_k_dense_replace
        """,
        leave("a router chooses by softmax, in every block"),
    ),
    **every("moe_intermediate_size", to("model.intermediate_size", plain)),
    **every(
        """
        bias attention_bias mlp_bias hidden_act activation norm_type multiple_of use_bias architecture architectures
        model_type model_arch ffn_type position_embedding_type add_bias_linear apply_rope_fusion bias_activation_fusion
        is_encoder_decoder
        """,
        _FIXED,
    ),
    **every("head_dim d_head", leave("it is hidden_size / num_attention_heads")),
    **every(
        """
        rope_scaling rope_parameters inference_rope_scaling shift_attn mixture_of_depths use_sliding_window sliding_window
        """,
        absent("positions are plain rotary ones over the whole context; model.rope_theta is their base"),
    ),
    **every(
        "model_config_file model_config config_name config_path config_overrides",
        leave("sizes are written in model, or are those of the directory model.path"),
    ),
    **every(
        """
        model_init_kwargs trust_remote_code model_revision low_cpu_mem_usage use_auth_token hf_hub_token token ms_hub_token
        om_hub_token ignore_mismatched_sizes device_map revision use_safetensors resume_download
        """,
        leave("a model is read from a directory of this machine, and no code of it is run"),
    ),
    **every(
        "train_from_scratch from_scratch",
        either(leave("without model.path the model is trained from scratch"), leave("model.path says it")),
    ),
    **every("initializer_seed init_device init_method", leave("initial weights follow from seed and model.initializer_range")),
    **every("freeze_layers unfreeze_layers unfrozen_parameters freeze", absent("the whole model is trained")),
    "model_max_position_embeddings": to("model.max_position_embeddings", as_number),
    "tokenizer_vocab_size": to("tokenizer.vocab_size", plain),
    "finetune": said("start from a model directory: model: {path: models/base}"),
}
