"""The keys of a recipe, from its pydantic models."""

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from fledge.recipe.schema import GrpoStage, KtoStage, PreferenceStage, PretrainStage, Recipe, RewardStage, SftStage, StageBase

KINDS: dict[str, type[StageBase]] = {
    "pretrain": PretrainStage,
    "sft": SftStage,
    "preference": PreferenceStage,
    "kto": KtoStage,
    "reward": RewardStage,
    "grpo": GrpoStage,
}


def _arguments(annotation: Any) -> Iterator[Any]:
    """An annotation and everything in it."""
    yield annotation
    for argument in () if get_origin(annotation) is Literal else get_args(annotation):
        yield from _arguments(argument)


def _annotation(field: FieldInfo) -> list[Any]:
    return [inner for one in (field.annotation, *field.metadata) for inner in _arguments(one)]


def section_of(field: FieldInfo) -> type[BaseModel] | None:
    """The model whose keys a field contains, if it is a section, a list or a mapping of sections."""
    models = [inner for inner in _annotation(field) if isinstance(inner, type) and issubclass(inner, BaseModel)]
    return models[0] if models else None


def choices_of(field: FieldInfo) -> set[str]:
    """The words that a field accepts, as YAML writes them. Keys of a mapping are no choices."""
    if any(get_origin(inner) is dict for inner in _annotation(field)):
        return set()
    words = {value for inner in _annotation(field) if get_origin(inner) is Literal for value in get_args(inner)}
    booleans = {"true", "false"} if words and bool in _annotation(field) else set()
    return {str(word) for word in words} | booleans


@dataclass(frozen=True)
class Key:
    """One key: its dotted path (`stages.*.data.train.path`), the section that it belongs to, and its field."""

    path: str
    owner: type[BaseModel]
    field: FieldInfo

    @property
    def name(self) -> str:
        """The last part of the path."""
        return self.path.rpartition(".")[2]


def _walk(model: type[BaseModel], prefix: str) -> Iterator[Key]:
    for name, field in model.model_fields.items():
        if prefix == "" and name == "stages":
            yield Key(name, model, field)
            continue
        yield Key(f"{prefix}{name}", model, field)
        if inner := section_of(field):
            yield from _walk(inner, f"{prefix}{name}.")


@cache
def keys(kind: str) -> dict[str, Key]:
    """All keys of a recipe with a stage of this kind, by path."""
    all_keys_of_kind = [*_walk(Recipe, ""), *_walk(KINDS[kind], "stages.*.")]
    return {key.path: key for key in all_keys_of_kind}


@cache
def all_keys() -> dict[str, Key]:
    """The keys of all kinds, by path."""
    return {path: key for kind in KINDS for path, key in keys(kind).items()}


@cache
def suffixes() -> frozenset[str]:
    """Every way to write a key by its last parts: `batch.micro_batch_size`, `micro_batch_size`."""
    paths = [path.split(".") for path in all_keys()]
    return frozenset(".".join(one[start:]) for one in paths for start in range(len(one)))
