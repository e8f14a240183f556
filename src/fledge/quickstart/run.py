"""The quickstart: generate the world, raise the model, grade it after each stage that teaches it to answer."""

from pathlib import Path

from fledge.errors import FledgeError
from fledge.model.protocol import LanguageModel
from fledge.pipeline import Pipeline
from fledge.quickstart.budget import Budget
from fledge.quickstart.grading import describe_grades, grade_answers
from fledge.quickstart.recipe import make_recipe
from fledge.quickstart.speed import measure_speed
from fledge.recipe import Recipe, load_recipe
from fledge.run import Console, RunDirectory, StageDirectory, check_layout, read_json, write_json
from fledge.tokenizer import Tokenizer
from fledge.world import build, load_questions


def quickstart(*, name: str, output: str, seed: int, minutes: float, resume: bool, console: Console) -> Path:
    """Run the quickstart in `output/name` and return the run directory; `minutes` is the training time to aim at.

    Raises FledgeError if the run exists and `resume` is false.
    """
    directory = RunDirectory(Path(output) / name)
    world = directory.root / "world"
    if resume and directory.recipe.exists():
        check_layout(directory.root)
        recipe = load_recipe([str(directory.recipe)])
    else:
        recipe = _begin(directory, name, output, seed=seed, minutes=minutes, console=console)
    questions = load_questions(world)

    def grade(stage: str, model: LanguageModel, tokenizer: Tokenizer, folder: StageDirectory) -> None:
        if recipe.stages[stage].prompt_tests is None:  # pretraining: the model does not answer yet
            return
        grades = grade_answers(model, tokenizer, questions)
        metrics = read_json(folder.evaluations / "after.json")
        if "rewards/accuracies" in metrics:
            grades["preference_accuracy"] = metrics["rewards/accuracies"]
        write_json(folder.evaluations / "world.json", grades)
        console.log(describe_grades(stage, grades))

    Pipeline(recipe, console, after_stage=grade).run(resume=resume)
    return directory.root


def _begin(directory: RunDirectory, name: str, output: str, *, seed: int, minutes: float, console: Console) -> Recipe:
    """Measure this machine, generate the world, and return the recipe. Raises FledgeError if the run exists."""
    if directory.recipe.exists():
        raise FledgeError(
            "this run exists already", where=str(directory.root), hint="add --resume to resume it, or choose another --name"
        )
    console.title("world")
    budget = Budget(minutes, measure_speed(console.log))
    world = directory.root / "world"
    rows = build(seed, world, budget.sizes())["rows"]
    counts = ", ".join(f"{count:,} rows of {kind}" for kind, count in rows.items())
    console.log(f"a bilingual world from seed {seed}: {counts}")
    return make_recipe(world, name, output, seed, budget)
