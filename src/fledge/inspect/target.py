"""The targets of `fledge data`: recipes, or files of rows for which a recipe is made."""

import json
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from fledge.data.analysis.row_kinds import kinds_of
from fledge.data.formats import FORMATS
from fledge.data.reading.records import files_of, records_of
from fledge.errors import FledgeError
from fledge.recipe import Recipe, Source, load_recipe
from fledge.run import RunDirectory

RECIPES = (".yaml", ".yml")
DETECTION_ROWS = 20  # rows of a file that are read to detect their kind
ANY_CONTEXT = 2**20
Overrides = Sequence[tuple[str, str]]


def is_recipe(target: str) -> bool:
    """Whether a target is the file of a recipe."""
    return Path(target).suffix in RECIPES


def recipe_of(targets: Sequence[str], overrides: Overrides = (), kind: str | None = None) -> Recipe:
    """The recipe of the targets. For files of rows a recipe is made, with one stage for each kind of rows.

    Raises FledgeError when recipes and files are mixed, or when the rows of a file have no known format.
    """
    if len({is_recipe(target) for target in targets}) > 1:
        raise FledgeError("give either recipes or files of rows", where=", ".join(targets))
    if is_recipe(targets[0]):
        return load_recipe(targets, overrides)
    if len(targets) == 1 and (Path(targets[0]) / "recipe.yaml").exists():
        return load_recipe([str(Path(targets[0]) / "recipe.yaml")], overrides)
    sources: dict[str, list[str]] = {}
    for target in targets:
        stage = kind or kind_of(target)
        sources.setdefault(stage, []).append(target)
    settings = [("model.max_position_embeddings", str(ANY_CONTEXT))]
    for stage in sorted(sources, key=list(FORMATS).index):
        settings += [(f"stages.{stage}.kind", stage), (f"stages.{stage}.data.validation", "0")]
        settings.append((f"stages.{stage}.data.train", json.dumps(sources[stage])))
    return load_recipe([], [*settings, *overrides])


def kind_of(target: str) -> str:
    """The kind of stage that the first rows of a file or folder are meant for. Raises FledgeError when no row has a known
    format."""
    source = Source(path=target)
    kinds, problems = kinds_of(islice(records_of(files_of(source, target), source), DETECTION_ROWS), source)
    if not problems and not kinds:
        raise FledgeError("it holds no rows", where=target)
    if not kinds:
        place, error = problems[0]
        why = f"{error.reason}, first at {place}{f': {error.detail}' if error.detail else ''}"
        raise FledgeError(f"cannot tell what the rows are: {why}", where=target,
                          hint="mend the rows; or say --kind, or write a recipe that names the columns")  # fmt: skip
    return kinds.most_common(1)[0][0]


def stages_of(recipe: Recipe, stage: str | None) -> list[str]:
    """The stages to inspect: one, or all. Raises FledgeError when the recipe has no such stage."""
    if stage is not None and stage not in recipe.stages:
        raise FledgeError(f"the recipe has no stage '{stage}'", where="--stage", hint=f"it has {', '.join(recipe.stages)}")
    return [stage] if stage is not None else list(recipe.stages)


def without_drop_limit(recipe: Recipe) -> Recipe:
    """The recipe without `max_drop_fraction`, which would stop the inspection of bad data."""
    stages = {
        name: stage.model_copy(update={"data": stage.data.model_copy(update={"max_drop_fraction": None})})
        for name, stage in recipe.stages.items()
    }
    return recipe.model_copy(update={"stages": stages})


def tokenizer_folder(recipe: Recipe) -> Path:
    """The folder of the recipe's tokenizer, once the recipe has been built or run."""
    return (
        Path(recipe.built_dataset) / "tokenizer"
        if recipe.built_dataset
        else RunDirectory(Path(recipe.output) / recipe.name).tokenizer
    )
