"""Settings of a stage of fledge: from its plan, the recipe, and what was measured and counted for it."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from fledge.errors import FledgeError
from fledge.run.text_files import read_json
from fledge.training_log.derive import derived
from fledge.training_log.records import TrainingSettings

PLAN_FIELDS = {
    "kind": "kind",
    "learning_rate": "learning_rate",
    "min_learning_rate": "min_learning_rate",
    "warmup_steps": "warmup_steps",
    "steps": "steps",
    "epochs": "epochs",
    "batch_rows": "effective_batch_rows",
    "batch_tokens": "effective_batch_tokens",
    "micro_batch_rows": "micro_batch_size",
    "context": "context",
    "parameters": "parameters",
    "tokens": "tokens",
    "target_tokens": "target_tokens",
    "optimizer": "optimizer",
    "weight_decay": "weight_decay",
}
"""Field → key of plan.json."""
RECIPE_FIELDS = {
    "kind": ("kind",),
    "learning_rate": ("optimizer", "learning_rate"),
    "schedule": ("schedule", "name"),
    "optimizer": ("optimizer", "name"),
    "weight_decay": ("optimizer", "weight_decay"),
    "max_grad_norm": ("optimizer", "max_grad_norm"),
    "micro_batch_rows": ("batch", "micro_batch_size"),
    "accumulation_steps": ("batch", "gradient_accumulation_steps"),
    "batch_tokens": ("batch", "tokens_per_step"),
    "context": ("data", "max_seq_len"),
    "adapter_rank": ("adapter", "r"),
    "beta": ("beta",),
    "loss_type": ("loss_type",),
    "num_generations": ("rollout", "num_generations"),
    "early_stopping_patience": ("early_stopping", "patience"),
}
"""Field → key of the stage in the recipe."""
OTHER_KEYS = (
    ("label_smoothing",), ("duration",), ("schedule", "warmup"), ("schedule", "min_lr"), ("schedule", "decay_fraction"),
    ("schedule", "div_factor"), ("ema", "decay"), ("evaluation", "every_steps"), ("optimizer", "betas"), ("init_from",),
    ("select_checkpoint",), ("precompute_ref_log_probs",), ("adapter", "lora_alpha"), ("adapter", "peft_type"),
    ("rollout", "updates_per_rollout"), ("batch", "warmup"), ("scale_rewards",), ("data", "train_on_turns"),
    ("sft_loss_weight",), ("batch", "tokens_per_step"),
)  # fmt: skip
NUMBERS = frozenset(
    ("learning_rate", "min_learning_rate", "weight_decay", "max_grad_norm", "micro_batch_rows", "accumulation_steps",
     "batch_tokens", "batch_rows", "context", "adapter_rank", "beta", "num_generations", "early_stopping_patience",
     "warmup_steps", "steps", "epochs", "parameters", "tokens", "target_tokens")
)  # fmt: skip
PREFIX = "PREFIX_TUNING"
MODEL_KEYS = ("tie_word_embeddings", "num_hidden_layers", "num_experts", "max_position_embeddings")
"""Keys of a model's config.json that checks ask for."""


def recipe_tree(run: Path) -> dict[str, Any]:
    """The resolved recipe of a run as plain data; empty if it cannot be read, because the figures of a run stand alone."""
    from fledge.training_log.settings import yaml_tree

    file = run / "recipe.yaml"
    try:
        tree = yaml_tree(file) if file.is_file() else {}
    except FledgeError:
        return {}
    return tree if isinstance(tree, dict) else {}


def stage_order(run: Path, begun: Iterable[Path]) -> list[Path]:
    """The stages that have begun, in the order of the recipe."""
    stages = recipe_tree(run).get("stages")
    names = list(stages) if isinstance(stages, dict) else []
    return sorted(begun, key=lambda folder: names.index(folder.name) if folder.name in names else len(names))


def stage_settings(folder: Path) -> tuple[TrainingSettings, list[str]]:
    """The settings of a stage of a run, and sentences on files that cannot be read."""
    notes: list[str] = []
    tree = recipe_tree(folder.parent)
    settings = recipe_settings(tree, folder.name, "recipe.yaml") if tree else TrainingSettings()
    for name, read in FILES.items():
        file = folder / name
        if not file.is_file():
            continue
        try:
            value = read_json(file)
        except FledgeError as error:
            notes.append(f"{name} cannot be read: {error.what}.")
            continue
        if isinstance(value, dict):
            settings = settings.updated(_with_origin(read(value), name))
    settings = settings.updated(_of_model(folder))
    return derived(settings), notes


def _with_origin(settings: TrainingSettings, name: str) -> TrainingSettings:
    return settings.updated(TrainingSettings(origin=dict.fromkeys(settings.known(), name)))


def recipe_settings(tree: Mapping[str, Any], stage: str, where: str) -> TrainingSettings:
    """The settings of a stage of a resolved recipe. What is left to `auto` is not known."""
    stages = tree.get("stages")
    section = stages.get(stage) if isinstance(stages, dict) else None
    section = section if isinstance(section, dict) else {}
    found: dict[str, Any] = {}
    for name, path in RECIPE_FIELDS.items():
        value = _at(section, path)
        if name in NUMBERS:
            value = float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None
        if value is not None and value != "auto":
            found[name] = value
    found.update(_method(section), **_of_whole(tree, stage, section), **_duration(section))
    micro, accumulation = found.get("micro_batch_rows"), found.get("accumulation_steps")
    if micro and accumulation and "batch_tokens" not in found:
        found["batch_rows"] = micro * accumulation  # however many processes share them
    other = {".".join(path): value for path in OTHER_KEYS if (value := _at(section, path)) not in (None, {}, [])}
    if (tied := _at(tree, ("model", "tie_word_embeddings"))) is not None:
        other["tie_word_embeddings"] = tied
    origin = dict.fromkeys(found, where)
    return TrainingSettings(**found, other=other, origin=origin)


def _duration(section: Mapping[str, Any]) -> dict[str, float]:
    """Planned epochs or updates, where the recipe counts in them."""
    from fledge.recipe.units import Duration

    try:
        duration = Duration.parse(str(section.get("duration")))
    except ValueError:
        return {}
    return {duration.unit: float(duration.amount)} if duration.unit in ("epochs", "steps") else {}


def _of_whole(tree: Mapping[str, Any], stage: str, section: Mapping[str, Any]) -> dict[str, Any]:
    """Settings that stand outside of the stage: seed, precision, sizes of a new model, whether the weights are new."""
    found: dict[str, Any] = {}
    if isinstance(seed := tree.get("seed"), int):
        found["seed"] = float(seed)
    if (precision := _at(tree, ("runtime", "precision"))) not in (None, "auto"):
        found["precision"] = precision
    stages = list(tree.get("stages") or {})
    model = _at(tree, ("model", "path"))
    before = stages[: stages.index(stage) + 1] if stage in stages else []
    taken = bool(model) or any(_at(tree, ("stages", name, "init_from")) for name in before)
    found["initial"] = "fresh" if not taken and before == [stage] else "trained"
    if not taken and isinstance(size := _at(tree, ("model", "hidden_size")), int | float):
        found["hidden_size"] = float(size)
    vocabulary = _at(tree, ("tokenizer", "vocab_size"))
    if not taken and not _at(tree, ("tokenizer", "path")) and isinstance(vocabulary, int | float):
        found["vocab_size"] = float(vocabulary)
    rates = [_at(tree, ("model", "dropout")), _at(section, ("adapter", "lora_dropout"))]
    known = [float(rate) for rate in rates if isinstance(rate, int | float)]
    if known:
        found["dropout"] = max(known)
    return found


def _method(section: Mapping[str, Any]) -> dict[str, str]:
    adapter = section.get("adapter")
    if not isinstance(adapter, dict):
        return {"method": "full"}
    if adapter.get("peft_type") == PREFIX:
        return {"method": "prefix"}
    return {"method": "qlora" if section.get("quantization") else "lora"}


def _at(tree: Any, path: tuple[str, ...]) -> Any:
    for key in path:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def _numbers(values: Mapping[str, Any]) -> dict[str, Any]:
    return {name: float(one) if name in NUMBERS else one for name, one in values.items() if isinstance(one, int | float | str)}


def _of_plan(plan: dict[str, Any]) -> TrainingSettings:
    found = {name: plan[key] for name, key in PLAN_FIELDS.items() if plan.get(key) is not None}
    other = {name: plan[name] for name in ("warmup_share", "loss_unit", "betas", "select_checkpoint", "batch_warmup_steps",
                                           "first_batch_rows", "active_parameters", "notes") if name in plan}  # fmt: skip
    if isinstance(plan.get("rows"), int | float):
        other["packed_rows"] = plan["rows"]
    return TrainingSettings(**_numbers(found), other=other)


def _of_start(start: dict[str, Any]) -> TrainingSettings:
    return TrainingSettings(initial="trained") if start.get("source") else TrainingSettings()


def _of_compute(compute: dict[str, Any]) -> TrainingSettings:
    other = {name: compute[name] for name in ("device", "attention", "compile", "threads", "deterministic") if name in compute}
    precision = compute.get("precision")
    return TrainingSettings(precision=precision if isinstance(precision, str) else None, other=other)


def _of_data_report(report: dict[str, Any]) -> TrainingSettings:
    train, validation = report.get("train"), report.get("validation")
    sources = [one for one in report.get("sources") or [] if isinstance(one, dict)]
    other: dict[str, Any] = {"data/sources": len(sources)}
    for name in ("rows", "used_rows", "truncated_rows", "split_rows", "lost_tokens"):
        other[f"data/{name}"] = sum(one[name] for one in sources if isinstance(one.get(name), int))
    rows = None
    if isinstance(train, dict):
        rows = float(train["examples"]) if isinstance(train.get("examples"), int) else None
        other.update({f"data/{name}": train[name] for name in ("packed_rows", "padding_share") if name in train})
    other["data/validation_examples"] = validation.get("examples") if isinstance(validation, dict) else 0
    return TrainingSettings(rows=rows, other=other)


def _of_prediction(prediction: dict[str, Any]) -> TrainingSettings:
    return TrainingSettings(other={"prediction": prediction})


def _of_result(result: dict[str, Any]) -> TrainingSettings:
    trained = result.get("trained_parameters")
    other = {f"result/{name}": result[name] for name in ("step", "stop", "best_step", "seconds") if name in result}
    return TrainingSettings(trained_parameters=float(trained) if isinstance(trained, int) else None, other=other)


def _of_model(folder: Path) -> TrainingSettings:
    """Sizes of the model, from the configuration of the newest checkpoint."""
    for file in sorted(folder.glob("checkpoints/step-*/model/config.json"), reverse=True):
        try:
            config = read_json(file)
        except FledgeError:
            continue
        names = {"vocab_size": ("vocab_size",), "hidden_size": ("hidden_size", "d_model", "n_embd")}
        found: dict[str, Any] = {
            name: float(config[key]) for name, keys in names.items() for key in keys if isinstance(config.get(key), int)
        }
        other = {key: config[key] for key in MODEL_KEYS if key in config}
        return _with_origin(TrainingSettings(**found, other=other), "config.json of a checkpoint")
    return TrainingSettings()


FILES = {
    "plan.json": _of_plan,
    "start.json": _of_start,
    "compute.json": _of_compute,
    "data_report.json": _of_data_report,
    "prediction.json": _of_prediction,
    "result.json": _of_result,
}
"""File of a stage → what it says about its settings."""
