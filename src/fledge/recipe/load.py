"""Loading of a recipe: presets, YAML files and dotted overrides become one validated recipe; all problems are reported."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass, field
from importlib import resources
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError

from fledge.errors import FledgeError
from fledge.recipe.mistyped import meant
from fledge.recipe.run_location import at_its_place
from fledge.recipe.schema import Recipe
from fledge.recipe.schema_keys import ALIASES, KINDS, Key, preset_names, valid_keys, written_key
from fledge.recipe.yaml_dialect import RecipeLoader
from fledge.recipe.yaml_source import (
    FULL_WIDTH_HINT,
    NULL_TAG,
    PLAIN_TAGS,
    compose_yaml,
    data_given,
    full_width_colon,
    full_width_colon_in,
    has_surrogates,
    looks_like_data,
    read_yaml_text,
    shown_tag,
)

__all__ = ["load_recipe", "merge", "preset_names", "recipe_from_dict"]

EXAMPLE = "stages: {sft: {data: {train: chat.jsonl}}}"
NO_SECTION = ("dict_type", "model_type", "model_attributes_type", "dataclass_type")  # pydantic's errors for no mapping
WORD = "Input should be '"  # begins pydantic's message for a key that takes one of some words


@dataclass
class _Layers:
    """The merged tree, the location (file:line or flag) where each key was last written, and problems."""

    tree: dict[str, Any] = field(default_factory=dict)
    locations: dict[Key, str] = field(default_factory=dict)
    problems: list[str] = field(default_factory=list)

    def location(self, key: Key) -> str:
        """The location of a key, or of the nearest enclosing section that was written."""
        while key and key not in self.locations:
            key = key[:-1]
        return self.locations.get(key, "recipe")


def _node_to_tree(node: yaml.Node, file: str, key: Key, layers: _Layers) -> Any:
    """A YAML node as plain data. Records line numbers; a repeated key, a tag and text with a full-width colon are problems."""
    where = layers.locations[key] = f"{file}:{node.start_mark.line + 1}"
    if node.tag not in PLAIN_TAGS and not isinstance(node, yaml.ScalarNode):
        layers.problems.append(f"{where}: the tag '{shown_tag(node)}' means nothing in a recipe; leave it out")
    if isinstance(node, yaml.MappingNode):
        tree: dict[str, Any] = {}
        for name_node, value_node in node.value:
            line = f"{file}:{name_node.start_mark.line + 1}"
            if not isinstance(name_node, yaml.ScalarNode):
                layers.problems.append(f"{line}: a key is one word, not a list or a section")
                continue
            name = str(name_node.value)
            if name in tree:
                layers.problems.append(f"{line}: the key '{name}' is written twice")
            if message := full_width_colon(name):
                layers.problems.append(f"{line}: {message}; {FULL_WIDTH_HINT}")
                continue
            tree[name] = _node_to_tree(value_node, file, (*key, name), layers)
            layers.locations[(*key, name)] = line
        return tree
    if isinstance(node, yaml.SequenceNode):
        return [_node_to_tree(item, file, (*key, i), layers) for i, item in enumerate(node.value)]
    assert isinstance(node, yaml.ScalarNode)
    return _scalar(node, where, layers)


def _scalar(node: yaml.ScalarNode, where: str, layers: _Layers) -> Any:
    """The value of a scalar node; a value that cannot be read is a problem."""
    if node.start_mark.line != node.end_mark.line and node.style is None and (message := full_width_colon_in(node)):
        layers.problems.append(f"{where}: {message}")
    loader = RecipeLoader("")
    try:
        value = loader.construct_object(node) if node.tag in PLAIN_TAGS else None
    except (yaml.YAMLError, ValueError):
        value = None
    finally:
        loader.dispose()
    if value is None and node.tag != NULL_TAG:
        layers.problems.append(f"{where}: cannot read '{node.value[:60]}' as {shown_tag(node)}")
        return node.value
    if isinstance(value, str) and not value.isascii() and has_surrogates(value):
        layers.problems.append(f"{where}: the text holds half a character (a lone surrogate such as \\ud83d)")
    return value


def _parse(text: str, file: str, layers: _Layers) -> dict[str, Any]:
    node = compose_yaml(text, file, "recipe")
    if node is None:
        layers.locations.setdefault((), f"{file}:1")
        return {}
    if isinstance(node, yaml.MappingNode):
        return _node_to_tree(node, file, (), layers)
    where = f"{file}:{node.start_mark.line + 1}"
    if isinstance(node, yaml.ScalarNode) and (message := full_width_colon_in(node)):
        raise FledgeError(message, where=where, hint=FULL_WIDTH_HINT)
    if looks_like_data(text.split("\n")) or (isinstance(node, yaml.SequenceNode) and node.flow_style):
        raise data_given(file, "recipe")
    raise FledgeError("a recipe is a mapping of keys", where=where, hint="each line is `key: value`; see docs/recipes.md")


def merge(low: Any, high: Any) -> Any:
    """`high` merged over `low`: mappings key by key; other values, lists included, are replaced."""
    if isinstance(low, dict) and isinstance(high, dict):
        return {**low, **{key: merge(low[key], value) if key in low else value for key, value in high.items()}}
    return high


def _read_file(path: str, layers: _Layers) -> dict[str, Any]:
    text = read_yaml_text(path, "recipe")
    return _parse(text.replace("\t", " ") if path.endswith(".json") else text, path, layers)  # YAML allows no tabs between keys


def _set_locations(key: Key, value: Any, location: str, layers: _Layers) -> None:
    layers.locations[key] = location
    for name, item in value.items() if isinstance(value, dict) else ():
        _set_locations((*key, name), item, location, layers)


def _first_digit(names: list[str]) -> str:
    return next(name for name in names if name.isdigit())


def _apply_override(tree: dict[str, Any], key: str, text: str, layers: _Layers) -> dict[str, Any]:
    try:
        value = yaml.load(text, Loader=RecipeLoader)
    except (yaml.YAMLError, ValueError, RecursionError):
        value = text
    if has_surrogates(text):
        layers.problems.append(f"--{key}: the value is not UTF-8")
        return tree
    names = key.split(".")
    if any(name.isdigit() for name in names):
        whole_list = key[: key.index("." + _first_digit(names))]
        layers.problems.append(
            f"--{key}: an element of a list cannot be set alone; write the whole list, for instance --{whole_list} '[…]'"
        )
        return tree
    for end in range(1, len(names) + 1):
        layers.locations.setdefault(tuple(names[:end]), f"--{key}")
    _set_locations(tuple(names), value, f"--{key}", layers)
    nested: Any = value
    for name in reversed(names):
        nested = {name: nested}
    return merge(tree, nested)


def _over_preset(preset: dict[str, Any], stage: dict[str, Any]) -> dict[str, Any]:
    """A stage merged over what its preset says of its kind. A preset's `micro_batch_size` only says how many rows an update
    has: unless the stage writes its own, it is left open how many are computed at a time."""
    merged, own = merge(preset, stage), stage.get("batch", {})
    if "batch" in preset and isinstance(own, dict) and "micro_batch_size" not in own:
        merged["batch"] = {"merge_micro_batches": True, **merged["batch"]}
    return merged


def _apply_preset(tree: dict[str, Any], layers: _Layers) -> dict[str, Any]:
    """The tree merged over its preset: model sizes, and hyper-parameters by kind of stage."""
    name = tree.get("preset")
    preset: dict[str, Any] = {}
    if name is not None:
        if name not in preset_names():
            near = difflib.get_close_matches(str(name), preset_names(), 1)
            layers.problems.append(
                f"{layers.location(('preset',))}: there is no preset '{name}'"
                + (f"; did you mean '{near[0]}'?" if near else "")
                + f" (there are: {', '.join(preset_names())})"
            )
        else:
            text = (resources.files("fledge.recipe") / "presets" / f"{name}.yaml").read_text(encoding="utf-8")
            preset = _parse(text, f"preset {name}", _Layers())
    kinds = preset.pop("kinds", {})
    stages = tree.get("stages")
    if isinstance(stages, dict):
        filled = {}
        for stage_name, stage in stages.items():
            if isinstance(stage, dict):
                kind = ALIASES.get(stage_name, stage_name)
                stage = {"kind": kind, **stage} if kind in KINDS else stage
                stage = _over_preset(kinds.get(str(stage.get("kind")), {}), stage)
            filled[stage_name] = stage
        tree = {**tree, "stages": filled}
    return merge(preset, tree)


def _written_key(error: Any, layers: _Layers) -> Key:
    """The key that a pydantic error is about, as the user wrote it."""
    return written_key(tuple(error["loc"]), layers.tree, error["type"] == "missing")


def _explain(error: Any, layers: _Layers) -> str:
    """One pydantic error as `location: key: problem`."""
    loc: Key = tuple(error["loc"])
    key = _written_key(error, layers)
    location, dotted = layers.location(key), ".".join(map(str, key))
    if error["type"] == "extra_forbidden":
        keys = valid_keys(loc[:-1])
        near = difflib.get_close_matches(str(key[-1]), keys, 1, cutoff=0.5)
        known = f"; the keys there are {', '.join(keys)}" if keys else ""
        return f"{location}: unknown key '{dotted}'" + (f"; did you mean '{near[0]}'?" if near else known)
    if error["type"] == "missing":
        example = f", such as {EXAMPLE}" if key == ("stages",) else ""
        return f"{location}: the key '{dotted}' is missing{example}"
    if error["type"].startswith("union_tag"):
        kinds = ", ".join(KINDS)
        return f"{location}: {dotted}: kind must be one of {kinds}"
    message, value = error["msg"].removeprefix("Value error, "), error["input"]
    if error["type"] in NO_SECTION:
        message = _section_wanted(key, value)
    shown = "" if isinstance(value, dict | list | BaseModel) or error["type"] == "value_error" else f" (it is {value!r:.80})"
    way = meant(value, error["type"])
    write = f"; write {way}" if way is not None else _as_share(error)
    return f"{location}: {dotted}: {message}{shown}{write}" if dotted else f"{location}: {message}"


def _section_wanted(key: Key, value: Any) -> str:
    """The message for a value where a section belongs."""
    section = "this is a section of keys, `key: value`"
    section = f"{section}, such as {EXAMPLE}" if key == ("stages",) else section
    return f"{section}; leave out the `-` before its keys" if isinstance(value, list) else section


def _as_share(error: Any) -> str:
    """What a percentage is as a share, for a number that is too large for one."""
    value, limit = error["input"], error.get("ctx", {}).get("lt")
    is_percentage = error["type"] == "less_than" and limit == 1 and isinstance(value, int | float) and 1 < value < 100
    return f"; this is a share: {value:g} % is {value / 100:g}" if is_percentage else ""


def _validate(layers: _Layers) -> Recipe:
    try:
        recipe = Recipe.model_validate(layers.tree)
    except ValidationError as error:
        problems = [*layers.problems, *_problems(error.errors(), layers)]
    else:
        problems = layers.problems
        if not problems:
            return recipe
    count = f"{len(problems)} problem{'s' if len(problems) > 1 else ''} in the recipe"
    raise FledgeError("\n".join([count + ":", *(f"  {i}. {text}" for i, text in enumerate(problems, 1))]))


def _problems(errors: list[Any], layers: _Layers) -> list[str]:
    """Every problem once: answers for renamed keys and keys of other trainers, pydantic's messages for the rest."""
    from fledge.recipe.foreign import answer_lines, explain

    explanations = explain(layers.tree, layers.location, {_written_key(item, layers) for item in errors})
    answered, provided = {item.key for item in explanations}, {key for item in explanations for key in item.provides}

    def is_answered(item: Any) -> bool:
        key = _written_key(item, layers)
        parents = {key[:end] for end in range(1, len(key) + 1)}
        return bool(parents & answered) or (item["type"] == "missing" and any(path[: len(key)] == key for path in provided))

    left = [item for item in errors if not is_answered(item)]
    by_key: dict[Key, list[str]] = {}
    for item in left:
        by_key.setdefault(_written_key(item, layers), []).append(_explain(item, layers))
    others = [line for lines in by_key.values() for line in _joined(list(dict.fromkeys(lines)))]
    return [*answer_lines(explanations), *others]


def _joined(lines: list[str]) -> list[str]:
    """The problems of one key: a key that takes a word or another type has one for each, which become one line."""
    words, others = [line for line in lines if WORD in line], [line for line in lines if WORD not in line]
    if len(words) != 1 or len(others) != 1:
        return lines
    choice = words[0].partition(WORD)[2].partition(" (it is")[0]
    return [others[0].replace("Input should be ", f"{WORD}{choice} or ", 1)]


def _validate_with_preset(layers: _Layers) -> Recipe:
    """The recipe, validated over its preset. A configuration of another trainer is translated in an error."""
    if "stages" not in layers.tree:
        from fledge.recipe.foreign import translate

        text = translate(layers.tree, layers.location, _load_error, layers.problems)
        if text is not None:
            raise FledgeError(text)
    layers.tree = _apply_preset(layers.tree, layers)
    return _validate(layers)


def _load_error(tree: dict[str, Any]) -> str | None:
    """The first problem of a recipe, or None if it loads."""
    try:
        recipe_from_dict(tree)
    except FledgeError as error:
        return error.what.splitlines()[1].partition(": ")[2]
    return None


def load_recipe(files: Sequence[str], overrides: Sequence[tuple[str, str]] = ()) -> Recipe:
    """Load a recipe. Precedence, lowest first: defaults, preset, files from left to right, overrides.

    The recipe.yaml of a run that was moved or renamed names the place where it lies. `overrides`: pairs of a dotted key and a
    YAML value. Raises one FledgeError that lists all problems.
    """
    layers = _Layers()
    for file in files:
        layers.tree = merge(layers.tree, at_its_place(file, _read_file(file, layers)))
    for key, text in overrides:
        layers.tree = _apply_override(layers.tree, key, text, layers)
    return _validate_with_preset(layers)


def recipe_from_dict(tree: dict[str, Any]) -> Recipe:
    """A recipe from a nested dictionary; presets and checks apply as for recipes from files."""
    return _validate_with_preset(_Layers(tree=tree))
