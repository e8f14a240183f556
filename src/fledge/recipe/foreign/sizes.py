"""Keys of other trainers about the model: where it is, how large it is, and a mixture of experts."""

from typing import Any

from fledge.recipe.foreign.answer import (
    Answer,
    Context,
    Table,
    advice,
    as_integer,
    as_number,
    boolean,
    for_keys,
    if_true,
    integer,
    name_list,
    replaced_by,
    unneeded,
    unsupported,
    word,
)
from fledge.recipe.schema_keys import preset_names

PATHS = name_list("""
    model_name_or_path model_path base_model pretrained_model_name_or_path pretrained_model pretrained_path model_id
    base_model_path model_dir checkpoint_dir finetune_from_ckp_file init_checkpoint from_pretrained load_from
    pretrained_model_path from_weight initial_checkpoint_dir
    """)
WIDTH = name_list("n_embd dim d_model embed_dim embedding_dim n_embed hidden_size emb_dim model_dim")
LAYERS = name_list("n_layer n_layers num_layers num_hidden_layers depth")
HEADS = ("n_head", "n_heads", "num_heads", "num_attention_heads")
KV_HEADS = name_list("""
    n_kv_heads n_kv_head num_kv_heads num_key_value_heads n_query_groups num_query_groups kv_heads
    """)
INTERMEDIATE = name_list("intermediate_size hidden_dim ffn_dim d_ff ffn_hidden_size mlp_dim n_inner")
EXPERTS = name_list("n_routed_experts num_experts num_local_experts n_experts moe_num_experts n_expert")
ACTIVE_EXPERTS = name_list("""
    num_experts_per_tok experts_per_token moe_top_k n_expert_per_token num_experts_per_token n_activated_experts
    """)
SHARED_EXPERTS = ("n_shared_experts", "num_shared_experts", "n_shared_expert")
AUX_LOSS = name_list("aux_loss_alpha moe_aux_loss_coef router_aux_loss_coef aux_loss_coef moe_loss_coeff")
TORCH_FILES = name_list(".pt .pth .bin .ckpt .safetensors")


def _model_path(value: Any, context: Context) -> Answer:
    if not isinstance(value, str) or not value.strip():
        return Answer(note="write the directory of a model: model: {path: models/base}")
    if not context.model_key:
        return Answer(note="leave it out; a stage starts from the model of the previous stage")
    name = value.strip()
    suffix = next((end for end in TORCH_FILES if name.lower().endswith(end)), "")
    if suffix:
        note = f"a model is a directory with config.json and model.safetensors, not a {suffix} file"
        return Answer(((context.model_key, name[: -len(suffix)] or "model"),), note)
    remote = name.count("/") == 1 and not name.startswith(("/", ".", "~")) and not name.endswith("/")
    return Answer(((context.model_key, name),), "a directory on this machine: download the model first" if remote else "")


def _model_name(value: Any, context: Context) -> Answer:
    """The answer to `model_name`: a model to start from if it holds a slash, else only a label."""
    if isinstance(value, str) and "/" in value and not context.has(PATHS):
        return _model_path(value, context)
    return Answer(note="leave it out; the name of a run is the key name")


def _init_from(value: Any, context: Context) -> Answer:
    """The answer to nanoGPT's `init_from`: scratch, resume, or the name of a GPT-2."""
    if word(value) == "scratch":
        return Answer(note="leave it out; without model.path the model is trained from scratch")
    if word(value) == "resume":
        return Answer(note="leave it out; the same command continues an interrupted run")
    return Answer(note="write a model directory: model: {path: models/base}; a GPT-2 directory needs pip install 'fledge[hf]'")


def _model_size(value: Any, context: Context) -> Answer:
    """The answer to a model size such as `26M`, which may be the name of a preset."""
    name = word(value).replace("_", "-")
    if name in preset_names():
        return Answer(
            (("preset", name),),
            "the preset sets model sizes and hyper-parameters for each kind of stage; keys of the recipe take precedence",
        )
    return Answer(note=f"leave it out; the keys of model set each size; the presets are {', '.join(preset_names())}")


def inner_width(width: int) -> int:
    """The width of a SwiGLU network with as many weights as an ungated one of 4 × `width`: 8/3 × `width`, rounded up to 64."""
    return -(-8 * width // 192) * 64


def _hidden_size(value: Any, context: Context) -> Answer:
    width = integer(value)
    if width is None or width < 1 or context.has(INTERMEDIATE) or "intermediate_size" in context.model_section:
        return Answer((("model.hidden_size", as_integer(value)),))
    return Answer(
        (("model.hidden_size", width), ("model.intermediate_size", inner_width(width))),
        "the feed-forward network is SwiGLU: 8/3 of the width gives as many weights as 4 times the width without a gate",
    )


def _attention_heads(value: Any, context: Context) -> Answer:
    heads = as_integer(value)
    if context.has(KV_HEADS) or "num_key_value_heads" in context.model_section:
        return Answer((("model.num_attention_heads", heads),))
    return Answer(
        (("model.num_attention_heads", heads), ("model.num_key_value_heads", heads)),
        "every head has its own keys and values, as in your configuration",
    )


def _attention_bias(value: Any, context: Context) -> Answer:
    """The answer to `attention_bias`, which is true or false in config.json."""
    return Answer((("model.attention_bias", "qkvo" if boolean(value) else "none"),))


def _moe(value: Any, context: Context) -> Answer:
    """The answer to the keys of a mixture of experts, which form one section together."""
    use_moe = context.first_value(("use_moe",))
    if boolean(use_moe) is False:
        return Answer(note="leave it out; without model.moe the model is dense")
    experts, active, shared = context.integer(EXPERTS), context.integer(ACTIVE_EXPERTS), context.integer(SHARED_EXPERTS)
    if experts is None and active is None and use_moe is None:
        return Answer(note="a mixture of experts is model: {moe: {num_experts: 4, num_experts_per_tok: 2}}")
    moe: dict[str, Any] = {
        "num_experts": 4 if experts is None else experts,
        "num_experts_per_tok": 2 if active is None else active,
    }
    if shared:
        moe["num_shared_experts"] = shared
    if boolean(context.first_value(("norm_topk_prob",))) is False or moe["num_experts_per_tok"] == 1:
        moe["norm_topk_prob"] = False
    if context.number(AUX_LOSS) is not None:
        moe["router_aux_loss_coef"] = context.number(AUX_LOSS)
    assumed = "a count that is not given is taken as 4 experts, 2 per token" if experts is None or active is None else ""
    return Answer((("model.qk_norm", not shared), *((f"model.moe.{key}", item) for key, item in moe.items())), assumed)


_FIXED = unneeded(
    "a model trained from scratch is a decoder with RMSNorm, rotary positions and a SwiGLU network, without biases"
)

SIZES: Table = {
    **for_keys(PATHS, _model_path),
    "model_name": _model_name,
    "init_from": _init_from,
    "model_size": _model_size,
    **for_keys(WIDTH, _hidden_size),
    **for_keys(LAYERS, replaced_by("model.num_hidden_layers", as_integer)),
    **for_keys(HEADS, _attention_heads),
    **for_keys(KV_HEADS, replaced_by("model.num_key_value_heads", as_integer)),
    **for_keys(INTERMEDIATE, replaced_by("model.intermediate_size", as_integer)),
    **for_keys("norm_eps rms_norm_epsilon layer_norm_eps layernorm_epsilon", replaced_by("model.rms_norm_eps")),
    **for_keys("rope_base rope_theta_base rotary_base", replaced_by("model.rope_theta")),
    **for_keys(
        "tie_embeddings weight_tying tied_embeddings tie_weights",
        replaced_by("model.tie_word_embeddings", lambda value: boolean(value) is not False),
    ),
    **for_keys("dropout_rate resid_pdrop hidden_dropout hidden_dropout_prob resid_dropout", replaced_by("model.dropout")),
    **for_keys(
        """
        attn_pdrop embd_pdrop attention_dropout attn_dropout disable_dropout attention_probs_dropout_prob
        """,
        unneeded("model.dropout is the only one, and it is 0 unless you write it"),
    ),
    **for_keys("init_std initializer_std weight_init_std", replaced_by("model.initializer_range")),
    **for_keys("padded_vocab_size n_vocab vocabulary_size", replaced_by("tokenizer.vocab_size", as_integer)),
    **for_keys("use_qk_norm qk_layernorm norm_qk", replaced_by("model.qk_norm", lambda value: boolean(value) is not False)),
    **for_keys(("use_moe", *EXPERTS, *ACTIVE_EXPERTS, *SHARED_EXPERTS, *AUX_LOSS, "norm_topk_prob"), _moe),
    **for_keys(
        """
        scoring_func seq_aux topk_group n_group router_jitter_noise moe_grouped_gemm moe_token_dispatcher_type
        moe_layer_freq first_k_dense_replace
        """,
        unneeded("every block has a router, and it chooses experts by softmax"),
    ),
    **for_keys("moe_intermediate_size", replaced_by("model.intermediate_size", as_integer)),
    **for_keys(
        """
        bias mlp_bias hidden_act activation norm_type multiple_of use_bias architecture architectures
        model_type model_arch ffn_type position_embedding_type add_bias_linear apply_rope_fusion bias_activation_fusion
        is_encoder_decoder is_falcon_derived_model base_model_attribute_name
        """,
        _FIXED,
    ),
    **for_keys("head_dim d_head", replaced_by("model.head_dim", as_integer)),
    "attention_bias": _attention_bias,
    **for_keys(
        """
        rope_scaling rope_parameters inference_rope_scaling
        """,
        unsupported("model.rope_scaling stretches the positions of a fresh model; a model in model.path has its own scaling"),
    ),
    **for_keys(
        "shift_attn mixture_of_depths use_sliding_window sliding_window",
        unsupported("every layer attends to the whole text, except as a model directory says"),
    ),
    **for_keys(
        "model_config_file model_config config_name config_path config_overrides",
        unneeded("sizes are keys of model, or are read from the directory model.path"),
    ),
    **for_keys(
        """
        model_init_kwargs trust_remote_code model_revision low_cpu_mem_usage use_auth_token hf_hub_token token ms_hub_token
        om_hub_token ignore_mismatched_sizes device_map revision use_safetensors resume_download
        """,
        unneeded("a model is read from a directory of this machine, and no code of it is run"),
    ),
    **for_keys(
        "train_from_scratch from_scratch",
        if_true(
            unneeded("without model.path the model is trained from scratch"), unneeded("model.path is the model to start from")
        ),
    ),
    **for_keys(
        "initializer_seed init_device init_method", unneeded("initial weights follow from seed and model.initializer_range")
    ),
    **for_keys("freeze_layers unfreeze_layers unfrozen_parameters freeze", unsupported("the whole model is trained")),
    "aspect_ratio": advice("write the width of the model: model: {hidden_size: 768}"),
    "model_max_position_embeddings": replaced_by("model.max_position_embeddings", as_number),
    "tokenizer_vocab_size": replaced_by("tokenizer.vocab_size", as_integer),
    "finetune": advice("start from a model directory: model: {path: models/base}"),
}
