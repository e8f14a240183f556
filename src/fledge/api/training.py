"""`fledge.train`: a recipe from Python, trained as the command trains it."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fledge.api.run import Run
from fledge.errors import FledgeError
from fledge.recipe import Recipe, load_recipe, recipe_from_dict
from fledge.recipe.load import merge


def train(
    recipe: "str | Path | Mapping[str, Any] | Recipe",
    *,
    allow_change: Sequence[str] = (),
    quiet: bool = False,
    **overrides: Any,
) -> Run:
    """Train the stages of a recipe in this process and return the run. A run that was begun before is resumed.

    `recipe`: a YAML file, a mapping with the keys of a recipe, or a `Recipe`. `overrides`: values for keys of the recipe, given
    by name (`seed=7`) or by dotted key (two underscores for each dot, or `**{"…": …}`). `allow_change`: keys that may differ
    from the recipe of the resumed run. `quiet`: print nothing. Raises FledgeError, with every problem, for a recipe that cannot
    be trained.

    >>> import fledge
    >>> run = fledge.train("mine.yaml", name="shorter", stages__sft__duration="4 steps", quiet=True)
    >>> run.stages["sft"].finished
    True
    """
    from fledge.pipeline import Pipeline
    from fledge.run import Console

    resolved = resolve(recipe, overrides)
    path = Pipeline(resolved, Console(quiet=quiet), allow=allow_change).run()
    run = Run(path)
    run.report()
    return run


def resolve(recipe: "str | Path | Mapping[str, Any] | Recipe", overrides: Mapping[str, Any]) -> Recipe:
    """The recipe with the overrides applied, validated like a recipe file."""
    changes = nested(overrides)
    if isinstance(recipe, Recipe):
        recipe = recipe.model_dump(mode="json")
    if isinstance(recipe, Mapping):
        return recipe_from_dict(merge(dict(recipe), changes))
    if not isinstance(recipe, str | Path):
        raise FledgeError(f"a recipe is a path, a mapping or a Recipe, not {type(recipe).__name__}")
    return load_recipe([str(recipe)], overrides=_as_texts(changes))


def nested(overrides: Mapping[str, Any]) -> dict[str, Any]:
    """Overrides as a tree: `a__b=1` and `{"a.b": 1}` both become {"a": {"b": 1}}."""
    tree: dict[str, Any] = {}
    for key, value in overrides.items():
        inner: Any = value
        for name in reversed(key.replace("__", ".").split(".")):
            inner = {name: inner}
        tree = merge(tree, inner)
    return tree


def _as_texts(tree: Mapping[str, Any], prefix: str = "") -> list[tuple[str, str]]:
    """(dotted key, YAML text) pairs, in the form of command-line options."""
    import yaml

    from fledge.recipe.yaml_dialect import RecipeDumper

    texts: list[tuple[str, str]] = []
    for key, value in tree.items():
        dotted = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            texts += _as_texts(value, f"{dotted}.")
        else:
            text = yaml.dump(value, Dumper=RecipeDumper, default_flow_style=True, allow_unicode=True)
            texts.append((dotted, text.removesuffix("...\n").strip()))
    return texts
