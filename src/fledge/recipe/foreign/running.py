"""Keys of other trainers about a run: evaluation, checkpoints, early stopping, logging, directories, seeds."""

import re
from typing import Any

from fledge.recipe.foreign.answer import (
    Answer,
    Context,
    Rule,
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

OUTPUT = name_list("output_dir out_dir save_dir output_path save_path saves_dir work_dir")


def _steps(path: str, default: str) -> Rule:
    """A rule for a number of steps, or for a share of all steps if their number is known; `default` describes the default."""

    def rule(value: Any, context: Context) -> Answer:
        share, total = number(value), context.integer(STEPS)
        if share is None or share >= 1:
            return Answer(((path, as_integer(value)),))
        if share <= 0:
            return Answer(note=f"leave it out; {default}")
        if total and total > 0:
            steps = max(1, round(share * total))
            return Answer(((path, steps),), f"{share:g} of {total} steps")
        section, name = path.split(".")
        usual = (
            f"leave it out; {default}, which is this share"
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
        return Answer(note="leave it out; checkpoint.keep_last is the number of checkpoints that are kept, by default 2")
    return Answer((("checkpoint.keep_last", as_integer(value)),), "the best checkpoint is kept in addition")


RECEIVERS = {  # names of other trainers -> a key of the section `logging`, and its value
    "tensorboard": ("logging.tensorboard", True),
    "wandb": ("logging.wandb.mode", "offline"),
    "trackio": ("logging.trackio.project", "fledge"),
}
NO_RECEIVER = ("none", "no", "jsonl", "csv", "disk", "stdout", "logger")


def _trackers(value: Any, context: Context) -> Answer:
    names = [word(name) for name in text_list(value)]
    others = [name for name in names if name not in (*RECEIVERS, *NO_RECEIVER, "all")]
    note = f"{', '.join(others)} is not supported; events.jsonl and report.html hold the metrics" if others else ""
    found = [name for name in RECEIVERS if name in names or ("all" in names and name == "tensorboard")]
    if found:
        offline = "mode: online sends the figures to W&B" if "wandb" in found else ""
        told = "; ".join(part for part in (note, offline) if part)
        return Answer(tuple(RECEIVERS[name] for name in found), told)
    return Answer(note=f"leave it out; {note or 'events.jsonl and report.html are always written'}")


def _output_directory(value: Any, context: Context) -> Answer:
    """The answer to the directory of a run, which is its folder and its name."""
    components = [name for name in str(value).replace("\\", "/").split("/") if name not in ("", ".")]
    if not components or not isinstance(value, str):
        return Answer(note="a run is written to output/name: output: runs, name: first")
    name = re.sub(r"[^\w.-]+", "-", components[-1]).lstrip("._-") or "run"
    folder = ("/" if value.startswith("/") else "") + "/".join(components[:-1])
    settings = (("output", folder), ("name", name)) if folder not in ("", "/") else (("name", name),)
    return Answer(settings)


def _run_name(value: Any, context: Context) -> Answer:
    if context.has(OUTPUT):
        return Answer(note="leave it out; the run has the name of its directory")
    name = re.sub(r"[^\w.-]+", "-", str(value)).lstrip("._-")
    return Answer((("name", name),)) if name else Answer(note="name: first")


def _best(value: Any, context: Context) -> Answer:
    return Answer((("select_checkpoint", "last" if boolean(value) is False else "best"),))


def _metric(value: Any, context: Context) -> Answer:
    if word(value) in ("eval_loss", "loss", "val_loss", "validation_loss"):
        return Answer(note="leave it out; the best checkpoint is the checkpoint with the lowest validation loss")
    name = word(value).removeprefix("eval_")
    if name in ("exact_match", "valid_json", "f1"):
        return Answer((("metric_for_best_model", name), ("evaluation.generated_answers.rows", 200)))
    return Answer(
        note="checkpoints are compared by validation loss, or by exact_match, valid_json or f1 of answers to validation "
        "questions (metric_for_best_model with evaluation.generated_answers)"
    )


def _resume(value: Any, context: Context) -> Answer:
    return Answer(note="leave it out; the same command continues an interrupted run")


_SAVED = unneeded("checkpoint.every_steps is the interval; the default is at every evaluation; the last step is always saved")
_TRACKED = unneeded(
    "events.jsonl and report.html hold the metrics of a run; tensorboard, wandb or trackio: true in the section logging shows "
    "them elsewhere"
)
_CONSOLE = unneeded("the console always shows the progress; logging.every_steps is the only setting")
_EVALUATIONS = unneeded("an evaluation uses the micro-batch size of training, and at most evaluation.max_packed_rows rows")


def _tracker_switch(value: Any, context: Context) -> Answer:
    return _TRACKED(value, context) if boolean(value) is not False else Answer(note="leave it out; it is off")


RUNNING: Table = {
    **for_keys(
        """
        eval_steps eval_interval eval_freq eval_every evaluation_steps val_check_interval eval_every_n_steps
        run_valid_every_n_steps
        """,
        _steps("evaluation.every_steps", "the default is ten evaluations per stage"),
    ),
    **for_keys(
        """
        save_steps save_interval save_freq checkpoint_interval ckpt_interval save_every save_every_n_steps
        """,
        _steps("checkpoint.every_steps", "the default is a checkpoint at every evaluation, ten per stage"),
    ),
    **for_keys(
        """
        logging_steps log_interval log_freq log_steps log_every_n_steps print_every log_every logging_interval
        """,
        _steps("logging.every_steps", "the default is every tenth step"),
    ),
    **for_keys("eval_iters eval_batches max_eval_batches eval_max_iters", _max_packed_rows),
    **for_keys(
        "evals_per_epoch saves_per_epoch eval_every_n_epochs save_every_n_epochs",
        advice("write a number of steps: evaluation: {every_steps: 100}; the default is ten evaluations per stage"),
    ),
    **for_keys(
        """
        per_device_eval_batch_size eval_batch_size per_gpu_eval_batch_size eval_accumulation_steps batch_eval_metrics
        eval_do_concat_batches eval_use_gather_object prediction_loss_only val_batch_size
        include_for_metrics eval_tokens eval_max_samples eval_table_size eval_on_each_dataset max_eval_samples
        """,
        _EVALUATIONS,
    ),
    **for_keys("eval_on_start eval_delay", unneeded("a stage is evaluated before its first step, and then at equal intervals")),
    **for_keys(
        """
        do_predict predict_with_generate generation_max_length generation_num_beams eval_num_beams compute_accuracy
        do_bench_eval generate_during_eval eval_max_new_tokens include_inputs_for_metrics generation_config
        do_causal_lm_eval sample_every core_metric_every
        """,
        unsupported(
            "generation_samples: {prompts: [Who are you?]} answers prompts before and after a stage; prompt_tests check answers"
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
        unneeded("a checkpoint always holds the model as safetensors and the state to resume from"),
    ),
    **for_keys("load_best_model_at_end save_best_model load_best save_best", _best),
    "metric_for_best_model": _metric,
    "greater_is_better": unneeded("it follows from metric_for_best_model: a lower loss is better, a higher score is"),
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
            unneeded("without early_stopping.patience a stage does not stop early"),
        ),
    ),
    **for_keys("report_to reporters logger log_with metric_logger logger_name", _trackers),
    **for_keys(
        """
        use_wandb wandb_log use_swanlab use_tensorboard wandb swanlab project trackio use_mlflow use_comet
        """,
        _tracker_switch,
    ),
    "tensorboard_dir": replaced_by("logging.tensorboard", lambda value: True, "it is in the directory of the run"),
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
    "eval_only": unsupported("fledge train only trains; fledge generate and fledge chat run a model"),
    "plot_loss": unneeded("report.html always shows the curves"),
    **for_keys(OUTPUT, _output_directory),
    **for_keys("run_name experiment_name exp_name wandb_run_name project_name job_name", _run_name),
    **for_keys("overwrite_output_dir overwrite_output", unneeded("a run is never overwritten: choose another name")),
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
    **for_keys("data_seed shuffle_seed", unneeded("seed determines everything that is random")),
    **for_keys("random_seed manual_seed rng_seed", replaced_by("seed", as_number)),
    **for_keys(
        "full_determinism deterministic cudnn_deterministic_mode",
        if_true(replaced_by("runtime.deterministic", boolean), unneeded("runtime.deterministic is off by default")),
    ),
    "benchmark": unneeded("autotune measures what is fastest"),
    "do_train": if_true(
        unneeded("fledge train always trains"), unneeded("fledge train RECIPE --dry-run shows the plan without training")
    ),
    **for_keys(
        "loss_watchdog_threshold loss_watchdog_patience",
        advice("a guard watches the loss: guards: {divergence: {action: stop, min_increase: 1.0}}"),
    ),
    **for_keys(
        "resources_per_worker placement_strategy", unneeded("fledge train --cluster ray --nodes N runs on a Ray cluster")
    ),
    "plugins": unsupported("there are no plugins"),
    **for_keys("max_time max_train_time time_limit", advice("write it with its unit: guards: {time: {max_time: 8 h}}")),
    **for_keys("num_cpu_threads_per_process num_threads omp_num_threads", replaced_by("runtime.threads", as_integer)),
}
