"""The YAML of a converted recipe: small sections on one line, keys in the order of the schema."""

from collections.abc import Mapping
from typing import Any

from fledge.recipe.foreign.wording import inline_yaml
from fledge.recipe.schema import Recipe
from fledge.recipe.schema_keys import Models, fields_of, models_at, stage_models

WIDTH = 110  # characters of a line, at most
Comments = Mapping[tuple[str, ...], str]


def recipe_text(tree: Mapping[str, Any], comments: Comments) -> str:
    """The YAML of a recipe, with `comments` behind the lines of their keys."""
    return "\n".join(_lines(ordered(tree, (Recipe,)), (), comments))


def ordered(tree: Mapping[str, Any], models: Models) -> dict[str, Any]:
    """A section and its inner sections, with the keys in the order of the schema."""
    if models == (Recipe,):
        tree = {**tree, "stages": {name: ordered(stage, stage_models(name, stage)) for name, stage in tree["stages"].items()}}
    positions = {name: position for position, name in enumerate(fields_of(models))}
    sections = {}
    for name in sorted(tree, key=lambda name: positions.get(name, len(positions))):
        value = tree[name]
        inner = models_at(models, name, value) if name != "stages" else ()
        sections[name] = ordered(value, inner) if inner and isinstance(value, dict) else value
    return sections


def _lines(tree: Mapping[str, Any], key: tuple[str, ...], comments: Comments) -> list[str]:
    lines = []
    for name, value in tree.items():
        path, indent = (*key, name), "  " * len(key)
        comment = f"  # {comments[path]}" if path in comments else ""
        line = f"{indent}{inline_yaml(name)}: {inline_yaml(value)}"
        is_block = path == ("stages",) or key == ("stages",) or len(line) > WIDTH
        if isinstance(value, dict) and value and is_block:
            lines += [f"{indent}{inline_yaml(name)}:{comment}", *_lines(value, path, comments)]
        else:
            lines.append(line + comment)
    return lines
