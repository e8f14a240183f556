"""Whether the answers of an example share their prompt: the model computes it once then, and not with each answer."""

from pathlib import Path

from fledge.data import StageDataset
from fledge.data.build.load import split_fingerprints
from fledge.plan.warnings import PlanError
from fledge.recipe import Recipe
from fledge.run import StageDirectory
from fledge.run.file_shapes import StageData
from fledge.run.text_files import read_json

MIN_SAVING = 0.01  # of the positions; below, `auto` leaves pairs as they are
TWICE = "the prompt of a pair is computed with each answer"


def share_prompts(
    recipe: Recipe, name: str, data: StageDataset, directory: Path | None, run: StageDirectory | None = None
) -> tuple[StageDataset, list[str]]:
    """The data of a stage, packed with shared prompts where its `share_prompts` asks for it, and a sentence about that for the
    plan.

    `directory`: of the model of the stage; None: a new native decoder. `run`: of the stage, which keeps the form that it was
    begun with. Raises PlanError if the recipe asks for what the model cannot do."""
    stage = recipe.stages[name]
    if not stage.prompt_sharing:
        return data, []
    if run is not None and run.has_begun() and has_form(data, run.data_report):
        return data, [f"{TWICE}: the stage began so"]
    reason = None if directory is None else _why_not(recipe, directory)
    saving, is_wanted = data.train.shareable_share, stage.prompt_sharing is True
    if reason is not None and is_wanted:
        raise PlanError(
            f"the prompt of a pair cannot be computed once for both answers: {reason}",
            where=f"stages.{name}.share_prompts",
            hint="write auto or false",
            others=[],
        )
    if reason is not None:
        return data, [f"{TWICE}: {reason}; once would be {saving:.1%} fewer tokens"]
    if not is_wanted and saving < MIN_SAVING:
        return data, [f"{TWICE}: once would be only {saving:.1%} fewer tokens"]
    return data.sharing_prompts(), [f"the prompt of a pair is computed once: {saving:.1%} fewer tokens than with each answer"]


def has_form(data: StageDataset, data_report: Path) -> bool:
    """Whether the data_report.json of a stage's run is of this data, packed as here; False where there is no such file."""
    if not data_report.exists():
        return False
    return split_fingerprints(read_json(data_report, StageData)) == split_fingerprints(data.as_dict())


def _why_not(recipe: Recipe, directory: Path) -> str | None:
    """Why the model in a directory cannot compute a prompt once for several answers; None: it can."""
    from fledge.model.loading import describe_model  # it loads torch

    return describe_model(directory, recipe.model.implementation, purpose="any").no_branches_because
