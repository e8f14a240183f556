"""How good the model of a run is on clean data, by code that no condition has touched: the effect of a fault.

The loss is that of the healthy stage's own objective on held-out rows as a healthy run builds them, with the start model as
the reference where there is one; of stages on preferences, the loss of the tokens of the preferred answers is added to it,
because pairs can be told apart by a model that has forgotten how to write. Of a stage on rewards it is minus the mean reward of
greedy answers, and for the same reason the loss of the tokens of the rows' own answers is added. The rows are held out from the
runs altogether: what they validate on may be a part of the fault.
"""

from dataclasses import dataclass
from math import log
from pathlib import Path

from fledge.data import PackedDataset
from fledge.doctor_bench.setup import RunSetup
from fledge.evaluate.generated import GeneratedAnswers
from fledge.evaluate.rewards import stage_rewards
from fledge.model.loading import load_model
from fledge.model.protocol import LanguageModel
from fledge.objective.build import ObjectiveContext, build_objective
from fledge.prepare import Preparation
from fledge.recipe import Recipe, Stage, recipe_from_dict
from fledge.recipe.schema import GeneratedAnswersConfig
from fledge.recipe.sections.policy import PolicySettings
from fledge.recipe.sections.preference import ReferenceSettings
from fledge.run.console import silent
from fledge.tokenizer import Tokenizer
from fledge.training.validation import ValidationSet, validate

ROWS, MICRO_BATCH = 64, 8
ANSWERS = 40


@dataclass(frozen=True, kw_only=True)
class Yardstick:
    """The clean held-out data of a shape in a group, and what is measured on it."""

    recipe: Recipe
    name: str
    tokenizer: Tokenizer
    data: PackedDataset
    start: Path | None

    @classmethod
    def of(cls, healthy: RunSetup) -> "Yardstick":
        """The yardstick of a healthy run. Raises FledgeError if its data cannot be built."""
        validation = Path(healthy.stage["data"]["validation"])
        healthy.stage["data"]["validation"] = str(validation.with_name(validation.name.replace(".validation.", ".test.")))
        recipe, name = recipe_from_dict(healthy.recipe), healthy.stage_name
        preparation = Preparation(recipe, silent)
        tokenizer = preparation.tokenizer()
        data = preparation.stage_data(name, tokenizer).validation
        assert data is not None
        path = recipe.model.path
        return cls(recipe=recipe, name=name, tokenizer=tokenizer, data=data, start=Path(path) if path else None)

    @property
    def stage(self) -> Stage:
        """The healthy stage."""
        return self.recipe.stages[self.name]

    def loss(self, folder: Path) -> float:
        """The loss of the model in a directory. Raises FledgeError if it cannot be loaded."""
        model = load_model(folder, self.recipe.model.implementation, purpose="any", finite=False)
        context = ObjectiveContext(stage=self.stage, data=self.data, split="validation", reference=self._reference)
        metrics = validate(model, ValidationSet(self.data, build_objective(context), ROWS), MICRO_BATCH)
        loss = float(metrics["loss"])
        if isinstance(self.stage, PolicySettings):
            return loss - self._reward(model)
        return loss + log(metrics["perplexity"]) if isinstance(self.stage, ReferenceSettings) else loss

    def _reference(self, data: PackedDataset, split: str) -> LanguageModel:
        assert self.start is not None
        return load_model(self.start, self.recipe.model.implementation).eval().requires_grad_(False)

    def _reward(self, model: LanguageModel) -> float:
        """The mean reward of greedy answers to held-out prompts."""
        assert isinstance(self.stage, PolicySettings)
        rewards = stage_rewards(self.recipe, self.name, self.tokenizer, None)
        config = GeneratedAnswersConfig(rows=ANSWERS, max_new_tokens=self.stage.rollout.max_new_tokens)
        return float(GeneratedAnswers.of(self.data, self.tokenizer, config, "reward", rewards).score(model)["reward"])
