"""What the probes of a checkpoint share: models, rows and their readings, each loaded once and when it is first needed."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from tempfile import TemporaryDirectory

import torch

from fledge.data import PackedDataset
from fledge.data.storage import Examples
from fledge.doctor.probes.material import Material, RunMaterial, format_of
from fledge.doctor.probes.rows import Reading, Row, RowMaker, read_rows
from fledge.doctor.probes.trainer import TrainerParts
from fledge.errors import FledgeError
from fledge.model.protocol import LanguageModel

MOST_ROWS = 64  # of a split, for losses
LEAST_TOKENS, OPERATIONS = 1024, 4e11  # of a sample of rows: fewer tokens for a larger model
IS_START = "this is the start model itself"
NO_HEAD = "a reward model has no head for tokens"
NEEDS_RUN = "this needs a run of fledge, with its recipe"


@dataclass(kw_only=True)
class ProbeContext:
    """The material of a checkpoint, and what was loaded of it."""

    material: Material
    _readings: dict[tuple[str, str], list[Reading]] = field(default_factory=dict)
    _trainer: TrainerParts | None = None
    _folder: TemporaryDirectory[str] | None = None

    @contextmanager
    def opened(self) -> Iterator["ProbeContext"]:
        """A context in which the probes run. Random numbers of the process and gradients are as before at its end, and the
        temporary folder is removed."""
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            try:
                yield self
            finally:
                self._trainer = None
                if self._folder is not None:
                    self._folder.cleanup()
                    self._folder = None

    @property
    def run(self) -> RunMaterial:
        """The material, where it is a stage of a run. Raises FledgeError otherwise."""
        if not isinstance(self.material, RunMaterial):
            raise FledgeError(NEEDS_RUN)
        return self.material

    # -- models -----------------------------------------------------------------------------------------------------

    @cached_property
    def any_model(self) -> LanguageModel:
        """The model of the checkpoint in evaluation mode: one that writes, or a reward model."""
        return self.material.load_model().eval()

    @property
    def model(self) -> LanguageModel:
        """The language model of the checkpoint. Raises FledgeError for a reward model."""
        return _with_head(self.any_model)

    @cached_property
    def start(self) -> LanguageModel:
        """The language model that training started from. Raises FledgeError where the checkpoint is the start."""
        if self.material.is_start:
            raise FledgeError(IS_START)
        return _with_head(self.material.load_start().eval())

    @property
    def trainer(self) -> TrainerParts:
        """The trainer's own parts for this stage, built as the stage builds them."""
        if self._trainer is None:
            self._folder = TemporaryDirectory(prefix="fledge-doctor-", ignore_cleanup_errors=True)
            self._trainer = TrainerParts(self.run, self._folder.name)
        return self._trainer

    # -- rows -------------------------------------------------------------------------------------------------------

    @cached_property
    def maker(self) -> RowMaker:
        """Makes the rows of the stage's data."""
        return self.maker_for(self.material.train, has_answers=format_of(self.material).is_dialogue)

    def maker_for(self, data: PackedDataset, *, has_answers: bool) -> RowMaker:
        """Makes rows of some data, as long as the model can read."""
        longest = min(self.any_model.max_positions, data.packed_length + 1)
        return RowMaker(self.material.tokenizer, longest, has_answers=has_answers)

    def sample(self, examples: Examples, most: int = MOST_ROWS) -> list[Row]:
        """Rows of examples, spread evenly: at most `most`, and fewer where the model is so large that they would take long."""
        return self.affordable(self.maker.rows(examples, most))

    def affordable(self, rows: Sequence[Row]) -> list[Row]:
        """The rows, or the first of them and some more, as many as the model reads within seconds."""
        parameters = sum(parameter.numel() for parameter in self.any_model.parameters())
        room = max(LEAST_TOKENS, int(OPERATIONS / (2 * max(1, parameters))))
        total = sum(len(row.tokens) for row in rows)
        if total <= room:
            return list(rows)
        step = -(-total // room)
        return list(rows[::step])

    @cached_property
    def train_rows(self) -> list[Row]:
        """Rows of the training data. Raises FledgeError if there are none."""
        rows = self.sample(self.material.train.examples)
        if not rows:
            raise FledgeError("the training data has no row")
        return rows

    @cached_property
    def validation_rows(self) -> list[Row]:
        """Rows of the validation data. Raises FledgeError if there are none."""
        data = self.material.validation
        rows = [] if data is None else self.sample(data.examples)
        if not rows:
            raise FledgeError("there is no validation data")
        return rows

    def readings(self, of: str, split: str = "train") -> list[Reading]:
        """The readings of the rows of a split by the model or the start model (`of`: model or start), made once."""
        key = (of, split)
        if key not in self._readings:
            rows = self.train_rows if split == "train" else self.validation_rows
            self._readings[key] = self.read(self.model if of == "model" else self.start, rows)
        return self._readings[key]

    def read(self, model: LanguageModel, rows: Sequence[Row]) -> list[Reading]:
        """The readings of rows by a model."""
        tokenizer = self.material.tokenizer
        return read_rows(model, rows, tokenizer.stop_ids, tokenizer.pad)


def _with_head(model: LanguageModel) -> LanguageModel:
    if model.score_weight is not None:
        raise FledgeError(NO_HEAD)
    return model
