"""The quickstart: generate the world, raise the model, grade it after each stage that teaches it to answer."""

from collections.abc import Sequence
from pathlib import Path

from fledge.errors import FledgeError
from fledge.model.protocol import LanguageModel
from fledge.pipeline import Pipeline
from fledge.quickstart.budget import Budget
from fledge.quickstart.grading import describe_grades, grade_answers
from fledge.quickstart.natural_grading import describe_natural_grades, grade_natural_prompts, load_natural_prompts
from fledge.quickstart.recipe import make_recipe
from fledge.quickstart.speed import measure_speed
from fledge.recipe import Recipe, load_recipe
from fledge.run import Console, RunDirectory, StageDirectory, check_layout, exclusive_lock, read_json, write_json
from fledge.run.startup import StartupTimer
from fledge.run_context import AfterStage
from fledge.tokenizer import Tokenizer
from fledge.world import Question, build, load_questions


def quickstart(*, name: str, output: str, seed: int, minutes: float, resume: bool, console: Console) -> Path:
    """Run the quickstart in `output/name` and return the run directory; `minutes` is the training time to aim at.

    Raises FledgeError if the run exists and `resume` is false.
    """
    startup = StartupTimer()
    directory = RunDirectory(Path(output) / name)
    world = directory.root / "world"
    with exclusive_lock(directory.root):
        recipe = _stored_recipe(directory, resume)
        if recipe is None:
            console.title("world")
            with startup.phase("measuring"):
                budget = Budget(minutes, measure_speed(console.log))
            with startup.phase("world"):
                recipe = _new_recipe(directory, budget, seed, console)
        grade = _grade_by(recipe, load_questions(world), console)
        Pipeline(recipe, console, after_stage=grade, startup=startup).run(resume=resume, locked=True)
    return directory.root


def _grade_by(recipe: Recipe, questions: Sequence[Question], console: Console) -> AfterStage:
    """The function that grades the model of each stage that has learned to answer."""

    def grade(stage: str, model: LanguageModel, tokenizer: Tokenizer, folder: StageDirectory) -> None:
        if recipe.stages[stage].prompt_tests is None:  # pretraining: the model does not answer yet
            return
        grades = grade_answers(model, tokenizer, questions)
        grades["natural"] = grade_natural_prompts(model, tokenizer, load_natural_prompts())
        metrics = read_json(folder.evaluations / "after.json")
        if "rewards/accuracies" in metrics:
            grades["preference_accuracy"] = metrics["rewards/accuracies"]
        write_json(folder.evaluations / "world.json", grades)
        console.log(describe_grades(stage, grades))
        console.log(describe_natural_grades(stage, grades["natural"]))

    return grade


def _stored_recipe(directory: RunDirectory, resume: bool) -> Recipe | None:
    """The recipe of a run that is resumed; None for a new run. Raises FledgeError if the run exists and is not to be resumed.
    The run must be locked: another process may be reading its world."""
    if not directory.recipe.exists():
        return None
    if resume:
        check_layout(directory.root)
        return load_recipe([str(directory.recipe)])
    raise FledgeError(
        "this run exists already", where=str(directory.root), hint="add --resume to resume it, or choose another --name"
    )


def _new_recipe(directory: RunDirectory, budget: Budget, seed: int, console: Console) -> Recipe:
    """Generate the world, and make the recipe of a run on it."""
    world = directory.root / "world"
    rows = build(seed, world, budget.sizes())["rows"]
    counts = ", ".join(f"{count:,} rows of {kind}" for kind, count in rows.items())
    console.log(f"a bilingual world from seed {seed}: {counts}")
    return make_recipe(world, directory.root.name, str(directory.root.parent), seed, budget)
