"""`fledge tune`: prepare what is shared, run the search, write and tell the result."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from fledge.errors import FledgeError
from fledge.recipe import Recipe, load_recipe
from fledge.run import Console, exclusive_lock, write_json
from fledge.run.directory import RunDirectory
from fledge.run.stopping import SignalHandler
from fledge.sweep.journal import check_settings
from fledge.sweep.recipes import SweepFiles, TrialRecipes, chosen_stage
from fledge.sweep.shared import build_data, train_start
from fledge.tune.batch import evidence, find_batch, noise_of
from fledge.tune.duration import find_duration
from fledge.tune.learning_rate import LearningRateSearch, narrowed, width_factor
from fledge.tune.result import TuneResult
from fledge.tune.runs import ShortRuns


@dataclass(frozen=True, kw_only=True)
class TuneSettings:
    """What is searched, and from which recipe. `stage`: None: the last one. `out`: folder of the runs; None: by the recipe's
    name. `width`: of a narrower model on which a learning rate is found. `processes`: runs at a time."""

    files: tuple[str, ...]
    what: str
    overrides: tuple[tuple[str, str], ...] = ()
    stage: str | None = None
    out: Path | None = None
    width: int | None = None
    processes: int = 1


def tune(settings: TuneSettings, console: Console) -> list[str]:
    """Find what is asked for, and return the lines of the result. Raises FledgeError for settings that cannot work."""
    if settings.what not in TUNERS:
        raise FledgeError(f"'{settings.what}' cannot be found", where="--what", hint=f"one of {', '.join(TUNERS)}")
    if settings.processes < 1:
        raise FledgeError(f"must be 1 or more, not {settings.processes}", where="--processes")
    if settings.width is not None and settings.what != "lr":
        raise FledgeError("it belongs to --what lr", where="--width", hint="leave it out")
    first = Path(settings.files[0])
    if first.is_dir():
        return _of_run(first, settings)
    recipe, tuner = load_recipe(list(settings.files), list(settings.overrides)), TUNERS[settings.what]
    out = settings.out or Path("tuning") / f"{recipe.name}-{settings.what}"
    stage = chosen_stage(recipe, settings.stage)
    if tuner.compares:
        _check_goal(recipe, stage, settings.what)
    changes_model = settings.width is not None
    recipes = TrialRecipes(
        files=settings.files,
        overrides=settings.overrides,
        space=(),
        stage=stage,
        first=0 if changes_model else list(recipe.stages).index(stage),
        shares_data=True,
        paths=SweepFiles(folder=out),
        keeps_checkpoints=False,
        processes=settings.processes,
    )
    runs = ShortRuns(recipes=recipes, console=console, processes=settings.processes, compares=tuner.compares)
    with exclusive_lock(out), SignalHandler(console.log, "stopped on request; the same command goes on"):
        values = {"what": settings.what, "stage": stage, "width": settings.width}
        given = {**values, "recipe": recipe.model_dump(mode="json", exclude={"name", "output", "logging", "alerts"})}
        if not check_settings(recipes.paths.settings, given):
            write_json(recipes.paths.settings, given)
        try:
            build_data(recipes, 1, console.log)
            runs.plan({})  # what cannot work is told before anything is trained
            train_start(recipes, 1, console.log)
            result = tuner.find(runs, settings)
        except FledgeError:
            if not any((out / "trials").glob("*")):  # nothing was tried: the recipe may be mended, and the folder used again
                recipes.paths.settings.unlink(missing_ok=True)
            raise
        return result.lines(result.write(out))


def _tune_rate(runs: ShortRuns, settings: TuneSettings) -> TuneResult:
    if settings.width is None:
        return LearningRateSearch(runs).find()
    recipe = runs.recipes.given()
    if recipe.model.path or recipe.model.config or runs.stage.init_from or next(iter(recipe.stages)) != runs.recipes.stage:
        raise FledgeError("only a stage that starts from new weights can be tried on a narrower model", where="--width",
                          hint="name the first stage, or leave --width out")  # fmt: skip
    factor = width_factor(runs.stage.optimizer.name, settings.width, recipe.model.hidden_size)
    return LearningRateSearch(runs, narrowed(recipe.model, settings.width), factor).find()


def _tune_batch(runs: ShortRuns, settings: TuneSettings) -> TuneResult:
    return find_batch(runs)


def _tune_duration(runs: ShortRuns, settings: TuneSettings) -> TuneResult:
    return find_duration(runs)


@dataclass(frozen=True)
class Tuner:
    """What finds an answer. `compares`: whether it does so by the validation losses of its runs."""

    find: Callable[[ShortRuns, TuneSettings], TuneResult]
    compares: bool


TUNERS: dict[str, Tuner] = {
    "lr": Tuner(_tune_rate, compares=True),
    "batch": Tuner(_tune_batch, compares=False),
    "duration": Tuner(_tune_duration, compares=True),
}


def _check_goal(recipe: Recipe, stage: str, what: str) -> None:
    """Raise FledgeError for a stage whose goal is not its validation loss, which is that of the rows' own answers."""
    if recipe.stages[stage].answers_per_example > 1:
        raise FledgeError(
            f"runs are compared by the loss of the rows' own answers, and the stage {stage} trains for rewards of answers that "
            "it draws",
            where=f"--what {what}",
            hint="search by whole runs, which are compared by the reward: fledge sweep RECIPE --search KEY=VALUES",
        )


def _of_run(run: Path, settings: TuneSettings) -> list[str]:
    """The critical batch from the gradients that a run has recorded: nothing is trained. Raises FledgeError for settings of
    runs, which would have no effect."""
    if settings.what != "batch":
        raise FledgeError(f"--what {settings.what} trains runs: it is found from a recipe, not from a run", where=str(run),
                          hint="name its recipe.yaml")  # fmt: skip
    given = {
        "--out": settings.out is not None,
        "--processes": settings.processes > 1,
        **{f"--{key}": True for key, _ in settings.overrides},
        **{file: True for file in settings.files[1:]},
    }
    if (where := next((name for name, is_given in given.items() if is_given), None)) is not None:
        raise FledgeError("it has no effect on what a run has recorded: nothing is trained", where=where,
                          hint="leave it out, or name the recipe.yaml of the run")  # fmt: skip
    directory = RunDirectory(run)
    if not directory.recipe.exists():
        raise FledgeError("this is no run", where=str(run), hint="name the folder of a run, or a recipe")
    stage = chosen_stage(load_recipe([str(directory.recipe)]), settings.stage)
    return evidence(*noise_of(directory.stage(stage)))
