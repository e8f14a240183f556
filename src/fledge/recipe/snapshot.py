"""The resolved recipe as text, and the difference between two of them."""

from collections.abc import Iterator
from typing import Any

import yaml

from fledge.recipe.dialect import RecipeDumper
from fledge.recipe.schema import Recipe


def to_yaml(recipe: Recipe) -> str:
    """Every key with its value; reading it back gives an equal recipe."""
    return yaml.dump(recipe.model_dump(mode="json"), Dumper=RecipeDumper, sort_keys=False, allow_unicode=True, width=100)


def _leaves(value: Any, path: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict) and value:
        for key, item in value.items():
            yield from _leaves(item, f"{path}.{key}" if path else str(key))
    else:
        yield path, value


def differences(old: Recipe, new: Recipe) -> list[str]:
    """One line a key that differs: `key: old -> new`."""
    before = dict(_leaves(old.model_dump(mode="json")))
    after = dict(_leaves(new.model_dump(mode="json")))
    absent = object()
    return [
        f"{key}: {before.get(key, '(absent)')!r} -> {after.get(key, '(absent)')!r}"
        for key in {**before, **after}
        if before.get(key, absent) != after.get(key, absent)
    ]
