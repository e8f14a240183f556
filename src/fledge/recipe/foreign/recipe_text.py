"""A recipe as a person would write it: small sections on one line, keys in the order of the schema."""

from collections.abc import Mapping
from typing import Any

from fledge.recipe.foreign.wording import inline_yaml
from fledge.recipe.schema import Recipe
from fledge.recipe.schema_keys import Models, fields_of, models_at, stage_models

WIDTH = 110  # characters of a line
Comments = Mapping[tuple[str, ...], str]


def recipe_text(tree: Mapping[str, Any], comments: Comments) -> str:
    """The YAML of a recipe; `comments` stand behind the lines of their keys."""
    return "\n".join(_lines(ordered(tree, (Recipe,)), (), comments))


def ordered(tree: Mapping[str, Any], models: Models) -> dict[str, Any]:
    """A section and all sections in it with their keys as the schema has them."""
    if models == (Recipe,):
        tree = {**tree, "stages": {name: ordered(stage, stage_models(name, stage)) for name, stage in tree["stages"].items()}}
    places = {name: place for place, name in enumerate(fields_of(models))}
    sections = {}
    for name in sorted(tree, key=lambda name: places.get(name, len(places))):
        value = tree[name]
        inner = models_at(models, name, value) if name != "stages" else ()
        sections[name] = ordered(value, inner) if inner and isinstance(value, dict) else value
    return sections


def _lines(tree: Mapping[str, Any], key: tuple[str, ...], comments: Comments) -> list[str]:
    found = []
    for name, value in tree.items():
        here, indent = (*key, name), "  " * len(key)
        comment = f"  # {comments[here]}" if here in comments else ""
        line = f"{indent}{inline_yaml(name)}: {inline_yaml(value)}"
        opened = here == ("stages",) or key == ("stages",) or len(line) > WIDTH
        if isinstance(value, dict) and value and opened:
            found += [f"{indent}{inline_yaml(name)}:{comment}", *_lines(value, here, comments)]
        else:
            found.append(line + comment)
    return found
