"""The recipes of paired runs: one stage of a run, unchanged or patched, shortened alike."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

from fledge.errors import FledgeError
from fledge.prepare import Preparation, PreparedStage
from fledge.recipe import Recipe, Stage, load_recipe, recipe_from_dict
from fledge.recipe.earlier_stages import judges_of, name_judges
from fledge.recipe.initial_weights import initial_weights
from fledge.run.console import silent
from fledge.run.directory import RunDirectory
from fledge.sweep.recipes import chosen_stage
from fledge.sweep.space import as_overrides

Patch = Mapping[str, Any]
Start = Literal["stage", "checkpoint"]
"""Where paired runs begin: with the weights that the stage began with, or with those of its newest checkpoint."""

UNPROVABLE = {
    "tokenizer": "under another tokenizer losses cannot be compared",
    "seed": "the seed is what the pairs differ in",
    "name": "it changes no training",
    "output": "it changes no training",
    "built_dataset": "the runs of a pair read the data of this run",
}
"""Sections that a proof cannot change, and why."""

FEWEST_STEPS = 20  # of a short run; of the whole stage, if that is shorter


@dataclass(frozen=True)
class Length:
    """The length of short runs: `share` of the tokens of the stage, 1 for whole stages."""

    share: float

    def steps(self, whole: int) -> int:
        """The updates of a run whose whole stage has so many."""
        return whole if self.share >= 1 else min(whole, max(FEWEST_STEPS, round(self.share * whole)))


@dataclass(frozen=True, kw_only=True)
class ProofRecipes:
    """Makes the recipes of paired runs from a stage of a run."""

    run: RunDirectory
    stage: str

    @classmethod
    def of(cls, run: Path, stage: str) -> "ProofRecipes":
        """The recipes of a stage. Raises FledgeError if this is no run, or has no such stage."""
        directory = RunDirectory(run)
        if not directory.recipe.exists():
            raise FledgeError("this is no run of fledge", where=str(run), hint="only runs of fledge can be tried again")
        chosen_stage(load_recipe([str(directory.recipe)]), stage)
        return cls(run=directory, stage=stage)

    @cached_property
    def given(self) -> Recipe:
        """The recipe of the run."""
        return load_recipe([str(self.run.recipe)])

    def normalised(self, patch: Patch) -> dict[str, Any]:
        """A patch with whole keys: keys of the stage may leave `stages.NAME.` out. Raises FledgeError for keys of another stage
        and for those that no pair of runs can prove."""
        sections, whole = set(Recipe.model_fields), dict[str, Any]()
        for key, value in patch.items():
            first, _, rest = key.partition(".")
            if first not in sections:
                key, first = f"stages.{self.stage}.{key}", "stages"
            elif first == "stages" and rest.partition(".")[0] != self.stage:
                raise FledgeError(f"'{key}' is no key of the stage {self.stage}", where="patch",
                                  hint="prove it at its own stage")  # fmt: skip
            if first in UNPROVABLE:
                raise FledgeError(f"'{key}' cannot be proved by paired runs: {UNPROVABLE[first]}", where="patch")
            whole[key] = value
        return whole

    def start_model(self, start: Start = "stage") -> Path | None:
        """The model directory that the runs begin with; None: new weights. Raises FledgeError if it is gone."""
        own = self.run.stage(self.stage)
        if start == "checkpoint":
            return own.newest_model()
        weights = initial_weights(self.given, self.stage)
        found = weights.directory
        if weights.previous_stage is not None:
            before = self.run.stage(weights.previous_stage)
            result = before.result()
            found = before.root / result["model"] if result else before.newest_model()
        if weights.are_fresh or (found is not None and found.exists()):
            return found
        first = own.checkpoints / "step-00000000" / "model"
        if first.exists():
            return first
        raise FledgeError("the model that this stage began with is not there any more", where=str(found or own.root),
                          hint="put it back; a proof begins where the stage began")  # fmt: skip

    def whole(self, patch: Patch, start: Start = "stage") -> Recipe:
        """The recipe of the stage alone, patched, at its full length. Raises FledgeError if it takes no such patch."""
        recipe = load_recipe([str(self.run.recipe)], as_overrides(self.normalised(patch)))
        tree = recipe.model_dump(mode="json")
        model = self.start_model(start)
        stage = tree["stages"][self.stage]
        if model is not None and (start == "checkpoint" or initial_weights(recipe, self.stage).directory is None):
            stage["init_from"] = str(model)
        name_judges(stage, {one: self.run.stage(one).root for one in judges_of(recipe, self.stage)})
        tree["stages"] = {self.stage: stage}
        return recipe_from_dict({**tree, "generation_samples": {}, "alerts": {}, "logging": {}})

    def prepared(self, recipe: Recipe, built: Path) -> PreparedStage:
        """The plan of a whole recipe with the data of a dataset."""
        preparation = Preparation(recipe.model_copy(update={"built_dataset": str(built)}), silent)
        return preparation.prepare(self.stage, preparation.tokenizer())

    def short(self, recipe: Recipe, prepared: PreparedStage, length: Length, seed: int) -> Recipe:
        """The recipe of one run: shortened, with a seed. Warm-up, minimum rate and intervals keep their proportions."""
        tree = recipe.model_dump(mode="json")
        tree["stages"] = {self.stage: _shortened(prepared, length.steps(prepared.plan.steps))}
        tree["stages"][self.stage]["init_from"] = recipe.stages[self.stage].init_from
        return recipe_from_dict({**tree, "seed": seed})

    def seed(self, pair: int) -> int:
        """The seed of a pair of runs, from 0: the first has that of the run."""
        return (self.given.seed + pair) % 2**32


def _shortened(prepared: PreparedStage, steps: int) -> dict[str, Any]:
    """A stage with numbers in place of `auto`, for so many updates."""
    plan, share = prepared.plan, steps / prepared.plan.steps
    stage: dict[str, Any] = prepared.stage.model_dump(mode="json")
    stage["duration"] = f"{steps} steps"
    if share < 1:
        stage["schedule"]["warmup"] = plan.warmup_share
        if stage["batch"]["warmup"]:
            stage["batch"]["warmup"]["ramp_steps"] = min(0.99, plan.batch_warmup_steps / plan.steps)
    evaluation = stage["evaluation"]
    every = evaluation["every_steps"]
    judges_by_answers = stage["metric_for_best_model"] != "loss"
    if not (looks_before_end(prepared.stage) or judges_by_answers):
        every = steps
    elif every is not None:
        every = max(1, round(every * share))
    evaluation |= {"every_steps": every, "sets": {}}
    if not (judges_by_answers or prepared.stage.answers_per_example > 1):
        evaluation["generated_answers"] = None
    evaluation["verdict"]["roll_back"] = False  # the model that was measured is the result, however bad
    stage["prompt_tests"] = None
    stage["checkpoint"] = {"every_steps": None, "keep_last": 1}
    return stage


def looks_before_end(stage: Stage) -> bool:
    """Whether evaluations before the end decide which model is the result."""
    stopping = stage.early_stopping
    return stage.select_checkpoint != "last" or bool(stopping.patience or stopping.target_loss)
