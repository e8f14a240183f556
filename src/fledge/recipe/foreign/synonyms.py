"""The rules for all keys of other trainers, and the answer to a key."""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from fledge.recipe.foreign.answer import Answer, Context, Rule, Table, name_list, number, replaced_by
from fledge.recipe.foreign.computation import COMPUTATION, attention, checkpointing, device, precision
from fledge.recipe.foreign.datasets import DATASETS, shortest_form, source, template, truncation
from fledge.recipe.foreign.grpo import OF_KINDS
from fledge.recipe.foreign.learning import LEARNING, optimizer, schedule
from fledge.recipe.foreign.methods import METHODS, PREFIXES
from fledge.recipe.foreign.running import RUNNING
from fledge.recipe.foreign.sizes import SIZES
from fledge.recipe.foreign.stage_kinds import STAGE_KINDS
from fledge.recipe.schema import Recipe
from fledge.recipe.schema_keys import KINDS, Key, accepts_bool, has_path, is_stage_path, nested, paths_by_name, written_key

TABLES: tuple[Table, ...] = (LEARNING, DATASETS, SIZES, COMPUTATION, RUNNING, METHODS)
SYNONYMS: Table = {name: rule for table in TABLES for name, rule in table.items()}
SECTION_WORDS: Table = {  # sections of fledge that other trainers write as one word or number
    "optimizer": optimizer,
    "schedule": schedule,
    "model": SIZES["model_path"],
    "tokenizer": DATASETS["tokenizer_path"],
    "data": lambda value, context: Answer((("data.train", shortest_form([source(str(value), context)])),)),
    "batch": LEARNING["batch_size"],
    "early_stopping": lambda value, context: RUNNING["early_stop" if number(value) is None else "early_stopping_patience"](
        value, context
    ),
    "ema": lambda value, context: LEARNING["use_ema" if number(value) is None else "ema_decay"](value, context),
    "logging": RUNNING["report_to"],
    "evaluation": RUNNING["eval_steps"],
    "checkpoint": RUNNING["save_steps"],
}


def _duration(amount: float | None) -> Answer:
    """The answer to a number without a unit: epochs are meant more often than steps."""
    return Answer() if amount is None else Answer((("duration", f"{amount:.10g} epochs"),), f"or '{amount:.10g} steps'")


VALUES: Table = {  # keys of fledge whose values have other names in other trainers
    "optimizer.name": optimizer,
    "schedule.name": schedule,
    "runtime.precision": lambda value, context: precision(value, Context({"dtype": value})),
    "runtime.device": device,
    "runtime.attention": attention,
    "runtime.activation_checkpointing": checkpointing,
    "tokenizer.template": template,
    "data.truncation": truncation,
    "loss_type": METHODS["loss_type"],
    "duration": lambda value, context: _duration(number(value)),
}
ANSWERED_AS_ONE = frozenset(
    name_list("""
    lora peft deepspeed quantization special_tokens wandb swanlab rope_scaling rope_parameters metric_logger profiler
    zero_optimization qlora fsdp gptq
    """)
)
EMPTY_VALUE = Answer(note="leave it out; it is empty")
_NULL_IS_A_VALUE = {"max_grad_norm", "grad_clip"}  # null: no clipping


def plain_name(name: object) -> str:
    """The key as the tables write it: `per_device_train_batch_size` for `--per-device-train-batch-size`."""
    return str(name).strip().lstrip("-").replace("-", "_").lower()


def table_name(key: Key) -> str:
    """The name of a key in the tables, with its section if that is a name there: `eval_interval` for `eval.interval`."""
    name = plain_name(key[-1])
    if len(key) < 2 or (key[0] == "stages" and len(key) < 4):
        return name
    full_name = f"{plain_name(key[-2])}_{name}"
    return full_name if full_name in SYNONYMS else name


def flattened(tree: Mapping[Any, Any], key: Key = ()) -> dict[str, Any]:
    """The keys of a mapping and of its inner mappings, by table name; an outer key takes precedence over an inner one."""
    own = {table_name((*key, name)): value for name, value in tree.items() if not isinstance(value, Mapping)}
    deeper: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            deeper = {**flattened(value, (*key, name)), **deeper}
    return {**deeper, **own}


def rule_for(name: str) -> Rule | None:
    """The rule for a key of another trainer, or for a key of fledge in the wrong section; None for an unknown key."""
    key = plain_name(name)
    if key in SYNONYMS:
        return SYNONYMS[key]
    by_prefix = next((rule for prefix, rule in PREFIXES if key.startswith(prefix)), None)
    schema_path = paths_by_name().get(key)
    if schema_path is None or by_prefix is not None:
        return by_prefix
    plain, special = replaced_by(schema_path, lambda value: value), VALUES.get(schema_path)
    if special is None:
        return plain
    return lambda value, context: answer if (answer := special(value, context)).settings else plain(value, context)


def is_answered_as_one(name: str) -> bool:
    """Whether a mapping with this name gets one answer, and not an answer for each key."""
    key = plain_name(name)
    return rule_for(key) is not None and (
        key in ANSWERED_AS_ONE or (key.endswith(("_kwargs", "_config", "_args")) and key != "init_args")
    )


def answer_for(name: str, value: Any, context: Context) -> Answer | None:
    """The answer to a key and its value; None for an unknown key."""
    rule = OF_KINDS.get(context.kind or "", {}).get(plain_name(name)) or rule_for(name)
    if rule is None:
        return None
    if value is None and plain_name(name) not in _NULL_IS_A_VALUE:
        return EMPTY_VALUE
    return loadable_answer(rule(value, context), context.kind)


def loadable_answer(answer: Answer, kind: str | None) -> Answer:
    """The answer without settings that a recipe does not accept; its remark then gives the reasons."""
    if not answer.settings:
        return answer
    errors = min((load_errors(answer.settings, name) for name in ([kind] if kind else KINDS)), key=len)
    if not errors:
        return answer
    valid = tuple(pair for pair in answer.settings if pair[0] not in errors)
    return Answer(() if len(valid) < len(answer.settings) else valid, "; ".join(errors.values()))


def load_errors(settings: tuple[tuple[str, Any], ...], kind: str) -> dict[str, str]:
    """The paths that a recipe with a stage of this kind does not accept, with the reasons; nothing else is in that recipe."""
    for path, value in settings:
        if isinstance(value, bool) and not accepts_bool(path, (KINDS[kind],) if is_stage_path(path) else (Recipe,)):
            return {path: f"{path} replaces it, and is neither true nor false"}
    tree = minimal_recipe(settings, kind)
    try:
        Recipe.model_validate(tree)
    except ValidationError as error:
        return {path: why for path, why in _errors_by_path(error, tree, settings)}
    return {}


def minimal_recipe(settings: tuple[tuple[str, Any], ...], kind: str) -> dict[str, Any]:
    """A recipe of one stage with these settings and nothing else."""
    stage = {"kind": kind, **nested([pair for pair in settings if is_stage_path(pair[0])])}
    for name, example in STAGE_KINDS[kind].required if kind in STAGE_KINDS else ():
        stage.setdefault(name, example)
    data = stage.get("data")
    if data is None or (isinstance(data, dict) and not {"path", "registry", "hub"} & set(data)):
        stage["data"] = {"train": "rows.jsonl", **(data or {})}
    top = nested([pair for pair in settings if not is_stage_path(pair[0])])
    if "adapter" in stage and not {"model", "init_from"} & {*top, *stage}:
        top["model"] = {"path": "models/base"}  # an adapter needs a model to adapt
    return {**top, "stages": {"stage": stage}}


def _errors_by_path(error: ValidationError, tree: Any, settings: tuple[tuple[str, Any], ...]) -> Iterator[tuple[str, str]]:
    for item in error.errors():
        key = written_key(tuple(item["loc"]), tree, missing=False)
        for path, value in settings:
            full = ("stages", "stage", *path.split(".")) if is_stage_path(path) else tuple(path.split("."))
            if key[: len(full)] != full:
                continue
            if item["type"] == "extra_forbidden":
                kinds = " or ".join(name for name, model in KINDS.items() if has_path(model, path))
                yield path, f"{path} belongs to a stage of kind {kinds}"
            else:
                why = item["msg"].removeprefix("Value error, ")
                yield path, f"{path} replaces it: {why} (it is {value!r:.60})"
