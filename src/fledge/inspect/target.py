"""What a person means by a target: recipes, files of rows, a run directory or a built directory."""

import json
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from fledge.data import StageDataset, is_complete, load_built_dataset
from fledge.data.build.directory import BuildDirectory
from fledge.data.build.plan import SHARD_BYTES, BuildPlan
from fledge.data.formats import FORMATS, kind_for
from fledge.data.parsing.columns import RowError
from fledge.data.parsing.detection import detect_item_type
from fledge.data.reading.records import files_of, read, spans_of
from fledge.errors import FledgeError
from fledge.prepare import Preparation
from fledge.recipe import Recipe, Source, load_recipe
from fledge.run import RunDirectory
from fledge.tokenizer import Tokenizer, load_tokenizer

RECIPES = (".yaml", ".yml")
ROWS_LOOKED_AT = 20  # of a file, to guess what its rows are
ANY_CONTEXT = 2**20
Overrides = Sequence[tuple[str, str]]
Say = Callable[[str], None]


# -- recipes ------------------------------------------------------------------------------------------------------------


def is_recipe(target: str) -> bool:
    """Whether a target is a recipe's file."""
    return Path(target).suffix in RECIPES


def recipe_of(targets: Sequence[str], overrides: Overrides = (), kind: str | None = None) -> Recipe:
    """The recipe that targets name, or one made for files of rows: a stage for each kind of rows, called like the kind.

    FledgeError where recipes and files are mixed, or a file's rows cannot be recognised."""
    if len({is_recipe(target) for target in targets}) > 1:
        raise FledgeError("give either recipes or files of rows", where=", ".join(targets))
    if is_recipe(targets[0]):
        return load_recipe(targets, overrides)
    if len(targets) == 1 and (Path(targets[0]) / "recipe.yaml").exists():
        return load_recipe([str(Path(targets[0]) / "recipe.yaml")], overrides)
    sources: dict[str, list[str]] = {}
    for target in targets:
        found = kind or kind_of(target)
        sources.setdefault(found, []).append(target)
    made = [("model.max_position_embeddings", str(ANY_CONTEXT))]
    for found in sorted(sources, key=list(FORMATS).index):
        made += [(f"stages.{found}.kind", found), (f"stages.{found}.data.validation", "0")]
        made.append((f"stages.{found}.data.train", json.dumps(sources[found])))
    return load_recipe([], [*made, *overrides])


def kind_of(target: str) -> str:
    """The kind of stage that the first rows of a file or folder suggest."""
    source = Source(path=target)
    spans = spans_of(files_of(source, target), source, SHARD_BYTES)
    rows = (record for span in spans for record in read(span, source) if not record.broken)
    kinds: Counter[str] = Counter()
    detail = "it holds no rows"
    for record in islice(rows, ROWS_LOOKED_AT):
        try:
            kinds[kind_for(detect_item_type(record.value, source))] += 1
        except RowError as error:
            detail = f"{error.reason}: {error.detail}"
    if not kinds:
        raise FledgeError(f"cannot tell what the rows are: {detail}", where=target,
                          hint="say --kind, or write a recipe that names the columns")  # fmt: skip
    return kinds.most_common(1)[0][0]


def stages_of(recipe: Recipe, stage: str | None) -> list[str]:
    """The stages to look at. FledgeError where the recipe has no such stage."""
    if stage is not None and stage not in recipe.stages:
        raise FledgeError(f"the recipe has no stage '{stage}'", where="--stage", hint=f"it has {', '.join(recipe.stages)}")
    return [stage] if stage is not None else list(recipe.stages)


def without_drop_limit(recipe: Recipe) -> Recipe:
    """The recipe with nothing that would stop the look: no `max_dropped`."""
    stages = {
        name: stage.model_copy(update={"data": stage.data.model_copy(update={"max_drop_fraction": None})})
        for name, stage in recipe.stages.items()
    }
    return recipe.model_copy(update={"stages": stages})


def tokenizer_folder(recipe: Recipe) -> Path:
    """Where the tokenizer of a recipe is kept, if it was built or run already."""
    return (
        Path(recipe.built_dataset) / "tokenizer"
        if recipe.built_dataset
        else RunDirectory(Path(recipe.output) / recipe.name).tokenizer
    )


# -- builds -------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Builds:
    """Build directories by the names of their stages. `error` stopped the building of a recipe's data."""

    folders: Mapping[str, Path]
    error: FledgeError | None = None


@dataclass(frozen=True)
class OpenBuild:
    """A complete build, and the tokenizer of its tokens."""

    name: str
    data: StageDataset
    tokenizer: Tokenizer

    @property
    def build(self) -> BuildDirectory:
        """The build directory."""
        return self.data.build

    @property
    def plan(self) -> BuildPlan:
        """The plan of the build."""
        return self.data.plan


def open_build(name: str, folder: Path) -> OpenBuild:
    """The data of a complete build directory."""
    plan = BuildPlan.read(folder / "build_plan.json")
    if not is_complete(folder):
        raise FledgeError("this build is not complete", where=str(folder), hint="run the same command again: it goes on")
    tokenizer = load_tokenizer(folder / "tokenizer")
    return OpenBuild(name, load_built_dataset(folder, plan, tokenizer, plan.seed), tokenizer)


@contextmanager
def builds_of(targets: Sequence[str], overrides: Overrides, stage: str | None, say: Say) -> Iterator[Builds]:
    """The builds of a run directory, a built directory or one stage of these; those of recipes (or of files of rows) are
    made now, in a folder that lives as long as the context."""
    root = Path(targets[0])
    if len(targets) == 1 and root.is_dir() and (found := _built_in(root)):
        if overrides:
            raise FledgeError("the data is built already: keys of the recipe cannot be set", where=f"--{overrides[0][0]}")
        if stage is not None and stage not in found:
            raise FledgeError(f"there is no stage '{stage}'", where="--stage", hint=f"there are {', '.join(found)}")
        yield Builds(found if stage is None else {stage: found[stage]})
        return
    with tempfile.TemporaryDirectory(prefix="fledge-", ignore_cleanup_errors=True) as temporary:
        yield _build(recipe_of(targets, overrides), stage, Path(temporary), say)


def _built_in(root: Path) -> dict[str, Path]:
    """The builds below a directory, in the order of its recipe."""
    own = _build_folder(root)
    if own is not None:
        return {BuildPlan.read(own / "build_plan.json").name: own}
    if not (root / "recipe.yaml").exists():
        return {}
    recipe = load_recipe([str(root / "recipe.yaml")])
    bases = [root] if recipe.built_dataset is None else [root, Path(recipe.built_dataset)]
    found = {
        name: folder for base in reversed(bases) for name in recipe.stages if (folder := _build_folder(base / name)) is not None
    }
    found = {name: found[name] for name in recipe.stages if name in found}
    if not found:
        raise FledgeError("there is no built data here", where=str(root), hint="let the run or the build begin its first stage")
    return found


def _build_folder(folder: Path) -> Path | None:
    """The build directory that a folder is, or that a run's stage has."""
    return next((candidate for candidate in (folder, folder / "data") if (candidate / "rows").is_dir()), None)


def _build(recipe: Recipe, stage: str | None, root: Path, say: Say) -> Builds:
    names = stages_of(recipe, stage)
    wanted = recipe if recipe.built_dataset else without_drop_limit(recipe)
    preparation = Preparation(wanted, say, lambda name: root / name)
    folders: dict[str, Path] = {}
    try:
        tokenizer = preparation.tokenizer(tokenizer_folder(recipe))
        for name in names:
            folders[name] = preparation.stage_data(name, tokenizer).folder
    except FledgeError as error:
        begun = {name: root / name for name in names if _build_folder(root / name)}
        return Builds({**begun, **folders}, error)
    return Builds(folders)
