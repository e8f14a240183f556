"""What probes are made on: a stage of a run, or a model directory with data files. Nothing of a run is changed."""

from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from fledge import stage as stage_module
from fledge.autotune.compute_config import ComputeConfig
from fledge.checkpoint import find
from fledge.checkpoint.state import TrainState
from fledge.data import FORMATS, PackedDataset, StageDataset, is_complete, load_built_dataset
from fledge.data.formats import ExampleFormat
from fledge.errors import FledgeError
from fledge.generation.loading import tokenizer_directory
from fledge.inspect.target import recipe_of
from fledge.model.loading import load_model
from fledge.model.protocol import LanguageModel
from fledge.prepare import Preparation, PreparedStage
from fledge.recipe import Recipe, load_recipe
from fledge.recipe.schema import Stage
from fledge.run import RunDirectory, check_layout
from fledge.run.console import silent
from fledge.tokenizer import Tokenizer, load_tokenizer

LAST, BEST, START = "last", "best", "start"
NOT_BUILT = "the data of this stage is not built"
NO_FILES = "no data files were named"
NO_START = "the model that this one started from was not named"


class RunMaterial:
    """A stage of a run, opened as the pipeline opens it."""

    def __init__(self, run: Path, stage: str, checkpoint: str = LAST) -> None:
        """`checkpoint`: last, best, start, or a number of updates. A stage without a checkpoint is at its start. Raises
        FledgeError if there is no such run, stage or checkpoint."""
        check_layout(run)
        self.run, self.name = RunDirectory(run), stage
        self.recipe: Recipe = load_recipe([str(self.run.recipe)])
        if stage not in self.recipe.stages:
            raise FledgeError(f"the run has no stage '{stage}'", where=str(run), hint=f"it has {', '.join(self.recipe.stages)}")
        self.stage: Stage = self.recipe.stages[stage]
        self.kind: str = self.stage.kind
        self.directory = self.run.stage(stage)
        self.checkpoint = self._find(checkpoint)

    def _find(self, wanted: str) -> Path | None:
        """The folder of a checkpoint; None: the start."""
        if wanted == START:
            return None
        if wanted == LAST:
            found = find.latest_checkpoint(self.directory.checkpoints)
            if found is None and self.directory.checkpoint_paths():
                raise FledgeError("no checkpoint of this stage is whole", where=str(self.directory.checkpoints))
            return None if found is None else found[0]
        folder = self.directory.checkpoints / (find.step_name(int(wanted)) if wanted.isdigit() else wanted)
        if not (folder / "model").is_dir():
            there = ", ".join(path.name for path in self.directory.checkpoint_paths()) or "none"
            raise FledgeError(f"there is no checkpoint '{wanted}'", where=str(self.directory.root), hint=f"there are: {there}")
        return folder.resolve()

    # -- material ---------------------------------------------------------------------------------------------------

    @cached_property
    def state(self) -> TrainState:
        """The state of training at the checkpoint; a new one at the start."""
        return TrainState() if self.checkpoint is None else find.read_state(self.checkpoint)

    @property
    def step(self) -> int:
        """Updates of the checkpoint."""
        return self.state.step

    @property
    def is_start(self) -> bool:
        """Whether no update was done."""
        return self.step == 0

    @cached_property
    def preparation(self) -> Preparation:
        """The preparation of the run, as it is when a run is resumed; it is given no directory to build data in."""
        return Preparation(self.recipe, silent, resuming=True, run=self.run)

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the run."""
        tokenizer = self.preparation.load_tokenizer(self.run.tokenizer)
        if tokenizer is None:
            raise FledgeError("the run has no tokenizer yet", where=str(self.run.root))
        return tokenizer

    def data_of(self, name: str) -> StageDataset:
        """The built data of a stage, which is not built again whatever became of its files."""
        built = self.recipe.built_dataset
        folder = self.run.stage(name).data if built is None else Path(built) / name
        if not is_complete(folder):
            raise FledgeError(NOT_BUILT, where=str(folder))
        return load_built_dataset(folder, self.recipe.stages[name], self.tokenizer, self.preparation.seed(name))

    @cached_property
    def prepared(self) -> PreparedStage:
        """The stage as the pipeline prepares it: its data, packed as it trains on them, and its plan."""
        return self.preparation.prepare(self.name, self.tokenizer, self.data_of(self.name))

    @property
    def train(self) -> PackedDataset:
        """The training data."""
        return self.prepared.data.train

    @property
    def validation(self) -> PackedDataset | None:
        """The validation data; None: there is none."""
        return self.prepared.data.validation

    @cached_property
    def compute(self) -> ComputeConfig:
        """How the stage computes, moved to the CPU in float32, without compiled code."""
        file = self.directory.root / "compute.json"
        if file.exists():
            return replace(ComputeConfig.read(file).on("cpu", "fp32"), compile=False, eager_attention=None)
        wanted = self.recipe.runtime.attention
        attention = "sdpa" if wanted == "auto" else wanted
        named = ComputeConfig(device="cpu", precision="fp32", attention=attention, compile=False, threads=1)
        return named.on("cpu", "fp32")

    # -- models -----------------------------------------------------------------------------------------------------

    @cached_property
    def models(self) -> stage_module.StageModels:
        """The models of the stage."""
        return stage_module.StageModels(
            recipe=self.recipe, stage=self.stage, tokenizer=self.tokenizer, start=self._start_folder(), log=silent
        )

    @cached_property
    def start(self) -> stage_module.StartWeights:
        """The weights that the stage starts from."""
        return stage_module.StartWeights(
            directory=self.directory,
            source=self.models.start,
            load_initial=self.models.initial,
            load=self.models.saved,
            log=silent,
        )

    def _start_folder(self) -> Path | None:
        """The model directory that the stage starts from; None: new weights."""
        weights = self.preparation.start_models.of_stage(self.name)
        return weights.resolve(self._model_of)

    def _model_of(self, earlier: str) -> Path:
        result = self.run.stage(earlier).result()
        if result is None:
            raise FledgeError(f"the stage '{earlier}' before this one is not finished", where=str(self.run.root))
        return self.run.stage(earlier).root / result["model"]

    @property
    def fresh_start(self) -> bool:
        """Whether the stage starts from new weights."""
        return self.preparation.start_models.of_stage(self.name).are_fresh

    @property
    def model_folder(self) -> Path | None:
        """The files of the checkpoint, or of the start model."""
        return self.models.start if self.checkpoint is None else self.checkpoint / "model"

    def load_model(self) -> LanguageModel:
        """The model of the checkpoint, with its trained weights."""
        if self.checkpoint is None:
            return self.load_start()
        return self.compute.place(self.models.saved(self.checkpoint / "model"))

    def load_averaged(self) -> LanguageModel:
        """The model that evaluations use at the checkpoint: with averaged weights, where the stage averages weights."""
        averaged = None if self.checkpoint is None else self.checkpoint / "averaged"
        if averaged is None or not averaged.is_dir():
            return self.load_model()
        return self.compute.place(self.models.saved(averaged))

    def load_start(self) -> LanguageModel:
        """The model that the stage starts from, with the weights that it began with."""
        has_begun = bool(self.directory.checkpoint_paths()) and (self.directory.root / "start.json").exists()
        return self.compute.place(self.start.load_recorded() if has_begun else self.start.load_initial())


class DirectoryMaterial:
    """A model directory of any trainer, with the files of rows that it was trained on."""

    step: int | None = None
    is_start = False
    fresh_start = False

    def __init__(
        self,
        model: Path,
        *,
        files: Sequence[Path] = (),
        tokenizer: Path | None = None,
        start: Path | None = None,
        kind: str | None = None,
        max_seq_len: int | None = None,
    ) -> None:
        """`files`: training data in any form that a recipe reads. `tokenizer`: the directory of the tokenizer; None: that of
        the model. `start`: the directory of the model that training started from. `kind`: of stage; None: by the rows.
        `max_seq_len`: tokens of a row; None: the positions of the model, at most 1,024."""
        self.model_folder: Path | None = model
        self.files, self.start_folder, self.max_seq_len = tuple(files), start, max_seq_len
        self._tokenizer_folder = tokenizer
        self._recipe = recipe_of([str(file) for file in files], (), kind) if files else None
        self.kind: str = next(iter(self._recipe.stages)) if self._recipe else kind or next(iter(FORMATS))

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the model."""
        assert self.model_folder is not None
        return load_tokenizer(self._tokenizer_folder or tokenizer_directory(self.model_folder), needs_template=False)

    @cached_property
    def data(self) -> StageDataset:
        """The files as packed data, built in a temporary folder."""
        if self._recipe is None:
            raise FledgeError(NO_FILES)
        length = self.max_seq_len or min(self._load(self.model_folder).max_positions, LONGEST_ROW)
        recipe = recipe_of(
            [str(file) for file in self.files], [(f"stages.{self.kind}.data.max_seq_len", str(length))], self.kind
        )
        return Preparation(recipe, silent).stage_data(self.kind, self.tokenizer)

    @property
    def train(self) -> PackedDataset:
        """The rows of the files."""
        return self.data.train

    @property
    def validation(self) -> PackedDataset | None:
        """None: the files are training data."""
        return None

    def _load(self, folder: Path | None) -> LanguageModel:
        if folder is None:
            raise FledgeError(NO_START)
        return load_model(folder, purpose="any", finite=False)

    def load_model(self) -> LanguageModel:
        """The model in the directory."""
        return self._load(self.model_folder)

    def load_start(self) -> LanguageModel:
        """The model that training started from."""
        return self._load(self.start_folder)


LONGEST_ROW = 1024  # tokens of a row of foreign data, where nothing says how long rows were


Material = RunMaterial | DirectoryMaterial
"""A checkpoint with its data. Everything is loaded when it is asked for; a property raises FledgeError with the reason where
something is not there. `kind`: of stage. `step`: updates of the checkpoint; None: not known. `is_start`: whether the checkpoint
is the start model. `model_folder`: the files of the checkpoint; None: it has new weights. `fresh_start`: whether the start
model has new weights. Models are on the CPU in float32."""


def format_of(material: Material) -> ExampleFormat:
    """The format of the data of a stage."""
    return FORMATS[material.kind]
