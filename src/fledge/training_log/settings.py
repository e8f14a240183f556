"""Settings of a run from a file of configuration, of fledge or of another trainer."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from fledge.errors import FledgeError, first_line
from fledge.recipe.foreign.dialects import detect_trainer
from fledge.recipe.yaml_dialect import RecipeLoader
from fledge.run.text_files import read_json
from fledge.training_log.fledge_settings import recipe_settings
from fledge.training_log.records import TrainingSettings
from fledge.training_log.setting_names import CHOSEN_SECTION, flat, setting_key
from fledge.training_log.settings_map import settings_from
from fledge.training_log.settings_text import settings_of_text
from fledge.training_log.text_file import read_text

MAX_BYTES = 2**20
YAML_NAMES, JSON_NAMES, PYTHON_NAMES = (".yaml", ".yml"), (".json",), (".py",)
TAGGED = re.compile(r"!!python/\S+|!\w\S*")


class _Tolerant(RecipeLoader):
    """Reads YAML of other programs: a tag that is not known is left out, and nothing is ever constructed from it."""


def _untagged(loader: Any, suffix: str, node: yaml.Node) -> Any:
    if isinstance(node, yaml.MappingNode):
        return loader.construct_mapping(node, deep=True)
    if isinstance(node, yaml.SequenceNode):
        return loader.construct_sequence(node, deep=True)
    return str(node.value)


_Tolerant.add_multi_constructor("!", _untagged)
_Tolerant.add_multi_constructor("tag:yaml.org,2002:python/", _untagged)


def yaml_tree(file: Path) -> Any:
    """The plain data in a YAML file. Raises FledgeError if it is no YAML, or too large."""
    if file.stat().st_size > MAX_BYTES:
        raise FledgeError("too large for a configuration", where=str(file), hint=f"at most {MAX_BYTES >> 20} MiB are read")
    return _parsed(read_text(file), file)


def _parsed(text: str, file: Path) -> Any:
    if re.search(r"(?m)(?:^|[\s\[,:-])\*\w", text) and text.count("*") > 1000:
        raise FledgeError("too many aliases for a configuration", where=str(file))
    loader = _Tolerant(text)
    try:
        return loader.get_single_data()
    except (yaml.YAMLError, ValueError, TypeError, RecursionError) as error:
        raise FledgeError(f"not readable as YAML: {first_line(error)}", where=str(file)) from None
    finally:
        loader.dispose()


@dataclass(frozen=True)
class SettingsFile:
    """A configuration that was read: its settings, and the trainer that it was written for, in words."""

    settings: TrainingSettings
    trainer: str


def read_settings(path: Path, stage: str | None = None) -> TrainingSettings:
    """The settings in a configuration: a recipe of fledge, YAML or JSON of another trainer, a Python file, or a text with
    assignments. `stage`: the stage of a recipe, or the class or section of another file. Nothing is executed.

    Raises FledgeError if the file cannot be read or holds no setting that is known.
    """
    if not path.exists():
        raise FledgeError("this configuration does not exist", where=str(path))
    if path.is_dir():
        if (path / "recipe.yaml").is_file():
            return read_settings(path / "recipe.yaml", stage)
        raise FledgeError("this is a folder, not a configuration", where=str(path), hint="name the file in it")
    tree = _tree(path)
    if isinstance(tree, Mapping) and isinstance(tree.get("stages"), Mapping):
        return _of_recipe(path, stage)
    mapping = isinstance(tree, Mapping)
    found = _of_mapping(tree, path, stage) if mapping else settings_of_text(read_text(path), path.name, stage)
    if not found.known():
        hint = "known are names such as learning_rate, num_train_epochs, per_device_train_batch_size, warmup_steps, lora_r"
        raise FledgeError("no setting of a training run was found in this file", where=str(path), hint=hint)
    return found


def _tree(path: Path) -> Any:
    """The plain data of a JSON or YAML file; None for texts of another kind."""
    suffix = path.suffix.lower()
    if suffix in JSON_NAMES:
        return read_json(path)
    if suffix in YAML_NAMES:
        return yaml_tree(path)
    if suffix in PYTHON_NAMES or path.stat().st_size > MAX_BYTES:
        return None
    text = read_text(path)
    try:
        tree = _parsed(text, path)
    except FledgeError:
        return None
    return tree if isinstance(tree, Mapping) and len(tree) > 1 else None


def _of_recipe(path: Path, stage: str | None) -> TrainingSettings:
    from fledge.recipe.load import load_recipe

    tree = load_recipe([str(path)]).model_dump(mode="json")
    names = list(tree["stages"])
    if stage is None and len(names) == 1:
        stage = names[0]
    if stage is None or stage not in names:
        what = f"this recipe has no stage '{stage}'" if stage else "this recipe has several stages"
        raise FledgeError(what, where=str(path), hint=f"name one with --stage: {', '.join(names)}")
    found = recipe_settings(tree, stage, path.name)
    return replace(found, other={**found.other, "trainer": "fledge", CHOSEN_SECTION: stage})


def _of_mapping(tree: Mapping[Any, Any], path: Path, stage: str | None) -> TrainingSettings:
    """The settings of a YAML or JSON of another trainer. `stage`: a section of it."""
    sections = {str(name): value for name, value in tree.items() if isinstance(value, Mapping)}
    chosen = next((name for name in sections if stage is not None and stage.lower() in name.lower()), None)
    if chosen is not None:
        tree = {**{name: value for name, value in tree.items() if not isinstance(value, Mapping)}, **sections[chosen]}
    pairs = flat(tree)
    found = settings_from(pairs, path.name, [chosen] if chosen else [])
    trainer = detect_trainer([setting_key(name) for name in pairs])
    section = {CHOSEN_SECTION: chosen} if chosen else {}
    return replace(found, other={**found.other, "trainer": trainer, **section})
