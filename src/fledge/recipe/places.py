"""Where keys belong: the sections of the schema, walked by name."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any

from pydantic import BaseModel

from fledge.recipe.schema import DataConfig, PreferenceStage, PretrainStage, Recipe, SftStage, Source

Key = tuple[str | int, ...]
Models = tuple[type[BaseModel], ...]  # what a mapping may be: one section, or one of the three kinds of stage

KINDS: dict[str, type[BaseModel]] = {"pretrain": PretrainStage, "sft": SftStage, "preference": PreferenceStage}
ALIASES = {"dpo": "preference"}  # a stage called so need not say its kind
STAGES: Models = tuple(KINDS.values())


def preset_names() -> list[str]:
    """The presets that come with fledge."""
    folder = resources.files("fledge.recipe") / "presets"
    return sorted(item.name[:-5] for item in folder.iterdir() if item.name.endswith(".yaml"))


def models_in(annotation: Any) -> Models:
    """The sections that a type allows: none for a plain value."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return (annotation,)
    return tuple(dict.fromkeys(model for part in getattr(annotation, "__args__", ()) for model in models_in(part)))


def kind_of(name: str | int, stage: Any) -> str | None:
    """The kind of a stage: the one it names, or that of its name."""
    said = stage.get("kind") if isinstance(stage, Mapping) else None
    guess = said if said is not None else ALIASES.get(str(name), name)
    return guess if isinstance(guess, str) and guess in KINDS else None


def models_at(models: Models, name: str, value: Any) -> Models:
    """The sections that the key `name` of one of `models` may hold."""
    inner = tuple(dict.fromkeys(part for model in models for part in models_in(_annotation(model, name))))
    if DataConfig in inner and isinstance(value, Mapping) and "train" not in value:
        return (*inner, Source)  # `data: {path: …}` names one training source
    return inner


def _annotation(model: type[BaseModel], name: str) -> Any:
    field = model.model_fields.get(name)
    return field.annotation if field else None


def knows(models: Models, name: str) -> bool:
    """Whether one of these sections has the key."""
    return any(name in model.model_fields for model in models)


def fields_of(models: Models) -> list[str]:
    """All keys of these sections."""
    return list(dict.fromkeys(name for model in models for name in model.model_fields))


def stage_models(name: str | int, stage: Any) -> Models:
    """The section of a stage, or all three where its kind is not known."""
    kind = kind_of(name, stage)
    return (KINDS[kind],) if kind else STAGES


def written(location: Key, tree: Any, missing: bool) -> Key:
    """What of a pydantic location the user wrote: the kind of a stage and the branch of a union are not keys."""
    key: Key = ()
    for i, part in enumerate(location):
        branches: dict[Any, Any] = dict(enumerate(tree)) if isinstance(tree, list) else tree if isinstance(tree, dict) else {}
        if part in branches or (missing and i == len(location) - 1):
            key = (*key, part)
            tree = branches.get(part)
    return key


def valid_at(key: Key) -> list[str]:
    """The names that are right at this place of the tree (to find the nearest spelling)."""
    models: Models = (Recipe,)
    for i, part in enumerate(key):
        if part in KINDS and i and key[0] == "stages":
            models = (KINDS[str(part)],)
            continue
        inner = models_at(models, str(part), None) if isinstance(part, str) else ()
        if not inner and isinstance(part, str) and models == (Recipe,):
            return []
        models = inner or models
    return fields_of(models)


def _paths(model: type[BaseModel], path: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield path + name
        for inner in models_in(field.annotation):
            if inner is not Source and inner not in STAGES:
                yield from _paths(inner, f"{path}{name}.")


SAY_TOO_LITTLE = {
    "name",
    "path",
    "kind",
    "level",
    "url",
    "headers",
    "format",
    "file",
    "window",
    "sigma",
    "action",
    "decay",
    "time",
    "disk",
}


@cache
def homes() -> dict[str, str]:
    """Names of keys, and the one place of each: `learning_rate` -> `optimizer.learning_rate` of a stage.

    Where several sections have a key, it is the one nearest to the root; two at the same depth are none.
    """
    found: dict[str, list[str]] = {}
    for model in (*STAGES, Recipe):
        for path in _paths(model, ""):
            found.setdefault(path.rpartition(".")[2], []).append(path)
    best = {}
    for name, paths in found.items():
        depth = min(path.count(".") for path in paths)
        nearest = {path for path in paths if path.count(".") == depth}
        if len(nearest) == 1 and name not in SAY_TOO_LITTLE:
            best[name] = nearest.pop()
    return best


def of_stage(path: str) -> bool:
    """Whether a dotted path belongs into a stage (else it stands at the top level)."""
    return path.partition(".")[0] not in Recipe.model_fields


def nested(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Dotted paths and values as one tree; the first value of a path stays."""
    tree: dict[str, Any] = {}
    for path, value in pairs:
        *sections, name = path.split(".")
        inner = tree
        for section in sections:
            held = inner.setdefault(section, {})
            inner = held if isinstance(held, dict) else {}
        inner.setdefault(name, dict(value) if isinstance(value, dict) else value)
    return tree


def takes_switch(path: str, models: Models) -> bool:
    """Whether true and false are values of a key: pydantic takes them for 1 and 0 as well."""
    *sections, name = path.split(".")
    for section in sections:
        models = models_at(models, section, {})
    return not knows(models, name) or any("bool" in repr(_annotation(model, name)) for model in models)
