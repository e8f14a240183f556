"""The losses of the same validation documents under the models of several trials: what makes trials comparable in pairs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from fledge.data import PackedDataset, load_built_dataset
from fledge.evaluate.statistics import PairedTest, paired_test
from fledge.objective import CausalLMObjective
from fledge.prepare import Preparation
from fledge.recipe import Recipe
from fledge.run.console import silent
from fledge.run.text_files import read_json, write_json

Losses = dict[str, float]
"""The mean loss of each validation document, in nats a token, by its number in the data."""

ROWS = 8  # packed rows at a time: a validation document's loss does not depend on it


class ValidationDocuments:
    """The validation documents of a stage, read once, and their losses under a model directory."""

    def __init__(self, recipe: Recipe, stage: str) -> None:
        """`recipe`: of a run whose data is built. Raises FledgeError if the data cannot be read."""
        self.recipe, self.stage = recipe, recipe.stages[stage]
        preparation = Preparation(recipe, silent)
        assert recipe.built_dataset is not None
        folder = Path(recipe.built_dataset) / stage
        data = load_built_dataset(folder, self.stage, preparation.tokenizer(), preparation.seed(stage))
        self.data: PackedDataset | None = data.validation

    @property
    def are_comparable(self) -> bool:
        """Whether there are documents, and the loss of the stage is the mean loss of their tokens."""
        from fledge.objective.build import ObjectiveContext, build_objective

        if self.data is None or self.stage.keeps_reference_model or self.stage.trains_reward_model:
            return False
        if self.stage.answers_per_example > 1:
            return False
        context = ObjectiveContext(stage=self.stage, data=self.data, split="validation")
        return isinstance(build_objective(context), CausalLMObjective)

    def losses(self, model: Path) -> Losses:
        """The losses under a model directory, as many documents as an evaluation of the stage reads."""
        import torch

        from fledge.model.eager import force_eager
        from fledge.model.loading import load_model
        from fledge.model.protocol import eval_mode
        from fledge.objective.build import ObjectiveContext, build_objective
        from fledge.training.bad_rows import example_losses
        from fledge.training.validation import row_batches

        assert self.data is not None
        loaded = load_model(model, self.recipe.model.implementation, quantization=self.stage.quantization)
        objective = build_objective(ObjectiveContext(stage=self.stage, data=self.data, split="validation"))
        pieces: dict[str, list[float]] = {}  # of documents that are longer than a row
        with torch.no_grad(), force_eager(), eval_mode(loaded):
            for batch in row_batches(self.data, self.stage.evaluation.max_packed_rows, ROWS):
                for loss, number in example_losses(loaded, objective, batch):
                    pieces.setdefault(str(number), []).append(loss)
        return {number: sum(losses) / len(losses) for number, losses in pieces.items()}


def stored_losses(file: Path, measure: Any) -> Losses:
    """The losses in a file; where it is missing they are measured, and written."""
    if not file.exists():
        found: Mapping[str, float] = measure()
        write_json(file, {key: value if np.isfinite(value) else None for key, value in found.items()})
    return {key: np.inf if value is None else value for key, value in read_json(file, dict[str, float | None]).items()}


def compare_documents(first: Losses, second: Losses) -> PairedTest | None:
    """How much higher the second losses are than the first, over the documents of both; None without a common document that
    has finite losses under both."""
    common = [key for key in first if key in second and np.isfinite(first[key]) and np.isfinite(second[key])]
    if not common:
        return None
    return paired_test(np.array([first[key] for key in common]), np.array([second[key] for key in common]))
