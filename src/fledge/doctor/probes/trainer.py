"""The trainer's own parts for a stage: model, objective, optimizers, loader and update, built as the stage runner builds them,
on the CPU in float32.

All of it is looked up in the modules that training itself uses, when it is needed: what the trainer would do now, in this
process, is what is probed. Nothing is written into the run.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from fledge import stage as stage_module
from fledge.autotune.compute_config import ComputeConfig
from fledge.data import PackedDataset
from fledge.data.storage import Examples
from fledge.doctor.probes.material import RunMaterial
from fledge.errors import FledgeError
from fledge.model.adapters import whole_modules
from fledge.model.protocol import LanguageModel
from fledge.objective import Objective
from fledge.plan.horizon import TrainingHorizon
from fledge.recipe.schema import Stage
from fledge.recipe.sections.adapter import PREFIX
from fledge.run.console import silent
from fledge.training import context as context_module
from fledge.training import start_weights, trainable
from fledge.training import trainer as trainer_module
from fledge.training.batch_source import StepBatch

LEAST_ROWS, ROWS = 2, 8  # packed rows of an update
OPERATIONS = 5e11  # of an update and a thread, at most: some ten seconds
PAIRS = 16  # examples of a stage that compares them: so many are looked at
MAGNITUDE = "lora_magnitude_vector"
Weights = dict[str, Tensor]


class TrainerParts:
    """The parts of one stage. The model has the start weights when the objective is built, as in a run that begins."""

    def __init__(self, run: RunMaterial, folder: str) -> None:
        """`folder`: for tables of log-probabilities, which a stage would write into its own."""
        self.run, self.stage, self.folder = run, _on_this_device(run.prepared.stage), Path(folder)
        self.compute: ComputeConfig = run.compute
        self._has_start_weights = True

    # -- data -------------------------------------------------------------------------------------------------------

    @cached_property
    def train(self) -> PackedDataset:
        """The training data; of a stage whose examples are compared, the examples of the first updates."""
        return self._bounded(self.run.train)

    @cached_property
    def validation(self) -> PackedDataset:
        """The validation data, bounded in the same way; the training data where there is none."""
        data = self.run.validation
        return self.train if data is None else self._bounded(data)

    @property
    def _is_compared(self) -> bool:
        """Whether the stage compares examples with a reference or with one another, so that probes read all that they hold."""
        stage = self.stage
        return stage.precomputes_reference or self.run.train.examples.sequences_per_example > 1

    @cached_property
    def train_numbers(self) -> list[int]:
        """The numbers in the training data of the examples of `train`, in their order."""
        data = self.run.train
        return list(range(data.examples.count)) if self.train is data else first_numbers(data, PAIRS)

    def _bounded(self, data: PackedDataset) -> PackedDataset:
        is_small = not self._is_compared or data.examples.count <= PAIRS
        return data if is_small else with_examples(data, first_numbers(data, PAIRS))

    def horizon(self, rows: int, updates: int) -> TrainingHorizon:
        """A short horizon: some updates of so many packed rows each."""
        return TrainingHorizon(
            steps=updates,
            rows=rows * updates,
            micro_batch_size=rows,
            gradient_accumulation_steps=1,
            initial_accumulation_steps=1,
        )

    def step_batch(self, rows: int, micro_batch_rows: int, update: int = 0) -> StepBatch:
        """The batch of an update from the trainer's own source and loader: `rows` packed rows, so many of them in a
        micro-batch."""
        horizon = self.horizon(rows, update + 1)  # nothing is prefetched behind the last update
        source = context_module.DatasetSource(self.train, horizon, micro_batch_rows, self.objective.normalizer)
        loader = trainer_module.BatchLoader(source, horizon.steps, torch.device("cpu"))
        try:
            return loader.batch(update)[0]
        finally:
            loader.close()

    @cached_property
    def rows(self) -> int:
        """Packed rows of an update of the probes. Raises FledgeError as `check_size`."""
        return max(1, min(ROWS, self.check_size(), len(self.train)))

    def check_size(self) -> int:
        """The packed rows of an update that takes seconds. Raises FledgeError for a model for which even two would take
        long."""
        cost = self.run.preparation.model_cost(self.run.name, self.run.tokenizer)
        of_row = 6.0 * cost.parameters().total * self.train.packed_length  # operations, forward and backward
        affordable = int(OPERATIONS * torch.get_num_threads() / of_row)
        if affordable < LEAST_ROWS:
            raise FledgeError("the model is so large that updates on this processor would take too long")
        return affordable

    # -- model and objective ------------------------------------------------------------------------------------------

    @cached_property
    def model(self) -> LanguageModel:
        """The model that the probes train, with the start weights at first. Where these are gone and no reference needs them,
        those of the checkpoint stand in their place."""
        try:
            return self.run.load_start()
        except FledgeError:
            if self.run.checkpoint is None or self.stage.precomputes_reference or self.stage.keeps_reference_model:
                raise
            return self.run.load_model()

    @cached_property
    def start_weights(self) -> Weights:
        """Copies of the weights that the stage starts with."""
        return copied(self.model)

    @cached_property
    def objective(self) -> Objective:
        """The objective of the training data, with its reference. It is built while the model has the start weights."""
        return self._objective(self.train, "training")

    @cached_property
    def validation_objective(self) -> Objective:
        """The objective of the validation data."""
        return self._objective(self.validation, "validation")

    @cached_property
    def reference(self) -> stage_module.ReferenceProvider:
        """What gives the reference of the objective. The model must have the start weights."""
        with self.weights("start"):
            model = self.model
        return stage_module.ReferenceProvider(
            stage=self.stage,
            model=model,
            start=self.run.start,
            fingerprint=start_weights.weights_fingerprint(model),
            resumed=False,
            compute=self.compute,
            folder=self.folder,
            log=silent,
        )

    def _objective(self, data: PackedDataset, split: str) -> Objective:
        assert self._has_start_weights, "an objective has to be built before the weights of a checkpoint are loaded"
        with self.weights("start"):
            return stage_module.build_objective(
                stage_module.ObjectiveContext(
                    stage=self.stage, data=data, split=split, kernel=None, token_bytes=None, reference=self.reference
                )
            )

    @contextmanager
    def weights(self, of: str = "now") -> Iterator[LanguageModel]:
        """A context in which the model may be trained, with the weights of the start, or of the checkpoint ("now"). It has the
        start weights again at the end, is in evaluation mode and has no gradients."""
        start = self.start_weights
        if of == "now" and self._has_start_weights:
            self.objective  # noqa: B018  # its reference is made of the start weights
        try:
            if of == "now" and self.run.checkpoint is not None:
                self._has_start_weights = False
                trainable.load_saved_weights(self.model, self.run.checkpoint / "model")
            yield self.model
        finally:
            put(self.model, start)
            self._has_start_weights = True
            self.model.zero_grad(set_to_none=True)
            self.model.eval()

    def to_be_trained(self) -> set[str]:
        """The names of the parameters that the stage is to train, by its recipe: all, or those of its adapter and of the
        modules that it trains whole."""
        model = self.model
        names = [name for name, _ in model.named_parameters()]
        if model.adapter is None:
            return set(names)
        config = model.adapter.config
        whole = () if config.peft_type == PREFIX else tuple(f"{name}." for name in whole_modules(model, config))
        return {
            name
            for name in names
            if model.parameter_role(name) == "adapter" or name.endswith(MAGNITUDE) or (whole and name.startswith(whole))
        }


def _on_this_device(stage: Stage) -> Stage:
    """The stage without a device and a precision of its own for the reference, which would be a GPU's."""
    if stage.reference_placement == (None, None):
        return stage
    return stage.model_copy(update={"reference_device": None, "reference_precision": None})


def copied(model: LanguageModel) -> Weights:
    """Copies of all tensors of a model, by name."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


@torch.no_grad()
def put(model: LanguageModel, weights: Weights) -> None:
    """Write tensors into a model."""
    for name, tensor in model.state_dict().items():
        tensor.copy_(weights[name])


def first_numbers(data: PackedDataset, count: int) -> list[int]:
    """The numbers of the first examples in the order of training."""
    numbers: dict[int, None] = {}
    for row in range(len(data)):
        numbers |= dict.fromkeys(data.examples_at(row, 1))
        if len(numbers) >= count:
            break
    return list(numbers)[:count]


def with_examples(data: PackedDataset, numbers: list[int]) -> PackedDataset:
    """A dataset of some of the examples, packed by the same rules."""
    return PackedDataset(
        chosen_examples(data.examples, numbers),
        data.packed_length,
        data.pad,
        data.seed,
        data.split_documents,
        packs=data.packs,
        sources=data.sources,
        halves_rows=data.halves_rows,
        shares_beginnings=data.shares_beginnings,
    )


def chosen_examples(examples: Examples, numbers: list[int]) -> Examples:
    """Some of the examples, in this order."""
    chosen = np.asarray(numbers, np.int64)
    sequences = [examples.sequence(int(number)) for number in examples.sequences_of(chosen)]
    lengths = [len(tokens) for tokens, _ in sequences]

    def of_examples(values: np.ndarray | None) -> np.ndarray | None:
        return None if values is None else np.asarray(values)[chosen]

    return replace(
        examples,
        tokens=np.concatenate([np.asarray(tokens) for tokens, _ in sequences]),
        weights=np.concatenate([np.asarray(weights, np.float32) for _, weights in sequences]),
        offsets=np.concatenate(([0], np.cumsum(lengths))).astype(np.int64),
        digest=None,
        counted_target_tokens=None,
        source=of_examples(examples.source),
        shard=of_examples(examples.shard),
        row=of_examples(examples.row),
        labels=of_examples(examples.labels),
        margins=of_examples(examples.margins),
    )
