"""The builds of a target: below a run directory or a built directory, or built now for recipes and files of rows."""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from fledge.data import StageDataset, is_complete, load_built_dataset
from fledge.data.build.directory import PLAN_FILE, BuildDirectory
from fledge.data.build.plan import BuildPlan
from fledge.errors import FledgeError
from fledge.inspect.target import Overrides, recipe_of, stages_of, tokenizer_folder, without_drop_limit
from fledge.plan.prompt_sharing import has_form
from fledge.prepare import Preparation
from fledge.recipe import Recipe, load_recipe
from fledge.run import Log, check_layout
from fledge.tokenizer import Tokenizer, load_tokenizer


@dataclass(frozen=True)
class Builds:
    """Build folders by the names of their stages. `error` is the error that stopped the building of a recipe's data."""

    folders: Mapping[str, Path]
    error: FledgeError | None = None


@dataclass(frozen=True)
class OpenBuild:
    """A complete build, with its data and its tokenizer."""

    name: str
    data: StageDataset
    tokenizer: Tokenizer

    @property
    def directory(self) -> BuildDirectory:
        """The build directory."""
        return self.data.build

    @property
    def plan(self) -> BuildPlan:
        """The plan of the build."""
        return self.data.plan


def open_build(name: str, folder: Path) -> OpenBuild:
    """The complete build in a folder, packed as the stage trains on it where it is the data of a run. Raises FledgeError when
    the build is not complete."""
    plan = BuildPlan.read(folder / PLAN_FILE)
    if not is_complete(folder):
        raise FledgeError(
            "this build is not complete", where=str(folder), hint="run the same command again: it continues the build"
        )
    tokenizer = load_tokenizer(folder / "tokenizer", needs_template=False)
    data = load_built_dataset(folder, plan, tokenizer, plan.seed)
    if plan.format.sequences_per_example > 1:
        sharing = data.sharing_prompts()
        data = sharing if has_form(sharing, folder.parent / "data_report.json") else data
    return OpenBuild(name, data, tokenizer)


@contextmanager
def builds_of(targets: Sequence[str], overrides: Overrides, stage: str | None, log: Log) -> Iterator[Builds]:
    """The builds of a run directory, of a built directory or of one stage.

    The data of recipes and of files of rows is built now, in a temporary folder that is removed at the end of the
    context.
    """
    root = Path(targets[0])
    if len(targets) == 1 and root.is_dir() and (folders := _built_in(root)):
        if overrides:
            raise FledgeError("the data is built already: keys of the recipe cannot be set", where=f"--{overrides[0][0]}")
        if stage is not None and stage not in folders:
            raise FledgeError(f"there is no stage '{stage}'", where="--stage", hint=f"there are {', '.join(folders)}")
        yield Builds(folders if stage is None else {stage: folders[stage]})
        return
    with tempfile.TemporaryDirectory(prefix="fledge-", ignore_cleanup_errors=True) as tmp_folder:
        yield _build(recipe_of(targets, overrides), stage, Path(tmp_folder), log)


def _built_in(root: Path) -> dict[str, Path]:
    """The builds below a directory, in the order of its recipe; empty when the directory is neither a run nor a build."""
    check_layout(root)
    folder_itself = _build_folder(root)
    if folder_itself is not None:
        return {BuildPlan.read(folder_itself / PLAN_FILE).name: folder_itself}
    if not (root / "recipe.yaml").exists():
        return {}
    recipe = load_recipe([str(root / "recipe.yaml")])
    bases = [root] if recipe.built_dataset is None else [root, Path(recipe.built_dataset)]
    folders = {
        name: folder for base in reversed(bases) for name in recipe.stages if (folder := _build_folder(base / name)) is not None
    }
    folders = {name: folders[name] for name in recipe.stages if name in folders}
    if not folders:
        raise FledgeError("there is no built data here", where=str(root), hint="let the run or the build begin its first stage")
    return folders


def _build_folder(folder: Path) -> Path | None:
    """The build folder that the folder is or contains, or None."""
    return next((candidate for candidate in (folder, folder / "data") if (candidate / "rows").is_dir()), None)


def _build(recipe: Recipe, stage: str | None, root: Path, log: Log) -> Builds:
    names = stages_of(recipe, stage)
    build_recipe = recipe if recipe.built_dataset else without_drop_limit(recipe)
    preparation = Preparation(build_recipe, log, lambda name: root / name)
    folders: dict[str, Path] = {}
    try:
        tokenizer = preparation.tokenizer(tokenizer_folder(recipe))
        for name in names:
            folders[name] = preparation.stage_data(name, tokenizer).folder
    except FledgeError as error:
        started = {name: root / name for name in names if _build_folder(root / name)}
        return Builds({**started, **folders}, error)
    return Builds(folders)
