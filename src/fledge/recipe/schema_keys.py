"""The keys of the recipe's schema: which section has which keys, and where a key of some name belongs."""

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from importlib import resources
from typing import Any, get_origin

from pydantic import BaseModel

from fledge.recipe.schema import (
    DataConfig,
    GrpoStage,
    KtoStage,
    PreferenceStage,
    PretrainStage,
    Recipe,
    RewardStage,
    SftStage,
    Source,
)

Key = tuple[str | int, ...]
Models = tuple[type[BaseModel], ...]  # the sections that a mapping can be: one, or all kinds of stage

KINDS: dict[str, type[BaseModel]] = {
    "pretrain": PretrainStage,
    "sft": SftStage,
    "preference": PreferenceStage,
    "kto": KtoStage,
    "reward": RewardStage,
    "grpo": GrpoStage,
}
ALIASES = {"dpo": "preference"}  # stage names that imply a kind
STAGES: Models = tuple(KINDS.values())
MAX_OPTIONS = 60  # that a shell lists at a time


def preset_names() -> list[str]:
    """Names of the presets that fledge provides, sorted."""
    folder = resources.files("fledge.recipe") / "presets"
    return sorted(item.name[:-5] for item in folder.iterdir() if item.name.endswith(".yaml"))


def models_in(annotation: Any) -> Models:
    """The sections (pydantic models) that a type annotation contains; () for a plain value."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return (annotation,)
    return tuple(dict.fromkeys(model for argument in getattr(annotation, "__args__", ()) for model in models_in(argument)))


def kind_of(name: str | int, stage: Any) -> str | None:
    """The kind of a stage, from its key `kind` or else from its name; None if unknown."""
    kind = stage.get("kind") if isinstance(stage, Mapping) else None
    candidate = kind if kind is not None else ALIASES.get(str(name), name)
    return candidate if isinstance(candidate, str) and candidate in KINDS else None


def models_at(models: Models, name: str, value: Any) -> Models:
    """The sections that the key `name` can hold in one of `models`, given its value."""
    inner = tuple(dict.fromkeys(section for model in models for section in models_in(_annotation(model, name))))
    if DataConfig in inner and isinstance(value, Mapping) and "train" not in value:
        return (*inner, Source)  # `data: {path: …}` is short for one training source
    return inner


def _annotation(model: type[BaseModel], name: str) -> Any:
    field = model.model_fields.get(name)
    return field.annotation if field else None


def holds_named_sections(models: Models, name: str) -> bool:
    """Whether the key `name` holds sections under names of the user's own, such as evaluation sets."""
    return any(_is_mapping_of_sections(_annotation(model, name)) for model in models)


def _is_mapping_of_sections(annotation: Any) -> bool:
    return get_origin(annotation) is dict and bool(models_in(annotation))


def has_key(models: Models, name: str) -> bool:
    """Whether one of these sections has the key."""
    return any(name in model.model_fields for model in models)


def has_path(model: type[BaseModel], path: str) -> bool:
    """Whether a section has the key at a dotted path."""
    models: Models = (model,)
    for name in path.split("."):
        if not has_key(models, name):
            return False
        models = models_at(models, name, None)
    return True


def fields_of(models: Models) -> list[str]:
    """All keys of these sections, without repetition."""
    return list(dict.fromkeys(name for model in models for name in model.model_fields))


def stage_models(name: str | int, stage: Any) -> Models:
    """The section of a stage; all kinds of stage if its kind is unknown."""
    kind = kind_of(name, stage)
    return (KINDS[kind],) if kind else STAGES


def written_key(location: Key, tree: Any, missing: bool) -> Key:
    """The key that the user wrote for a pydantic location.

    Locations also contain the kind of a stage and the branch of a union, which are not keys; they are removed. `missing`: the
    last element is a key that the user did not write.
    """
    key: Key = ()
    for i, name in enumerate(location):
        branches: dict[Any, Any] = dict(enumerate(tree)) if isinstance(tree, list) else tree if isinstance(tree, dict) else {}
        if name in branches or (missing and i == len(location) - 1):
            key = (*key, name)
            tree = branches.get(name)
    return key


def valid_keys(key: Key) -> list[str]:
    """The keys that are valid in the section at this pydantic location (for spelling suggestions)."""
    models: Models = (Recipe,)
    for i, name in enumerate(key):
        if name in KINDS and i and key[0] == "stages":
            models = (KINDS[str(name)],)
            continue
        inner = models_at(models, str(name), None) if isinstance(name, str) else ()
        if not inner and isinstance(name, str) and models == (Recipe,):
            return []
        models = inner or models
    return fields_of(models)


def _paths(model: type[BaseModel], path: str) -> Iterator[str]:
    for name, field in model.model_fields.items():
        yield path + name
        for inner in () if _is_mapping_of_sections(field.annotation) else models_in(field.annotation):
            if inner is not Source and inner not in STAGES:
                yield from _paths(inner, f"{path}{name}.")


AMBIGUOUS_NAMES = {  # too general to identify a key
    "name", "path", "kind", "level", "url", "headers", "format", "file", "window", "sigma", "action", "decay", "time", "disk",
}  # fmt: skip


@cache
def paths_by_name() -> dict[str, str]:
    """The dotted path of each key name that identifies one key: `learning_rate` -> `optimizer.learning_rate`.

    Paths are relative to a stage or to the recipe. If several sections have the name, the path nearest to the root counts; with
    two at equal depth the name is left out.
    """
    all_paths: dict[str, list[str]] = {}
    for model in (*STAGES, Recipe):
        for path in _paths(model, ""):
            all_paths.setdefault(path.rpartition(".")[2], []).append(path)
    unique = {}
    for name, paths in all_paths.items():
        depth = min(path.count(".") for path in paths)
        nearest = {path for path in paths if path.count(".") == depth}
        if len(nearest) == 1 and name not in AMBIGUOUS_NAMES:
            unique[name] = nearest.pop()
    return unique


def is_stage_path(path: str) -> bool:
    """Whether a dotted path belongs to a stage (otherwise to the top level)."""
    return path.partition(".")[0] not in Recipe.model_fields


def nested(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """A nested mapping from dotted paths and values; the first value of a path wins."""
    tree: dict[str, Any] = {}
    for path, value in pairs:
        *sections, name = path.split(".")
        inner = tree
        for section in sections:
            child = inner.setdefault(section, {})
            inner = child if isinstance(child, dict) else {}
        inner.setdefault(name, dict(value) if isinstance(value, dict) else value)
    return tree


def accepts_bool(path: str, models: Models) -> bool:
    """Whether the key at `path` accepts true and false (pydantic also accepts them for 1 and 0)."""
    *sections, name = path.split(".")
    for section in sections:
        models = models_at(models, section, {})
    return not has_key(models, name) or any("bool" in repr(_annotation(model, name)) for model in models)


def option_names(prefix: str, stages: Mapping[str, Any]) -> list[str]:
    """The options `--a.b.c` that begin with a prefix, for completion in a shell: whole keys, or the next part of very many.

    `stages`: the stages of the recipe by name, as they are written; the kinds of stage where none are known.
    """
    paths = [path for path in _paths(Recipe, "") if path != "stages"]
    for name, stage in (stages or dict.fromkeys(KINDS, None)).items():
        for model in stage_models(name, stage)[:1]:
            paths += [f"stages.{name}.{path}" for path in _paths(model, "")]
    sections = {path.rpartition(".")[0] for path in paths}
    typed = prefix.removeprefix("--")
    found = [path for path in dict.fromkeys(paths) if path.startswith(typed) and path not in sections]
    if len(found) > MAX_OPTIONS:
        depth = typed.count(".") + 1
        found = list(dict.fromkeys(".".join(path.split(".")[:depth]) for path in found))
    return [f"--{path}" for path in found]
