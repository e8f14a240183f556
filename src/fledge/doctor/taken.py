"""Which changes of a prescription the recipe of a run takes."""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fledge.doctor.examination import Examination
from fledge.doctor.synonyms import stage_key
from fledge.errors import FledgeError

PLACE = re.compile(r"^\d+\. \S+:\d+: ")  # before a problem of a recipe: its number and line
TOGETHER = "batch."  # keys of this section make one change: half of it is another one


def taken_by_recipe(examination: Examination, patch: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, str]]:
    """Those changes that the recipe of the run takes, and the key of each other one → why not. Changes are tried one by one, in
    whatever order they need each other; those of the batch together. All of them for a log of another trainer, and for a run
    whose own recipe cannot be read."""
    run = examination.target.run
    if run is None or not patch or _problem(run / "recipe.yaml", {}) is not None:
        return dict(patch), {}
    file, taken, left_out = run / "recipe.yaml", dict[str, Any](), dict[str, str]()
    if _problem(file, patch) is None:
        return dict(patch), {}
    open_ = _changes(patch)
    while open_:
        problems = []
        for change in open_:
            if (problem := _problem(file, {**taken, **change})) is None:
                taken |= change
            else:
                problems.append((change, problem))
        if len(problems) == len(open_):
            left_out = {key: problem for change, problem in problems for key in change}
            break
        open_ = [change for change, _ in problems]
    return {key: value for key, value in patch.items() if key in taken}, left_out


def _changes(patch: Mapping[str, Any]) -> list[dict[str, Any]]:
    groups: dict[str, dict[str, Any]] = {}
    for key, value in patch.items():
        groups.setdefault(TOGETHER if stage_key(key).startswith(TOGETHER) else key, {})[key] = value
    return list(groups.values())


def _problem(file: Path, patch: Mapping[str, Any]) -> str | None:
    """What the recipe in a file says against a patch; None: it takes it."""
    from fledge.recipe import load_recipe
    from fledge.sweep.space import as_overrides

    try:
        load_recipe([str(file)], as_overrides(patch))
    except FledgeError as error:
        return PLACE.sub("", error.what.splitlines()[-1].strip())
    return None
