"""Settings from keys and values of any trainer: one table of names, whatever file they stand in."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any

from fledge.recipe.foreign.adapters import LORA, OFF, SECTIONS, SWITCHES
from fledge.recipe.foreign.answer import word
from fledge.recipe.foreign.stage_kinds import KIND_KEYS, STAGE_KINDS, kind_of_section, method_named
from fledge.training_log.derive import derived
from fledge.training_log.records import TrainingSettings
from fledge.training_log.setting_names import (
    BY_NAME,
    SETTINGS,
    SWITCHED_PRECISION,
    WARMUP_SHARE_NAMES,
    as_float,
    setting_key,
    switch,
)

FINE_TUNED = ("model_name_or_path", "base_model", "finetune_from_ckp_file", "init_from", "base_model_name_or_path")
"""Keys that name the model that a run starts from, where they are not empty."""
QUANTIZED = ("load_in_4bit", "qlora", "use_qlora", "quantization_bit")
WORD_KEYS = frozenset((*FINE_TUNED, *QUANTIZED, *SWITCHES, *KIND_KEYS, *SWITCHED_PRECISION, "is_finetune", "div_factor"))
"""Keys that tell something and belong to no field alone."""


def settings_from(pairs: Mapping[str, Any], where: str, sections: Iterable[str] = ()) -> TrainingSettings:
    """The settings in flat keys and values. `where`: the file, for `origin`; `sections`: names of classes or sections around
    them, which may tell the kind of stage. Keys without a field stand in `other` under their own names."""
    found: dict[str, Any] = {}
    origin: dict[str, str] = {}
    ranks: dict[str, int] = {}
    other: dict[str, Any] = {}
    for name, value in pairs.items():
        key = setting_key(name)
        field = BY_NAME.get(key)
        if field is None or not _take(field.field, key, value, found, ranks):
            other[name] = value
            continue
        origin[field.field] = f"{where}: {name}"
    keyed = {setting_key(name): value for name, value in pairs.items()}
    _share_of_warmup(keyed, found, other)
    for name, (value, key) in _words(keyed, pairs, sections).items():
        if found.get(name) is None:
            found[name], origin[name] = value, f"{where}: {key}"
    return derived(TrainingSettings(**found, other=other, origin=origin))


def _take(name: str, key: str, value: Any, found: dict[str, Any], ranks: dict[str, int]) -> bool:
    """Take a value for a field, if it means something and no more telling key has given the field."""
    setting = BY_NAME[key]
    converted = setting.convert(value)
    rank = setting.names.index(key)
    if converted is None or rank >= ranks.get(name, len(setting.names)):
        return False
    found[name], ranks[name] = converted, rank
    return True


def _share_of_warmup(keyed: Mapping[str, Any], found: dict[str, Any], other: dict[str, Any]) -> None:
    steps = found.get("warmup_steps")
    if steps is not None and 0 < steps < 1:  # Hugging Face 5 writes a share there
        other["warmup_share"] = found.pop("warmup_steps")
        return
    share = next((value for name in WARMUP_SHARE_NAMES if (value := as_float(keyed.get(name))) is not None), None)
    if share is not None and not steps:
        found.pop("warmup_steps", None)
        other["warmup_share"] = share


def _words(keyed: Mapping[str, Any], pairs: Mapping[str, Any], sections: Iterable[str]) -> dict[str, tuple[Any, str]]:
    """Fields that are words and follow from several keys: precision, method, kind, how the weights begin."""
    found: dict[str, tuple[Any, str]] = {}
    for name in SWITCHED_PRECISION:
        if switch(keyed.get(name)) is True:
            found.setdefault("precision", (name, name))
    if keyed.get("div_factor") is not None:
        found["schedule"] = ("onecycle", "div_factor")
    if method := _method(keyed, pairs):
        found["method"] = method
    if kind := _kind(keyed, sections):
        found["kind"] = kind
    start = next((name for name in FINE_TUNED if isinstance(keyed.get(name), str) and keyed[name].strip()), None)
    if start is not None:
        found["initial"] = ("trained", start)
    elif switch(keyed.get("is_finetune")):
        found["initial"] = ("trained", "is_finetune")
    elif keyed.get("init_from") == "scratch":
        found["initial"] = ("fresh", "init_from")
    if keyed.get("init_from") == "scratch":
        found["initial"] = ("fresh", "init_from")
    return found


def _method(keyed: Mapping[str, Any], pairs: Mapping[str, Any]) -> tuple[str, str] | None:
    quantized = any(switch(keyed.get(name)) for name in ("load_in_4bit", "qlora", "use_qlora")) or (
        as_float(keyed.get("quantization_bit")) == 4
    )
    for name in SWITCHES:
        value = keyed.get(name)
        if value is None:
            continue
        if word(value) in OFF:
            return "full", name
        if word(value) in LORA:
            return ("qlora" if quantized or word(value).startswith("q") else "lora"), name
    inside = any(str(name).split(".")[0].lower() in SECTIONS for name in pairs)
    rank = next((name for name in ("lora_r", "lora_rank", "r", "lora_dim") if as_float(keyed.get(name))), None)
    if rank is not None or inside:
        return ("qlora" if quantized else "lora"), rank or "peft"
    return None


def _kind(keyed: Mapping[str, Any], sections: Iterable[str]) -> tuple[str, str] | None:
    for name in KIND_KEYS:
        method = method_named(keyed[name]) if keyed.get(name) is not None else None
        if method is not None:
            return method.kind, name
    for section in sections:
        if kind := kind_of_section(section):
            return kind, section
    for kind, stage in STAGE_KINDS.items():
        if kind in ("grpo", "kto", "preference", "reward"):
            name = next((key for key in stage.keys if key != "beta" and keyed.get(key) is not None), None)
            if name is not None:
                return kind, name
    return None


def first_known(parts: Iterable[TrainingSettings]) -> TrainingSettings:
    """Settings of several places: of each field the first that is known."""
    result = TrainingSettings()
    for part in parts:
        result = part.updated(result)
    return derived(replace(result))


FIELDS = tuple(one.field for one in SETTINGS)
