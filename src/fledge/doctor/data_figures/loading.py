"""The built data of a stage of a run, and the batches in which its training reads them."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from fledge.data import Batch, PackedDataset, StageDataset, load_built_dataset
from fledge.data.build.directory import PLAN_FILE
from fledge.data.build.plan import BuildPlan
from fledge.errors import FledgeError
from fledge.plan.horizon import TrainingHorizon
from fledge.plan.prompt_sharing import has_form
from fledge.recipe import Recipe
from fledge.run import StageDirectory
from fledge.run.file_shapes import RecordedPlan
from fledge.run.text_files import read_json
from fledge.tokenizer import Tokenizer, load_tokenizer
from fledge.training import batch_loader, batch_source

FEWEST_ROWS = 256  # packed rows that are read, where an epoch has so many: their order is looked at
MOST_POSITIONS = 2_000_000  # of the batches that are read
CPU = torch.device("cpu")


@dataclass(frozen=True)
class UpdateSize:
    """Packed rows of an update, and of each of its micro-batches."""

    rows: int = 16
    micro_batch: int = 16

    @classmethod
    def of(cls, stage: StageDirectory) -> "UpdateSize":
        """As the plan of a stage says. Where it has no plan yet, any: the order of the rows does not depend on it."""
        if not stage.plan.exists():
            return cls()
        plan = read_json(stage.plan, RecordedPlan)
        return cls(plan["effective_batch_rows"], plan["micro_batch_size"])


def data_folder(stage: StageDirectory, recipe: Recipe | None) -> Path:
    """The folder of the built data of a stage of a run."""
    is_elsewhere = recipe is not None and recipe.built_dataset is not None and not (stage.data / PLAN_FILE).exists()
    return Path(str(recipe.built_dataset)) / stage.root.name if recipe is not None and is_elsewhere else stage.data


def load_stage_data(stage: StageDirectory, recipe: Recipe | None) -> tuple[StageDataset, Tokenizer]:
    """The data of a stage, packed as it trains on them, and the tokenizer that they were built with. Raises FledgeError where
    the data are not there, not complete or damaged."""
    folder = data_folder(stage, recipe)
    plan = BuildPlan.read(folder / PLAN_FILE)
    tokenizer = load_tokenizer(folder / "tokenizer", needs_template=False)
    data = load_built_dataset(folder, plan, tokenizer, plan.seed)
    if plan.format.sequences_per_example > 1:
        sharing = data.sharing_prompts()
        data = sharing if has_form(sharing, stage.data_report) else data
    return data, tokenizer


def read_batches(train: PackedDataset, size: UpdateSize, examples: int) -> list[Batch]:
    """The micro-batches of the first updates, from the trainer's own loader: of the first epoch, until `examples` examples and
    256 packed rows are read, or two million positions.

    Batches without any target, which the loader leaves out or refuses, are taken from the data directly.
    """
    rows = train.num_packed_rows(0)
    micro = max(1, min(size.micro_batch, rows))
    accumulation = max(1, size.rows // micro)
    horizon = TrainingHorizon(
        steps=-(-rows // (micro * accumulation)),
        rows=rows,
        micro_batch_size=micro,
        gradient_accumulation_steps=accumulation,
        initial_accumulation_steps=accumulation,
    )
    source = batch_source.DatasetSource(train, horizon, micro, lambda batch: batch.weight)
    batches, found, read, positions = list[Batch](), 0, 0, 0
    for batch in _loaded(source, train, horizon):
        batches.append(batch)
        found += len(batch.examples)
        read += len(batch.input_ids)
        positions += batch.num_tokens
        if positions >= MOST_POSITIONS or (found >= examples and read >= FEWEST_ROWS):
            break
    return batches


def _loaded(source: batch_source.DatasetSource, train: PackedDataset, horizon: TrainingHorizon) -> Iterator[Batch]:
    loader = batch_loader.BatchLoader(source, horizon.steps, CPU)
    try:
        for step in range(horizon.steps):
            try:
                yield from loader.batch(step)[0].batches
            except FledgeError:  # nothing to learn from
                first, stop = source.row_range(step)
                yield train.batch(first, stop - first)
    finally:
        loader.close()
