"""The recipe.yaml of a run belongs to the folder that it lies in, also when the run was moved or renamed."""

import os
from pathlib import Path
from typing import Any

RUN_MARKS = ("environment.json", "tokenizer")  # what a run's folder has besides recipe.yaml
Tree = dict[str, Any]


def at_its_place(file: str, tree: Tree) -> Tree:
    """The tree of a recipe file; that of a run's recipe.yaml names the run and the output folder where the file lies now.

    Paths of models and prompt tests inside the run move with it. Paths of data do not: a run keeps the data that it has built.
    """
    folder = Path(os.path.abspath(file)).parent
    if Path(file).name != "recipe.yaml" or not all((folder / mark).exists() for mark in RUN_MARKS):
        return tree
    name, output = tree.get("name"), tree.get("output")
    if not (isinstance(name, str) and isinstance(output, str)) or os.path.abspath(os.path.join(output, name)) == str(folder):
        return tree
    moved = _moved(tree, os.path.join(output, name), str(folder))
    return {**moved, "name": folder.name, "output": _short(folder.parent)}


def _short(folder: Path) -> str:
    """A folder below the current one as a relative path, every other one as an absolute path."""
    relative = os.path.relpath(folder)
    return str(folder) if relative.startswith("..") else relative


def _moved(value: Any, before: str, now: str) -> Any:
    """The value with paths below `before` that exist only below `now` replaced."""
    if isinstance(value, dict):
        return {key: item if key == "data" else _moved(item, before, now) for key, item in value.items()}
    if isinstance(value, str) and value.startswith(f"{before}/") and not Path(value).exists():
        target = now + value[len(before) :]
        return target if Path(target).exists() else value
    return value
