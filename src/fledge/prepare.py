"""What a run needs before it begins, in this order: the rows of its stages, the tokenizer, the tokens of its stages, and the
plan of each stage with the sizes of its model."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import xxhash

from fledge.data import CollectedRows, StageDataset, collect, encode, is_complete, load_built_dataset
from fledge.data.build.executors import Executor, ProcessPoolExecutor
from fledge.errors import FledgeError
from fledge.model.cost import ModelCost
from fledge.plan import StagePlan, check_settings_have_effect, plan_stage, with_recorded_settings
from fledge.plan.horizon import TrainingHorizon
from fledge.recipe import Recipe, Stage, differences, load_recipe
from fledge.recipe.initial_weights import first_initial_weights, initial_weights
from fledge.recipe.schema import BatchConfig
from fledge.run.text_files import read_json
from fledge.tokenizer import Tokenizer, load_tokenizer, train_tokenizer


@dataclass(frozen=True)
class PreparedStage:
    """A stage with its data, before anything is written; `stage` has numbers where the recipe says `auto`."""

    name: str
    stage: Stage
    data: StageDataset
    plan: StagePlan
    extent: TrainingHorizon


class Preparation:
    """Prepares the stages of a recipe. `folder_of` says where a stage's data is built; None: in temporary folders.

    `begun` says that what is complete there is what the run has begun with."""

    def __init__(
        self,
        recipe: Recipe,
        say: Callable[[str], None],
        folder_of: Callable[[str], Path] | None = None,
        begun: bool = False,
        executor: Executor | None = None,
    ) -> None:
        self.recipe, self.say, self.folder_of, self.begun = recipe, say, folder_of, begun
        workers = recipe.runtime.data_workers
        self.executor = executor or (None if workers is None else ProcessPoolExecutor(workers))
        self._collected: dict[str, CollectedRows] = {}
        self.plans: dict[str, dict[str, Any]] = {}  # of stages, as another process has made them

    def folder(self, name: str) -> Path | None:
        """Where a stage's data is built."""
        return None if self.folder_of is None else self.folder_of(name)

    def seed(self, name: str) -> int:
        """One seed for each stage, from the run's."""
        return xxhash.xxh3_64_intdigest(f"{self.recipe.seed}/{name}".encode()) % 2**31

    # -- rows, tokenizer, tokens: the order in which data is prepared -------------------------------------------------

    def collect_rows(self, name: str) -> CollectedRows:
        """Read, clean, deduplicate and split the rows of a stage, once."""
        if name not in self._collected:
            stage, seed = self.recipe.stages[name], self.seed(name)
            self._collected[name] = collect(stage, name, seed, self.folder(name), self.executor, self.say)
        return self._collected[name]

    def tokenizer(self, folder: Path | None = None) -> Tokenizer:
        """The run's tokenizer: loaded where there is one, else trained on the rows of all stages, which are collected first."""
        tokenizer = self.load_tokenizer(folder)
        if tokenizer is None:
            collected = [self.collect_rows(name) for name in self.recipe.stages]
            tokenizer = self.train_tokenizer(collected)
        return tokenizer

    def load_tokenizer(self, folder: Path | None = None) -> Tokenizer | None:
        """The tokenizer as it was saved in `folder`, as it was built, as the recipe names it, or of the model that the run
        starts from; None where one has to be trained."""
        config = self.recipe.tokenizer
        if folder is not None and (folder / "tokenizer_config.json").exists():
            return load_tokenizer(folder, config.template)
        if self.recipe.built_dataset is not None:
            return self._built_tokenizer(Path(self.recipe.built_dataset))
        path = config.path or first_initial_weights(self.recipe).directory
        return None if path is None else load_tokenizer(path, config.template)

    def train_tokenizer(self, collected: Iterable[CollectedRows]) -> Tokenizer:
        """A tokenizer trained on the training text of these stages."""
        config = self.recipe.tokenizer
        self.say(f"training a tokenizer of {config.vocab_size:,} tokens …")
        texts = (text for rows in collected for text in rows.tokenizer_texts())
        tokenizer = train_tokenizer(texts, config.vocab_size, config.template)
        if tokenizer.vocab_size < config.vocab_size:
            self.say(f"note: the text yields only {tokenizer.vocab_size:,} tokens, not {config.vocab_size:,}")
        return tokenizer

    def stage_data(self, name: str, tokenizer: Tokenizer) -> StageDataset:
        """The packed data of a stage: as it was built, as the run has it already, or encoded now."""
        stage, seed = self.recipe.stages[name], self.seed(name)
        if self.recipe.built_dataset is not None:
            return load_built_dataset(Path(self.recipe.built_dataset) / name, stage, tokenizer, seed)
        folder = self.folder(name)
        if self.begun and folder is not None and is_complete(folder):
            return load_built_dataset(folder, stage, tokenizer, seed)
        return encode(self.collect_rows(name), tokenizer, self.executor, self.say)

    def _built_tokenizer(self, built: Path) -> Tokenizer:
        """The tokenizer of a built directory; FledgeError where the recipe asks for another one."""
        if not (built / "recipe.yaml").exists():
            raise FledgeError("this is not a directory of `fledge data build`", where=str(built), hint="check built")
        before = load_recipe([str(built / "recipe.yaml")])
        changed = [line for line in differences(before, self.recipe) if line.startswith("tokenizer.")]
        if changed:
            raise FledgeError(
                "this directory was built with another tokenizer:\n  " + "\n  ".join(changed),
                where=str(built),
                hint="build it again, or leave built out",
            )
        return load_tokenizer(built / "tokenizer", self.recipe.tokenizer.template)

    # -- model and plan ---------------------------------------------------------------------------------------------

    def model_cost(self, name: str, tokenizer: Tokenizer) -> ModelCost:
        """Sizes and cost of a stage's model; FledgeError where the stage, the tokenizer or the machine does not fit it."""
        from fledge.model.loading import describe_model  # it loads torch, which data alone does not need

        path, wanted = initial_weights(self.recipe, name).config_directory, self.recipe.model
        if path is None:
            return ModelCost(wanted, tokenizer.vocab_size)
        description = describe_model(path, wanted.implementation, self.say)
        description.check_runtime(self.recipe.runtime)
        config, vocab_size = description.cost.config, description.cost.vocab_size
        sizes = sorted(wanted.model_fields_set - {"path", "implementation"})
        changed = [key for key in sizes if getattr(wanted, key) != getattr(config, key)]
        defaults = type(wanted)()
        changed = [key for key in changed if getattr(wanted, key) != getattr(defaults, key)]
        if changed:
            raise FledgeError(f"{path} has its own sizes; the recipe also sets {', '.join(changed)}", where="model",
                              hint="leave them out, or leave model.path out")  # fmt: skip
        context = self.recipe.stages[name].data.max_seq_len
        if context > config.max_position_embeddings:
            raise FledgeError(f"context {context} is longer than the {config.max_position_embeddings} positions of {path}",
                              where=f"stages.{name}.data.max_seq_len")  # fmt: skip
        if vocab_size < tokenizer.vocab_size:
            raise FledgeError(
                f"the model knows {vocab_size:,} tokens, the tokenizer has {tokenizer.vocab_size:,}",
                where=str(path),
                hint="use the tokenizer and chat template that belong to the model",
            )
        if (path / "tokenizer.json").exists():
            own = load_tokenizer(path, self.recipe.tokenizer.template)
            if own.fingerprint() != tokenizer.fingerprint():
                raise FledgeError("this model has another tokenizer or chat template than the run", where=str(path),
                                  hint=f"set tokenizer.path to {path}")  # fmt: skip
        return description.cost

    def prepare(self, name: str, tokenizer: Tokenizer) -> PreparedStage:
        """Read, encode, pack and plan a stage."""
        stage = self.recipe.stages[name]
        cost = self.model_cost(name, tokenizer)
        data = self.stage_data(name, tokenizer)
        try:
            before = self._recorded_plan(name)
            chosen: list[str] = []
            if before is None:
                batch, chosen = self._batch(name, cost, data)
                stage = stage.model_copy(update={"batch": batch})
            else:
                stage = with_recorded_settings(stage, before)
            plan, reach, stage = plan_stage(stage, data.train, cost, chosen)
            if before is not None:
                plan = replace(plan, notes=before["notes"])
            check_settings_have_effect(stage, reach.steps, cost.config, self.recipe.runtime)
        except FledgeError as error:
            raise FledgeError(error.what, where=f"stages.{name}.{error.where}", hint=error.hint) from None
        stops = stage.early_stopping
        if data.validation is None and (stops.patience or stops.target_loss or stage.select_checkpoint == "best"):
            raise FledgeError(
                "early_stopping and select_checkpoint: best need validation data", where=f"stages.{name}.data.validation"
            )
        return PreparedStage(name, stage, data, plan, reach)

    def _batch(self, name: str, cost: ModelCost, data: StageDataset) -> tuple[BatchConfig, list[str]]:
        """The stage's batch with plain numbers, as memory allows now."""
        from fledge.autotune.compute_config import chosen_device  # they load torch
        from fledge.plan.memory import MemoryInputs, auto_micro_batch

        stage = self.recipe.stages[name]
        device, averaged = chosen_device(self.recipe.runtime), stage.ema.decay is not None
        copies = 1 + (2 if averaged else 0) + (1 if stage.keeps_reference_model else 0)
        if device == "cpu":  # what is being saved is a copy in the same memory: weights, optimizer state, averages
            copies += 3 + (2 if averaged else 0)
        need = MemoryInputs(
            cost=cost,
            row_length=data.train.packed_length,
            optimizer=stage.optimizer,
            device=device,
            copies=copies,
        )
        return auto_micro_batch(stage.batch, need, self.recipe.runtime)

    def _recorded_plan(self, name: str) -> dict[str, Any] | None:
        """The plan of a stage that was begun before: what was chosen then stays, whatever memory or rules are now."""
        if name in self.plans:
            return self.plans[name]
        folder = self.folder(name)
        if not self.begun or folder is None or not (folder.parent / "plan.json").exists():
            return None
        plan = read_json(folder.parent / "plan.json")
        return plan if "micro_rows" in plan else None


def save_tokenizer_once(tokenizer: Tokenizer, folder: Path) -> None:
    """Save the tokenizer into a folder in one piece, unless it is there already."""
    if not (folder / "tokenizer_config.json").exists():
        tmp_path = folder.with_name(f".{folder.name}")
        tokenizer.save(tmp_path)
        tmp_path.replace(folder)
