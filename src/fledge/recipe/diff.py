"""The resolved recipe as YAML text, and the differences of two recipes."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import yaml

from fledge.recipe.yaml_dialect import RecipeDumper

if TYPE_CHECKING:
    from fledge.recipe.schema import Recipe


def to_yaml(recipe: "Recipe") -> str:
    """The recipe as YAML with every key; loading the text gives an equal recipe."""
    return yaml.dump(recipe.model_dump(mode="json"), Dumper=RecipeDumper, sort_keys=False, allow_unicode=True, width=100)


def leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    """(dotted key, value) of each value in a mapping of mappings; an empty mapping is a value."""
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from leaves(item, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def changed_leaves(old: dict[str, Any], new: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """(dotted key, old value, new value) of each value that differs; '(absent)' for a missing value."""
    before, after, absent = dict(leaves(old)), dict(leaves(new)), object()
    return [
        (key, before.get(key, "(absent)"), after.get(key, "(absent)"))
        for key in {**before, **after}
        if before.get(key, absent) != after.get(key, absent)
    ]


def differences(old: "Recipe", new: "Recipe") -> list[str]:
    """One line per key that differs: `key: old -> new`."""
    changed = changed_leaves(old.model_dump(mode="json"), new.model_dump(mode="json"))
    return [f"{key}: {before!r} -> {after!r}" for key, before, after in changed]
