"""Keys of other trainers about optimization: batch, duration, optimizer, learning-rate schedule."""

from typing import Any

from fledge.recipe.foreign.adapters import ADAPTERS, is_off, trains_adapter
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
    percent,
    replaced_by,
    unneeded,
    unsupported,
    word,
)
from fledge.recipe.foreign.grpo import OF_KINDS
from fledge.recipe.foreign.stage_kinds import STAGE_KINDS
from fledge.recipe.schema_keys import KINDS

MICRO = name_list("""
    per_device_train_batch_size micro_batch_size batch_size train_batch_size per_gpu_train_batch_size batch_size_per_gpu
    batch_size_per_device per_device_batch_size device_batch_size train_micro_batch_size_per_gpu mini_batch_size
    """)
ACCUMULATION = name_list("""
    gradient_accumulation_steps accumulation_steps accumulation grad_accum_steps gradient_accumulation
    accumulate_grad_batches grad_accumulation_steps gradient_accumulation_iters accum_steps accum_iter
    """)
GLOBAL_BATCH = ("global_batch_size", "effective_batch_size", "total_batch_size")
TOKENS_PER_STEP = ("tokens_per_batch", "total_batch_tokens", "batch_size_in_tokens", "batch_tokens")
DEVICES = name_list("world_size devices n_gpus num_gpus n_gpu gpus num_devices nproc_per_node num_processes")
LENGTH = name_list("""
    max_seq_len max_seq_length cutoff_len max_length block_size sequence_len seq_len seq_length sequence_length
    context_length context_len model_max_length max_len n_ctx n_positions
    """)
EPOCHS = name_list("""
    num_train_epochs num_epochs epochs max_epochs n_epochs train_epochs num_train_epoches total_epochs
    """)
STEPS = name_list("""
    max_steps max_iters num_steps train_steps training_steps total_steps num_training_steps train_iters max_train_steps
    iterations num_iterations
    """)
TOKENS = ("total_tokens", "train_tokens", "num_train_tokens", "max_tokens")
WARMUP_STEPS = name_list("""
    warmup_steps warmup_iters num_warmup_steps lr_warmup_steps lr_warmup_iters warmup_updates
    """)
WARMUP_SHARES = name_list("""
    warmup_ratio warmup_fraction lr_warmup_fraction lr_warmup_ratio warmup_proportion pct_start
    """)
SCHEDULE = name_list("""
    lr_scheduler_type lr_scheduler lr_schedule scheduler scheduler_type lr_decay_style scheduler_name
    """)
OPTIMIZER = name_list("optim optimizer_type optimizer_name optim_type optimizer")
LEARNING_RATE = name_list("""
    lr learning_rate learn_rate base_lr max_lr peak_lr peak_learning_rate initial_learning_rate init_lr
    """)
BETA1, BETA2 = ("adam_beta1", "beta1", "beta_1"), ("adam_beta2", "beta2", "beta_2")

ROWS = "an update reads micro_batch_size × gradient_accumulation_steps packed rows, however many devices share it"
SCHEDULES: dict[str, tuple[str, str]] = {
    "linear": ("linear", ""),
    "cosine": ("cosine", ""),
    "constant": ("constant", ""),
    "constant_with_warmup": ("constant", ""),
    "wsd": ("wsd", ""),
    "warmup_stable_decay": ("wsd", ""),
    "onecycle": ("onecycle", ""),
    "one_cycle": ("onecycle", ""),
    "cosine_with_min_lr": ("cosine", "its lowest learning rate is schedule.min_lr: a number, or a percentage such as 10%"),
    "cosine_warmup_with_min_lr": (
        "cosine",
        "its lowest learning rate is schedule.min_lr: a number, or a percentage such as 10%",
    ),
    "cosine_with_restarts": ("cosine", "there are no restarts: the learning rate falls once"),
    "polynomial": ("linear", "the only power is 1"),
    "inverse_sqrt": ("cosine", "there is no inverse square root; cosine and wsd are the nearest"),
    "reduce_lr_on_plateau": (
        "cosine",
        "no schedule depends on the validation loss; early_stopping: {patience: 3} stops the stage instead",
    ),
    "cosineannealinglr": ("cosine", ""),
    "linearlr": ("linear", ""),
    "constantlr": ("constant", ""),
    "onecyclelr": ("onecycle", ""),
    "get_cosine_schedule_with_warmup": ("cosine", ""),
    "get_linear_schedule_with_warmup": ("linear", ""),
    "warmupdecaylr": ("linear", ""),
    "warmuplr": ("constant", ""),
    "cosine_annealing": ("cosine", ""),
    "cosine_decay": ("cosine", ""),
    "none": ("constant", ""),
}
OPTIMIZERS = {
    **dict.fromkeys(
        (
            "adamw",
            "adamw_torch",
            "adamw_torch_fused",
            "adamw_hf",
            "adamw_torch_xla",
            "adamw_torch_npu_fused",
            "adamw_apex_fused",
            "adamw_anyprecision",
            "paged_adamw",
            "paged_adamw_32bit",
            "fusedadam",
            "fused_adamw",
        ),
        "adamw",
    ),
    **dict.fromkeys(
        ("adamw_8bit", "adamw_bnb_8bit", "adamw8bit", "paged_adamw_8bit", "pagedadamw8bit", "adamw_torch_8bit", "adam8bit"),
        "adamw8bit",
    ),
    "muon": "muon",
}
OPTIMIZER_NAMES = "adamw, adamw8bit and muon; and adafactor, with a learning rate relative to the size of each weight"


def _accumulation(value: Any, context: Context) -> Answer:
    count, devices = integer(value), context.integer(DEVICES) or 1
    if count is None or devices <= 1 or context.has(GLOBAL_BATCH):
        return Answer((("batch.gradient_accumulation_steps", as_integer(value)),))
    return Answer((("batch.gradient_accumulation_steps", count * devices),), f"{count} on each of {devices} devices")


def _devices(value: Any, context: Context) -> Answer:
    """The answer to a number of devices: fledge counts the rows of an update over all devices together."""
    count = integer(value)
    start = "start the processes with fledge train --processes N"
    if count and count > 1 and context.has(MICRO) and not context.has(ACCUMULATION) and not context.has(GLOBAL_BATCH):
        return Answer(
            (("batch.gradient_accumulation_steps", count),), f"an update reads as many rows as on {count} devices; {start}"
        )
    return Answer(note=f"leave it out; {start}")


def _global_batch(value: Any, context: Context) -> Answer:
    """The answer to the rows of one update: a number of micro-batches, or of tokens."""
    rows, micro, length = integer(value), context.integer(MICRO), context.integer(LENGTH) or 512
    if rows is None or rows < 1 or context.has(ACCUMULATION):
        return Answer(note="leave it out; an update reads micro_batch_size × gradient_accumulation_steps rows")
    if rows >= 16_384:  # too many for rows: these are tokens
        return _tokens(rows, context)
    if micro and micro > 0 and rows % micro == 0:
        return Answer(
            (("batch.gradient_accumulation_steps", rows // micro),), f"{rows} rows are {rows // micro} micro-batches of {micro}"
        )
    if micro:
        return Answer(
            note=f"write gradient_accumulation_steps so that its product with micro_batch_size {micro} is near {rows}"
        )
    rows_per_example = STAGE_KINDS[context.kind].rows_per_example if context.kind else 1
    return _tokens(rows * length * rows_per_example, context)


def _tokens(value: Any, context: Context) -> Answer:
    return Answer(
        (
            ("batch.micro_batch_size", "auto"),
            ("batch.gradient_accumulation_steps", 1),
            ("batch.tokens_per_step", as_integer(value)),
        ),
        "as many rows at a time as memory allows",
    )


def _duration(value: Any, context: Context) -> Answer:
    """The answer to epochs, steps and tokens, which are one key; steps take precedence, as in Hugging Face's trainer."""
    names = tuple(name for name in STEPS if name not in OF_KINDS.get(context.kind or "", {}))
    steps, tokens, epochs = context.integer(names), context.integer(TOKENS), context.number(EPOCHS)
    if steps is not None and steps > 0:
        note = "max_steps takes precedence over epochs, as in Hugging Face's trainer" if epochs is not None else ""
        return Answer((("duration", f"{steps} steps"),), note)
    if epochs is not None:
        return Answer((("duration", f"{epochs:.10g} epochs"),))
    if tokens is not None and tokens > 0:
        return Answer((("duration", f"{tokens} tokens"),))
    if number(value) is not None:
        return Answer(note="leave it out; duration is the length of a stage: 3 epochs, 500 steps or 20M tokens")
    return Answer((("duration", value),))


def _warmup(value: Any, context: Context) -> Answer:
    """The answer to warm-up steps and a warm-up ratio, which are one key; steps take precedence."""
    steps, share = context.number(WARMUP_STEPS), context.number(WARMUP_SHARES)
    note = "" if not steps or share is None else "steps take precedence over the ratio, as in Hugging Face's trainer"
    if steps:
        return Answer((("schedule.warmup", as_integer(steps) if steps >= 1 else percent(steps)),), note)
    if share is not None:
        return Answer((("schedule.warmup", percent(share)),))
    return Answer((("schedule.warmup", as_number(value)),))


def _warmup_epochs(value: Any, context: Context) -> Answer:
    warmup, epochs = number(value), context.number(EPOCHS)
    if warmup is not None and epochs and not context.has(STEPS):
        return Answer((("schedule.warmup", percent(warmup / epochs)),), f"{warmup:g} of {epochs:g} epochs")
    return Answer(note="write steps or a percentage of the stage: schedule: {warmup: 5%}")


def schedule(value: Any, context: Context) -> Answer:
    """The answer to the name of a learning-rate schedule."""
    name = word(value).rpartition(".")[2]
    if name not in SCHEDULES:
        return Answer(note="the schedules are linear, cosine, wsd, constant and onecycle: schedule: {name: cosine}")
    schedule_name, note = SCHEDULES[name]
    return Answer((("schedule.name", schedule_name),), note)


def _schedule_options(value: Any, context: Context) -> Answer:
    """The answer to `lr_scheduler_kwargs` of Hugging Face's trainer."""
    options = value if isinstance(value, dict) else {}
    settings: list[tuple[str, Any]] = []
    if number(options.get("min_lr")) is not None:
        settings.append(("schedule.min_lr", as_number(options["min_lr"])))
    share = number(options.get("min_lr_rate", options.get("min_lr_ratio")))
    if share is not None and not settings:
        settings.append(("schedule.min_lr", percent(share)))
    decay_steps, steps = number(options.get("num_decay_steps")), context.number(STEPS)
    if decay_steps and steps and steps > 0:
        settings.append(("schedule.decay_fraction", percent(decay_steps / steps)))
    if settings:
        return Answer(tuple(settings))
    return Answer(note="leave it out; the options of a schedule are keys of schedule: min_lr, decay_fraction, decay_shape")


def _one_cycle(path: str) -> Any:
    def rule(value: Any, context: Context) -> Answer:
        named = context.first_value(SCHEDULE)
        if named is not None and SCHEDULES.get(word(named), ("", ""))[0] not in ("", "onecycle"):
            return Answer(
                note=f"leave it out; it is an option of schedule: {{name: onecycle}}, and this schedule is {word(named)}"
            )
        product = (number(context.first_value(LEARNING_RATE)) or 0) * (number(value) or 0)
        note = (
            f"learning_rate is the peak; if your max_lr was div_factor × learning rate, write learning_rate: {product:.6g}"
            if product
            else ""
        )
        return Answer((("schedule.name", "onecycle"), (path, as_number(value))), note if path == "schedule.div_factor" else "")

    return rule


def optimizer(value: Any, context: Context) -> Answer:
    """The answer to the name of an optimizer."""
    name = word(value).rpartition(".")[2]
    if name in ("adam", "adam_torch", "fused_adam"):
        return Answer((("optimizer.name", "adamw"),), "weight decay is decoupled from the gradient")
    if name in OPTIMIZERS:
        return Answer((("optimizer.name", OPTIMIZERS[name]),))
    return Answer(note=f"the optimizers are {OPTIMIZER_NAMES}: optimizer: {{name: adamw}}")


def _learning_rate(value: Any, context: Context) -> Answer:
    other = context.has(ADAPTERS) and not is_off(context) and not trains_adapter(context)
    note = "the whole model is trained, with about a tenth of an adapter's learning rate" if other else ""
    return Answer((("optimizer.learning_rate", as_number(value)),), note)


def _betas(value: Any, context: Context) -> Answer:
    first, second = context.number(BETA1), context.number(BETA2)
    missing = "" if first is not None and second is not None else "the other one is AdamW's usual value"
    pair = [0.9 if first is None else first, 0.999 if second is None else second]
    return Answer((("optimizer.betas", pair),), missing)


def _max_grad_norm(value: Any, context: Context) -> Answer:
    return Answer((("optimizer.max_grad_norm", None if value is None or number(value) == 0 else as_number(value)),))


def _label_smoothing(value: Any, context: Context) -> Answer:
    if context.kind and not STAGE_KINDS[context.kind].smooths_targets and number(value):
        smoothing = " and ".join(kind for kind in KINDS if STAGE_KINDS[kind].smooths_targets)
        return Answer(note=f"leave it out; targets are smoothed in {smoothing} stages only")
    return Answer((("label_smoothing", as_number(value)),))


def _warmdown(value: Any, context: Context) -> Answer:
    """The answer to nanochat's share of the steps in which the learning rate falls, after a constant part."""
    share = number(value)
    if share is None:
        return Answer(note="write a share of the steps: schedule: {name: wsd, decay_fraction: 20%}")
    return Answer((("schedule.name", "wsd"), ("schedule.decay_fraction", percent(share))))


def _computed_duration(value: Any, context: Context) -> Answer:
    if number(value) is not None and (number(value) or 0) <= 0:
        return Answer(note="leave it out; it is off")
    return Answer(note="write the number of tokens or steps, which fledge does not compute: duration: 20M tokens")


def _decay_lr(value: Any, context: Context) -> Answer:
    return Answer((("schedule.name", "constant" if boolean(value) is False else "cosine"),))


_AUTOMATIC = (
    "write the size of an update, and micro_batch_size is chosen by the free memory: "
    "batch: {micro_batch_size: auto, tokens_per_step: 32768}"
)

LEARNING: Table = {
    **for_keys(MICRO, replaced_by("batch.micro_batch_size", as_integer, ROWS)),
    **for_keys(ACCUMULATION, _accumulation),
    **for_keys(GLOBAL_BATCH, _global_batch),
    **for_keys(TOKENS_PER_STEP, _tokens),
    **for_keys(DEVICES, _devices),
    **for_keys((*EPOCHS, *STEPS, *TOKENS), _duration),
    **for_keys((*WARMUP_STEPS, *WARMUP_SHARES, "warmup"), _warmup),
    "warmup_epochs": _warmup_epochs,
    **for_keys(SCHEDULE, schedule),
    "lr_scheduler_kwargs": _schedule_options,
    **for_keys("min_lr min_learning_rate lr_min eta_min lr_end end_lr final_lr", replaced_by("schedule.min_lr")),
    **for_keys(
        "min_lr_ratio min_lr_rate cosine_min_lr_ratio final_lr_fraction final_lr_frac",
        lambda value, context: Answer((("schedule.min_lr", value if (share := number(value)) is None else percent(share)),)),
    ),
    "div_factor": _one_cycle("schedule.div_factor"),
    "final_div_factor": _one_cycle("schedule.final_div_factor"),
    "decay_lr": _decay_lr,
    **for_keys(
        "lr_decay_iters lr_decay_steps decay_steps lr_decay_samples", unneeded("the learning rate falls until the stage ends")
    ),
    **for_keys(OPTIMIZER, optimizer),
    "use_muon": if_true(
        replaced_by("optimizer.name", lambda value: "muon"),
        unneeded("sft and preference stages use adamw by default; a pretrain stage needs optimizer: {name: adamw}"),
    ),
    **for_keys(LEARNING_RATE, _learning_rate),
    **for_keys("weight_decay wd", replaced_by("optimizer.weight_decay")),
    **for_keys((*BETA1, *BETA2), _betas),
    "adam_betas": replaced_by("optimizer.betas"),
    **for_keys("adam_epsilon adam_eps epsilon eps", replaced_by("optimizer.eps")),
    **for_keys(
        """
        max_grad_norm grad_clip gradient_clipping gradient_clip_val clip_grad clip_grad_norm grad_clip_norm clip max_norm
        """,
        _max_grad_norm,
    ),
    **for_keys("label_smoothing_factor label_smoothing_epsilon", _label_smoothing),
    **for_keys("ema_decay model_ema_decay", replaced_by("ema.decay")),
    **for_keys(
        "use_ema ema",
        if_true(replaced_by("ema.decay", lambda value: 0.999), unneeded("without ema.decay weights are not averaged")),
    ),
    "auto_find_batch_size": if_true(advice(_AUTOMATIC), unneeded("batch.micro_batch_size is the batch size")),
    **for_keys(
        "optim_args optim_target_modules optimizer_kwargs",
        unsupported("the settings of an optimizer are keys: betas, eps, weight_decay"),
    ),
    **for_keys(
        "neftune_noise_alpha noise_alpha noisy_embedding_alpha",
        unsupported("there is no noise on embeddings; model.dropout and label_smoothing regularise as well"),
    ),
    "adafactor": unsupported(f"the optimizers are {OPTIMIZER_NAMES}"),
    "warmdown_ratio": _warmdown,
    "lr_quadratic_warmup": unsupported("warm-up is linear"),
    "cosine_constant_lr_ratio": unsupported("the cosine falls until the stage ends; schedule: {name: wsd} has a constant part"),
    **for_keys("matrix_lr embedding_lr unembedding_lr", unsupported("optimizer.learning_rate is the rate of all parameters")),
    **for_keys("target_flops target_param_data_ratio", _computed_duration),
    "num_cycles": unneeded("the cosine falls once, from the peak to min_lr"),
    "max_steps_per_epoch": unsupported("an epoch is the whole data; max_samples in a source limits its rows"),
    **for_keys("fused foreach capturable", unneeded("fledge chooses the implementation of an optimizer")),
    "optimizer_in_bwd": unsupported("gradients are kept until the update is complete, and are clipped together"),
    "average_tokens_across_devices": unneeded("a loss is always divided by the number of targets of the whole update"),
}
