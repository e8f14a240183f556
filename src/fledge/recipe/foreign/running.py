"""Keys of other trainers about running: precision, memory, devices, evaluation, checkpoints, logging, the run's place."""

import re
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
    number,
    replaced_by,
    text_list,
    unneeded,
    unsupported,
    word,
)
from fledge.recipe.foreign.learning import MICRO, STEPS

PRECISION_SWITCHES = ("bf16", "fp16", "tf32", "pure_bf16")
DTYPES = name_list("""
    dtype torch_dtype amp_dtype mixed_precision precision mixed_precision_type compute_dtype infer_dtype
    """)
OUTPUT = name_list("output_dir out_dir save_dir output_path save_path saves_dir work_dir")
PRECISIONS = {
    **dict.fromkeys(("bf16", "bfloat16", "bf16-mixed", "bf16-true", "torch.bfloat16", "bf16_mixed"), "bf16"),
    **dict.fromkeys(("fp16", "float16", "16", "16-mixed", "16-true", "half", "torch.float16", "fp16_mixed"), "fp16"),
    **dict.fromkeys(("fp32", "float32", "32", "32-true", "full", "no", "torch.float32", "float", "false"), "fp32"),
    **dict.fromkeys(("tf32", "tensorfloat32"), "tf32"),
    **dict.fromkeys(("auto", "yes", "true", "default"), "auto"),
}
ATTENTIONS = {
    "sdpa": "sdpa",
    "flex_attention": "flex",
    "flex": "flex",
    "auto": "auto",
    "varlen": "varlen",
    "blocked": "blocked",
}


def precision(value: Any, context: Context) -> Answer:
    """bf16, fp16, tf32 and dtype together name one precision."""
    halves = [name for name in ("bf16", "pure_bf16", "fp16", "tf32") if boolean(context.siblings.get(name)) is True]
    if "auto" in (word(context.siblings.get(name)) for name in PRECISION_SWITCHES):
        return Answer((("runtime.precision", "auto"),))
    dtype = next((word(context.siblings[name]) for name in DTYPES if context.siblings.get(name) is not None), "")
    if boolean(context.first_value(("use_amp", "amp"))) is False and not halves:
        return Answer((("runtime.precision", "fp32"),))
    if halves:
        return Answer((("runtime.precision", halves[0].removeprefix("pure_")),), "weights are always kept in float32")
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
    """Where to compute: fledge knows cpu and cuda."""
    name = word(value).split(":")[0]
    known = {"cuda": "cuda", "gpu": "cuda", "cpu": "cpu", "auto": "auto"}
    if name in known:
        return Answer((("runtime.device", known[name]),))
    return Answer(note="the devices are auto, cpu and cuda: runtime: {device: auto}")


def checkpointing(value: Any, context: Context) -> Answer:
    """Activations that are computed again."""
    if isinstance(value, int) and not isinstance(value, bool) and value > 1:
        return Answer((("runtime.activation_checkpointing", value),))
    if isinstance(value, str) and boolean(value) is None and word(value) not in ("none", "unsloth", "selective", "offload"):
        return Answer((("runtime.activation_checkpointing", value),))
    return Answer(
        (("runtime.activation_checkpointing", "none" if boolean(value) is False or word(value) == "none" else "full"),)
    )


def attention(value: Any, context: Context) -> Answer:
    """How attention is computed: fledge measures what is fastest."""
    name = word(value)
    if ATTENTIONS.get(name, "auto") != "auto":
        return Answer((("runtime.attention", ATTENTIONS[name]),))
    return Answer(note="leave it out; the fastest attention is measured at the start of the run")


def _steps(path: str, what: str) -> Any:
    """A number of steps; a share of all steps where their number is known."""

    def rule(value: Any, context: Context) -> Answer:
        share, total = number(value), context.integer(STEPS)
        if share is None or share >= 1:
            return Answer(((path, as_integer(value)),))
        if share <= 0:
            return Answer(note=f"leave it out; {what}")
        if total and total > 0:
            steps = max(1, round(share * total))
            return Answer(((path, steps),), f"{share:g} of {total} steps")
        section, name = path.split(".")
        usual = (
            f"leave it out; {what}, which is this share"
            if share == 0.1 and "logging" not in path
            else f"write a number of steps: {section}: {{{name}: 100}}"
        )
        return Answer(note=usual)

    return rule


def _max_packed_rows(value: Any, context: Context) -> Answer:
    batches, micro = integer(value), context.integer(MICRO)
    if batches and micro:
        return Answer((("evaluation.max_packed_rows", batches * micro),), f"{batches} batches of {micro} rows")
    return Answer((("evaluation.max_packed_rows", as_integer(value)),))


def _keep_last(value: Any, context: Context) -> Answer:
    count = integer(value)
    if count is not None and count < 1:
        return Answer(note="leave it out; checkpoint.keep_last says how many checkpoints stay, 2 without it")
    return Answer((("checkpoint.keep_last", as_integer(value)),), "the best checkpoint is always kept too")


def _trackers(value: Any, context: Context) -> Answer:
    names = [word(name) for name in text_list(value)]
    others = [
        name for name in names if name not in ("tensorboard", "all", "none", "no", "jsonl", "csv", "disk", "stdout", "logger")
    ]
    note = f"{', '.join(others)} is not supported; events.jsonl and report.html hold the metrics" if others else ""
    if {"tensorboard", "all"} & set(names):
        return Answer((("logging.tensorboard", True),), note)
    return Answer(note=f"leave it out; {note or 'events.jsonl and report.html are always written'}")


def _output_directory(value: Any, context: Context) -> Answer:
    """A directory of a run is its folder and its name."""
    parts = [part for part in str(value).replace("\\", "/").split("/") if part not in ("", ".")]
    if not parts or not isinstance(value, str):
        return Answer(note="a run is written to output/name: output: runs, name: first")
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", parts[-1]).lstrip("._-") or "run"
    folder = ("/" if value.startswith("/") else "") + "/".join(parts[:-1])
    writes = (("output", folder), ("name", name)) if folder not in ("", "/") else (("name", name),)
    return Answer(writes)


def _run_name(value: Any, context: Context) -> Answer:
    if context.has(OUTPUT):
        return Answer(note="leave it out; the run is called as its directory")
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", str(value)).lstrip("._-")
    return Answer((("name", name),)) if name else Answer(note="name: first")


def _best(value: Any, context: Context) -> Answer:
    return Answer((("select_checkpoint", "last" if boolean(value) is False else "best"),))


def _metric(value: Any, context: Context) -> Answer:
    if word(value) in ("eval_loss", "loss", "val_loss", "validation_loss"):
        return Answer(note="leave it out; the best checkpoint is the one of the lowest validation loss")
    return Answer(note="checkpoints are compared by validation loss only; prompt_tests ask prompts of your own as well")


def _resume(value: Any, context: Context) -> Answer:
    return Answer(note="leave it out; the same command goes on with a run that was interrupted")


_SAVED = unneeded("checkpoint.every_steps says it, without it as often as evaluations; the last step is always saved")
_PROCESSES = unneeded("the processes of a run find each other; start them with fledge train --processes N")
_FSDP = "for a model that is too large for one device: several processes then share it"
_TRACKED = unneeded(
    "events.jsonl and report.html hold the metrics of a run; logging: {tensorboard: true} shows them in TensorBoard"
)
_CONSOLE = unneeded("the console shows progress by itself; logging.every_steps is the one setting")
_EVALUATIONS = unneeded("validation uses the micro-batch size of training, on at most evaluation.max_packed_rows rows")

RUNNING: Table = {
    "fp32": if_true(replaced_by("runtime.precision", lambda value: "fp32"), unneeded("runtime.precision says it")),
    **for_keys((*PRECISION_SWITCHES, *DTYPES, "use_amp", "amp"), precision),
    **for_keys(
        """
        bf16_full_eval fp16_full_eval upcast_layernorm upcast_lmhead_output fp16_opt_level half_precision_backend
        fp16_backend loss_scale initial_scale_power
        """,
        unneeded("runtime.precision is the only setting, and fp16 scales its loss by itself"),
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
        activation_offloading enable_activation_offloading torch_empty_cache_steps
        """,
        unneeded("runtime.activation_checkpointing is the only setting: none, full, or every how many blocks"),
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
        flash_attn_fuse_mlp flash_attn_cross_entropy flash_attn_rms_norm use_sdpa
        """,
        unneeded("the fastest attention is measured at the start of the run"),
    ),
    **for_keys(
        """
        use_liger_kernel enable_liger_kernel liger_kernel_config use_liger use_unsloth use_v1_kernels chunked_cross_entropy
        cut_cross_entropy
        """,
        unneeded("the loss is computed in pieces, and no table of all logits is kept"),
    ),
    "device": device,
    **for_keys(
        "use_cpu no_cuda use_mps_device",
        if_true(replaced_by("runtime.device", lambda value: "cpu"), unneeded("runtime.device: auto finds a GPU")),
    ),
    **for_keys(
        """
        deepspeed fsdp fsdp_config deepspeed_config zero_stage zero_optimization fsdp_version accelerator_config
        parallelism_config use_fsdp strategy fsdp_transformer_layer_cls_to_wrap tensor_parallel_size sharded_ddp
        tensor_model_parallel_size pipeline_model_parallel_size expert_model_parallel_size context_parallel_size
        distributed_type
        """,
        lambda value, context: _parallelism(value),
    ),
    **for_keys(
        """
        use_ddp ddp rank local_rank distributed multi_gpu dist_backend backend num_nodes nnodes node_rank master_addr
        master_port distributed_backend num_machines machine_rank main_process_port same_network ray_num_workers
        ray_init_kwargs sequence_parallel use_distributed_optimizer overlap_grad_reduce overlap_param_gather ray_scope
        mp_parameters tpu_num_cores tpu_metrics_debug rdzv_backend
        """,
        _PROCESSES,
    ),
    **for_keys(
        """
        eval_steps eval_interval eval_freq eval_every evaluation_steps val_check_interval eval_every_n_steps
        run_valid_every_n_steps
        """,
        _steps("evaluation.every_steps", "a stage is evaluated ten times"),
    ),
    **for_keys(
        """
        save_steps save_interval save_freq checkpoint_interval ckpt_interval save_every save_every_n_steps
        """,
        _steps("checkpoint.every_steps", "a stage is saved as often as it is evaluated, ten times"),
    ),
    **for_keys(
        """
        logging_steps log_interval log_freq log_steps log_every_n_steps print_every log_every logging_interval
        """,
        _steps("logging.every_steps", "every tenth step is told"),
    ),
    **for_keys("eval_iters eval_batches max_eval_batches eval_max_iters", _max_packed_rows),
    **for_keys(
        "evals_per_epoch saves_per_epoch eval_every_n_epochs save_every_n_epochs",
        advice("write a number of steps: evaluation: {every_steps: 100}; without it ten times a stage"),
    ),
    **for_keys(
        """
        per_device_eval_batch_size eval_batch_size per_gpu_eval_batch_size eval_accumulation_steps batch_eval_metrics
        eval_do_concat_batches eval_use_gather_object prediction_loss_only val_batch_size eval_delay eval_on_start
        include_for_metrics eval_max_samples eval_table_size eval_on_each_dataset max_eval_samples
        """,
        _EVALUATIONS,
    ),
    **for_keys(
        """
        do_predict predict_with_generate generation_max_length generation_num_beams eval_num_beams compute_accuracy
        do_bench_eval generate_during_eval eval_max_new_tokens include_inputs_for_metrics generation_config
        do_causal_lm_eval
        """,
        unsupported(
            "generation_samples: {prompts: [Who are you?]} answers prompts around each stage; prompt_tests check the answers"
        ),
    ),
    **for_keys(
        """
        save_total_limit keep_latest_n_ckp keep_last_n_checkpoints max_checkpoints keep_checkpoints max_to_keep
        """,
        _keep_last,
    ),
    **for_keys("save_strategy always_save_checkpoint save_last save_final_model", _SAVED),
    **for_keys(
        """
        save_only_model save_safetensors save_on_each_node enable_jit_checkpoint save_optimizer ignore_data_skip
        restore_callback_states_from_checkpoint save_full_state checkpoint_files recipe_checkpoint
        """,
        unneeded("a checkpoint always holds the model as safetensors and the state to go on with"),
    ),
    **for_keys("load_best_model_at_end save_best_model load_best save_best", _best),
    "metric_for_best_model": _metric,
    "greater_is_better": if_true(
        advice("checkpoints are compared by validation loss, where less is better"),
        unneeded("the lower validation loss is better"),
    ),
    **for_keys(
        "early_stopping_patience early_stopping_steps early_stop_patience es_patience",
        replaced_by("early_stopping.patience", as_integer, "counted in evaluations"),
    ),
    **for_keys(
        "early_stopping_threshold early_stopping_min_delta early_stop_threshold min_delta",
        replaced_by("early_stopping.threshold"),
    ),
    **for_keys("early_stop_loss target_val_loss stop_loss", replaced_by("early_stopping.target_loss")),
    **for_keys(
        "use_early_stopping early_stop",
        if_true(
            replaced_by("early_stopping.patience", lambda value: 3, "evaluations without a lower loss"),
            unneeded("without early_stopping.patience a stage is not stopped"),
        ),
    ),
    **for_keys("report_to reporters logger log_with metric_logger logger_name", _trackers),
    **for_keys(
        """
        use_wandb wandb_log use_swanlab use_tensorboard wandb swanlab project trackio use_mlflow use_comet
        """,
        lambda value, context: _tracker_switch(value),
    ),
    "tensorboard_dir": replaced_by("logging.tensorboard", lambda value: True, "it is written into the directory of the run"),
    **for_keys(
        """
        logging_dir log_dir logging_file logging_strategy logging_first_step logging_nan_inf_filter log_on_each_node
        log_level log_level_replica disable_tqdm include_num_input_tokens_seen include_tokens_per_second verbose
        log_completions enable_torch_profiler profile_modules print_param_status skip_memory_metrics debug
        include_effective_tokens_per_second log_peak_memory_stats profiler log_predictions
        """,
        _CONSOLE,
    ),
    "max_new_tokens": replaced_by("generation_samples.max_new_tokens", as_integer),
    "eval_only": unsupported("fledge trains; fledge generate and fledge chat run a model"),
    "plot_loss": unneeded("report.html always has the curves"),
    **for_keys(OUTPUT, _output_directory),
    **for_keys("run_name experiment_name exp_name wandb_run_name project_name job_name", _run_name),
    **for_keys("overwrite_output_dir overwrite_output", unneeded("a run is never written over: choose another name")),
    **for_keys(
        """
        resume_from_checkpoint resume auto_resume auto_resume_from_checkpoints from_resume resume_from
        """,
        _resume,
    ),
    **for_keys(
        "train_state_dir model_file checkpoint_path save_weight ckpt_name checkpoint_name",
        unneeded("models and states are kept in the directory of the run"),
    ),
    **for_keys("data_seed shuffle_seed", unneeded("everything random follows from seed")),
    **for_keys("random_seed manual_seed rng_seed", replaced_by("seed", as_number)),
    **for_keys(
        "full_determinism deterministic cudnn_deterministic_mode benchmark", unneeded("the same recipe gives the same run")
    ),
    "do_train": if_true(
        unneeded("fledge train trains"), unneeded("fledge train RECIPE --dry-run shows the plan and trains nothing")
    ),
    **for_keys("max_time max_train_time time_limit", advice("write it with its unit: guards: {time: {max_time: 8 h}}")),
    **for_keys("num_cpu_threads_per_process num_threads omp_num_threads", replaced_by("runtime.threads", as_integer)),
}


def _parallelism(value: Any) -> Answer:
    if boolean(value) is False or value in ("", "none", "no", [], {}, 0):
        return Answer(note="leave it out; it is off")
    return Answer((("runtime.parallelism", "fsdp"),), _FSDP)


def _tracker_switch(value: Any) -> Answer:
    return _TRACKED(value, Context()) if boolean(value) is not False else Answer(note="leave it out; it is off")
