"""The resolved recipe as text, and the difference between two of them."""

from collections.abc import Iterator
from typing import Any

import yaml

from fledge.recipe.schema import Recipe
from fledge.recipe.yaml_dialect import RecipeDumper


def to_yaml(recipe: Recipe) -> str:
    """Every key with its value; reading it back gives an equal recipe."""
    return yaml.dump(recipe.model_dump(mode="json"), Dumper=RecipeDumper, sort_keys=False, allow_unicode=True, width=100)


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def changed_leaves(old: dict[str, Any], new: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    """(dotted key, old value, new value) of each value that differs; '(absent)' where there is none."""
    before, after, absent = dict(_leaves(old)), dict(_leaves(new)), object()
    return [
        (key, before.get(key, "(absent)"), after.get(key, "(absent)"))
        for key in {**before, **after}
        if before.get(key, absent) != after.get(key, absent)
    ]


def differences(old: Recipe, new: Recipe) -> list[str]:
    """One line a key that differs: `key: old -> new`."""
    changed = changed_leaves(old.model_dump(mode="json"), new.model_dump(mode="json"))
    return [f"{key}: {before!r} -> {after!r}" for key, before, after in changed]
