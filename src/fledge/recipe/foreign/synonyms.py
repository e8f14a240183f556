"""All keys of other trainers that fledge can answer, and the answer to one of them."""

from collections.abc import Iterator, Mapping
from typing import Any

from pydantic import ValidationError

from fledge.recipe.foreign.answer import Answer, Context, Rule, Table, name_list, number, replaced_by
from fledge.recipe.foreign.datasets import DATASETS, shortest_form, source, template, truncation
from fledge.recipe.foreign.learning import LEARNING, optimizer, schedule
from fledge.recipe.foreign.methods import METHODS, PREFIXES
from fledge.recipe.foreign.running import RUNNING, attention, checkpointing, device, precision
from fledge.recipe.foreign.sizes import SIZES
from fledge.recipe.schema import Recipe
from fledge.recipe.schema_keys import KINDS, Key, accepts_bool, is_stage_path, nested, paths_by_name, written_key

TABLES: tuple[Table, ...] = (LEARNING, DATASETS, SIZES, RUNNING, METHODS)
SYNONYMS: Table = {name: rule for table in TABLES for name, rule in table.items()}
SECTION_WORDS: Table = {  # a section of fledge that another trainer writes as one word or number
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
VALUES: Table = {  # values of fledge's own keys by their names in other trainers
    "optimizer.name": optimizer,
    "schedule.name": schedule,
    "runtime.precision": lambda value, context: precision(value, Context({"dtype": value})),
    "runtime.device": device,
    "runtime.attention": attention,
    "runtime.activation_checkpointing": checkpointing,
    "tokenizer.template": template,
    "data.truncation": truncation,
    "duration": lambda value, context: (
        Answer() if number(value) is None else Answer((("duration", f"{number(value):.10g} epochs"),))
    ),
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
    """A key as the tables have it: `--per-device-train-batch-size` is `per_device_train_batch_size`."""
    return str(name).strip().lstrip("-").replace("-", "_").lower()


def table_name(key: Key) -> str:
    """What a key is called in the tables: `eval.interval` is `eval_interval`."""
    name = plain_name(key[-1])
    if len(key) < 2 or (key[0] == "stages" and len(key) < 4):
        return name
    together = f"{plain_name(key[-2])}_{name}"
    return together if together in SYNONYMS else name


def flattened(tree: Mapping[Any, Any], key: Key = ()) -> dict[str, Any]:
    """The keys of a mapping and of all mappings in it as the tables call them; those further out stay."""
    own = {table_name((*key, name)): value for name, value in tree.items() if not isinstance(value, Mapping)}
    deeper: dict[str, Any] = {}
    for name, value in tree.items():
        if isinstance(value, Mapping):
            deeper = {**flattened(value, (*key, name)), **deeper}
    return {**deeper, **own}


def rule_for(name: str) -> Rule | None:
    """The rule for a key of another trainer, or of fledge at another place."""
    key = plain_name(name)
    if key in SYNONYMS:
        return SYNONYMS[key]
    started = next((rule for prefix, rule in PREFIXES if key.startswith(prefix)), None)
    home = paths_by_name().get(key)
    return replaced_by(home, lambda value: value) if home and started is None else started


def is_answered_as_one(name: str) -> bool:
    """Whether a mapping with this name is answered as one, and not key by key."""
    key = plain_name(name)
    return rule_for(key) is not None and (
        key in ANSWERED_AS_ONE or (key.endswith(("_kwargs", "_config", "_args")) and key != "init_args")
    )


def answer_for(name: str, value: Any, context: Context) -> Answer | None:
    """What is written in place of a key; None where fledge has never heard of it."""
    rule = rule_for(name)
    if rule is None:
        return None
    if value is None and plain_name(name) not in _NULL_IS_A_VALUE:
        return EMPTY_VALUE
    return loadable_answer(rule(value, context), context.kind)


def loadable_answer(answer: Answer, kind: str | None) -> Answer:
    """The answer without what a recipe would refuse; its sentence then says why."""
    if not answer.settings:
        return answer
    wrong = min((load_errors(answer.settings, name) for name in ([kind] if kind else KINDS)), key=len)
    if not wrong:
        return answer
    good = tuple(pair for pair in answer.settings if pair[0] not in wrong)
    return Answer(() if len(good) < len(answer.settings) else good, "; ".join(wrong.values()))


def load_errors(writes: tuple[tuple[str, Any], ...], kind: str) -> dict[str, str]:
    """Which of these paths a recipe with a stage of this kind refuses by themselves, and why."""
    for path, value in writes:
        if isinstance(value, bool) and not accepts_bool(path, (KINDS[kind],) if is_stage_path(path) else (Recipe,)):
            return {path: f"{path} replaces it, and is neither true nor false"}
    tree = minimal_recipe(writes, kind)
    try:
        Recipe.model_validate(tree)
    except ValidationError as error:
        return {path: why for path, why in _errors_by_path(error, tree, writes)}
    return {}


def minimal_recipe(writes: tuple[tuple[str, Any], ...], kind: str) -> dict[str, Any]:
    """A recipe of one stage that has nothing but this."""
    stage = {"kind": kind, **nested([pair for pair in writes if is_stage_path(pair[0])])}
    data = stage.get("data")
    if data is None or (isinstance(data, dict) and not {"path", "registry", "hub"} & set(data)):
        stage["data"] = {"train": "rows.jsonl", **(data or {})}
    return {**nested([pair for pair in writes if not is_stage_path(pair[0])]), "stages": {"stage": stage}}


def _errors_by_path(error: ValidationError, tree: Any, writes: tuple[tuple[str, Any], ...]) -> Iterator[tuple[str, str]]:
    for item in error.errors():
        key = written_key(tuple(item["loc"]), tree, missing=False)
        for path, value in writes:
            full = ("stages", "stage", *path.split(".")) if is_stage_path(path) else tuple(path.split("."))
            if key[: len(full)] != full:
                continue
            if item["type"] == "extra_forbidden":
                kinds = " or ".join(name for name, model in KINDS.items() if path.split(".")[0] in model.model_fields)
                yield path, f"{path} belongs to a stage of kind {kinds}"
            else:
                why = item["msg"].removeprefix("Value error, ")
                yield path, f"{path} replaces it: {why} (it is {value!r:.60})"
