"""Keys of other trainers about computation: precision, memory, devices, attention, parallelism."""

from typing import Any

from fledge.recipe.foreign.answer import (
    Answer,
    Context,
    Table,
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

PRECISION_SWITCHES = ("bf16", "fp16", "tf32", "pure_bf16")
DTYPES = name_list("""
    dtype torch_dtype amp_dtype mixed_precision precision mixed_precision_type compute_dtype infer_dtype
    """)
PRECISIONS = {
    **dict.fromkeys(("bf16", "bfloat16", "bf16-mixed", "bf16-true", "torch.bfloat16", "bf16_mixed"), "bf16"),
    **dict.fromkeys(("fp16", "float16", "16", "16-mixed", "16-true", "half", "torch.float16", "fp16_mixed"), "fp16"),
    **dict.fromkeys(("fp32", "float32", "32", "32-true", "full", "no", "torch.float32", "float", "false"), "fp32"),
    **dict.fromkeys(("tf32", "tensorfloat32"), "tf32"),
    **dict.fromkeys(("auto", "yes", "true", "default"), "auto"),
}
SHARDING_STRATEGIES = ("fsdp", "deepspeed", "zero", "megatron")  # parts of the names of strategies that shard the model
ATTENTIONS = {
    "sdpa": "sdpa",
    "flex_attention": "flex",
    "flex": "flex",
    "auto": "auto",
    "varlen": "varlen",
    "blocked": "blocked",
}


_PROCESSES = unneeded("fledge train --processes N starts the processes and connects them")
_FSDP = "for a model that is too large for one device: several processes share its weights"


def precision(value: Any, context: Context) -> Answer:
    """The answer to bf16, fp16, tf32 and dtype, which are one key."""
    enabled = [name for name in ("bf16", "pure_bf16", "fp16", "tf32") if boolean(context.siblings.get(name)) is True]
    if "auto" in (word(context.siblings.get(name)) for name in PRECISION_SWITCHES):
        return Answer((("runtime.precision", "auto"),))
    dtype = next((word(context.siblings[name]) for name in DTYPES if context.siblings.get(name) is not None), "")
    if boolean(context.first_value(("use_amp", "amp"))) is False and not enabled:
        return Answer((("runtime.precision", "fp32"),))
    if enabled:
        return Answer((("runtime.precision", enabled[0].removeprefix("pure_")),), "parameters are always float32")
    if dtype:
        return _precision_of_dtype(dtype)
    if context.has(PRECISION_SWITCHES) and all(
        boolean(context.siblings.get(name)) is not None for name in PRECISION_SWITCHES if context.has((name,))
    ):
        return Answer((("runtime.precision", "fp32"),))
    return _precision_of_dtype(word(value))


def _precision_of_dtype(name: str) -> Answer:
    if name not in PRECISIONS:
        return Answer(note="the precisions are auto, fp32, tf32, bf16 and fp16: runtime: {precision: bf16}")
    return Answer((("runtime.precision", PRECISIONS[name]),))


def device(value: Any, context: Context) -> Answer:
    """The answer to the name of a device."""
    name = word(value).split(":")[0]
    known = {"cuda": "cuda", "gpu": "cuda", "cpu": "cpu", "auto": "auto"}
    if name in known:
        return Answer((("runtime.device", known[name]),))
    return Answer(note="the devices are auto, cpu and cuda: runtime: {device: auto}")


def checkpointing(value: Any, context: Context) -> Answer:
    """The answer to activation checkpointing."""
    if isinstance(value, int) and not isinstance(value, bool) and value > 1:
        return Answer((("runtime.activation_checkpointing", value),))
    if isinstance(value, str) and boolean(value) is None and word(value) not in ("none", "unsloth", "selective", "offload"):
        return Answer((("runtime.activation_checkpointing", value),))
    return Answer(
        (("runtime.activation_checkpointing", "none" if boolean(value) is False or word(value) == "none" else "full"),)
    )


def attention(value: Any, context: Context) -> Answer:
    """The answer to the name of an attention implementation; fledge has its own names and measures which one is fastest."""
    name = word(value)
    if ATTENTIONS.get(name, "auto") != "auto":
        return Answer((("runtime.attention", ATTENTIONS[name]),))
    return Answer(note="leave it out; the fastest attention is measured at the start of the run")


def _is_off(value: Any) -> bool:
    return boolean(value) is False or value in ("", "none", [], {}, 0)


def _parallelism(value: Any, context: Context) -> Answer:
    """The answer to a switch or a configuration of FSDP or DeepSpeed."""
    if _is_off(value):
        return Answer(note="leave it out; it is off")
    return Answer((("runtime.parallelism", "fsdp"),), _FSDP)


def _strategy(value: Any, context: Context) -> Answer:
    """The answer to the name of a strategy that shards the model, or gives each device all of it: `fsdp`, `MULTI_GPU`."""
    if any(name in word(value) for name in SHARDING_STRATEGIES):
        return _parallelism(value, context)
    return _PROCESSES(value, context)


def _fsdp_option(value: Any, context: Context) -> Answer:
    """The answer to an option of FSDP; trainers save such options also where `fsdp` is off."""
    if "fsdp" in context.siblings:
        return Answer(note="leave it out; runtime: {parallelism: fsdp} is the only setting")
    return _parallelism(value, context)


def _parallel_size(value: Any, context: Context) -> Answer:
    if integer(value) in (0, 1):
        return Answer(note="leave it out; it is off")
    return _parallelism(value, context)


COMPUTATION: Table = {
    "fp32": if_true(replaced_by("runtime.precision", lambda value: "fp32"), unneeded("runtime.precision is the setting")),
    **for_keys((*PRECISION_SWITCHES, *DTYPES, "use_amp", "amp"), precision),
    **for_keys(
        """
        bf16_full_eval fp16_full_eval upcast_layernorm upcast_lmhead_output fp16_opt_level half_precision_backend
        fp16_backend loss_scale initial_scale_power
        """,
        unneeded("runtime.precision is the only setting; fp16 scales the loss automatically"),
    ),
    **for_keys(
        """
        gradient_checkpointing activation_checkpointing enable_activation_checkpointing recompute_activations
        use_gradient_checkpointing
        """,
        checkpointing,
    ),
    "disable_gradient_checkpointing": lambda value, context: checkpointing(boolean(value) is False, context),
    **for_keys(
        """
        gradient_checkpointing_kwargs use_reentrant_gc activation_checkpointing_kwargs use_unsloth_gc use_cache
        activation_offloading enable_activation_offloading torch_empty_cache_steps gradient_checkpointing_use_reentrant
        """,
        unneeded("runtime.activation_checkpointing is the only setting: none, full, or n for every n-th block"),
    ),
    **for_keys(
        "torch_compile compile_model use_compile torchdynamo jit_mode_eval",
        replaced_by("runtime.compile", lambda value: boolean(value) is not False),
    ),
    **for_keys("torch_compile_backend torch_compile_mode compile_backend", unneeded("runtime.compile is the only setting")),
    **for_keys("attn_implementation flash_attn attention_backend attn_impl", attention),
    **for_keys(
        """
        use_flash_attention flash_attention use_flash_attn flash_attention_2 sdp_attention xformers_attention s2_attention
        flash_attn_fuse_mlp flash_attn_cross_entropy flash_attn_rms_norm use_sdpa eager_attention
        """,
        unneeded("the fastest attention is measured at the start of the run"),
    ),
    **for_keys(
        """
        use_liger_kernel enable_liger_kernel liger_kernel_config use_liger use_unsloth use_v1_kernels chunked_cross_entropy
        cut_cross_entropy use_logits_to_keep use_liger_loss
        """,
        unneeded("the loss is computed in chunks, so that the logits of a batch are never in memory at once"),
    ),
    "device": device,
    **for_keys(
        "use_cpu no_cuda use_mps_device",
        if_true(replaced_by("runtime.device", lambda value: "cpu"), unneeded("runtime.device: auto finds a GPU")),
    ),
    **for_keys(
        """
        deepspeed fsdp deepspeed_config zero_stage zero_optimization use_fsdp sharded_ddp
        """,
        _parallelism,
    ),
    **for_keys("strategy distributed_type", _strategy),
    **for_keys("fsdp_config fsdp_version fsdp_transformer_layer_cls_to_wrap", _fsdp_option),
    **for_keys(
        """
        tensor_parallel_size tensor_model_parallel_size pipeline_model_parallel_size expert_model_parallel_size
        context_parallel_size
        """,
        _parallel_size,
    ),
    "parallelism_config": unsupported("several processes share a model by runtime: {parallelism: ddp} or fsdp only"),
    **for_keys(
        """
        use_ddp ddp rank local_rank distributed multi_gpu dist_backend backend num_nodes nnodes node_rank master_addr
        master_port distributed_backend num_machines machine_rank main_process_port same_network ray_num_workers
        ray_init_kwargs sequence_parallel ignore_bias_buffers use_distributed_optimizer overlap_grad_reduce overlap_param_gather
        ray_scope mp_parameters accelerator_config tpu_num_cores tpu_metrics_debug rdzv_backend
        """,
        _PROCESSES,
    ),
}
