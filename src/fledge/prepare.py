"""The preparation of a run: the rows of its stages, the tokenizer, the tokens of its stages, and the plan of each stage."""

import datetime
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

import xxhash

from fledge.data import FORMATS, CollectedRows, StageDataset, collect, encode, is_complete, load_built_dataset
from fledge.data.build.directory import PLAN_FILE
from fledge.data.build.executors import Executor, ProcessPoolExecutor
from fledge.data.build.plan import BuildPlan, plan_build, requested_data
from fledge.errors import FledgeError
from fledge.findings import Finding
from fledge.model.cost import ModelCost
from fledge.model.start_models import StartModels
from fledge.plan import StagePlan, check_settings_have_effect, plan_stage, with_recorded_settings, without_warmup
from fledge.plan.critic import PlannedStage, cpu_has_bf16, gpu_capability, plan_warnings
from fledge.plan.horizon import TrainingHorizon, sized_batch
from fledge.plan.prompt_sharing import share_prompts
from fledge.plan.stage import check_labels
from fledge.plan.warnings import PlanError
from fledge.recipe import Recipe, Stage, differences, load_recipe
from fledge.recipe.initial_weights import first_initial_weights
from fledge.recipe.schema import BatchConfig
from fledge.recipe.sections.policy import PolicySettings
from fledge.run.directory import RunDirectory, check_layout
from fledge.run.environment import world_size
from fledge.run.file_shapes import RecordedPlan
from fledge.run.text_files import read_json
from fledge.tokenizer import Tokenizer, load_tokenizer, train_tokenizer
from fledge.tokenizer.native_templates import SEQ2SEQ
from fledge.tokenizer.settings import read_decoder_start


@dataclass(frozen=True, kw_only=True)
class PreparedStage:
    """A stage that is ready to be trained: its data and its plan. `stage` has numbers where the recipe says `auto`. `warnings`:
    what is doubtful about the plan. `reward_models`: bytes of those that judge answers."""

    name: str
    stage: Stage
    data: StageDataset
    plan: StagePlan
    horizon: TrainingHorizon
    warnings: list[Finding] = field(default_factory=list)
    reward_models: float = 0.0


class Preparation:
    """Prepares the stages of a recipe.

    `build_directory_of` gives the directory in which the data of a stage is built; without it, data is built in temporary
    directories. `resuming`: complete data in that directory is the data of this run. `executor` processes the shards. `run`:
    the directory of the run; a stage that has begun goes on with what it has there. `for_this_machine`: micro-batches that the
    recipe leaves open are chosen by its memory; else they have one row, and are not merged. `must_fit`: that not even one row
    fits into it is an error; else they have one row.
    """

    def __init__(
        self,
        recipe: Recipe,
        log: Callable[[str], None],
        build_directory_of: Callable[[str], Path] | None = None,
        *,
        resuming: bool = False,
        executor: Executor | None = None,
        run: RunDirectory | None = None,
        for_this_machine: bool = True,
        must_fit: bool = True,
    ) -> None:
        self.recipe, self.log, self.build_directory_of, self.resuming = recipe, log, build_directory_of, resuming
        self.run, self.for_this_machine, self.must_fit = run, for_this_machine, must_fit
        workers = recipe.runtime.data_workers
        self.executor = executor or (None if workers is None else ProcessPoolExecutor(workers))
        self._collected: dict[str, CollectedRows] = {}
        self._costs: dict[str, ModelCost] = {}
        self.start_models = StartModels(recipe, log, run)
        self.plans: dict[str, dict[str, Any]] = {}  # by stage, as the main process has made them

    def build_directory(self, name: str) -> Path | None:
        """The directory in which the data of a stage is built; None: a temporary one."""
        return None if self.build_directory_of is None else self.build_directory_of(name)

    def seed(self, name: str) -> int:
        """The seed of a stage, derived from the seed of the run and the name of the stage."""
        return xxhash.xxh3_64_intdigest(f"{self.recipe.seed}/{name}".encode()) % 2**31

    # -- rows, tokenizer, tokens: the order in which data is prepared -------------------------------------------------

    def collect_rows(self, name: str) -> CollectedRows:
        """Read, clean, deduplicate and split the rows of a stage, once."""
        if name not in self._collected:
            stage, seed = self.recipe.stages[name], self.seed(name)
            directory = self.build_directory(name)
            self._collected[name] = collect(stage, name, seed, folder=directory, executor=self.executor, progress=self.log)
        return self._collected[name]

    def tokenizer(self, folder: Path | None = None) -> Tokenizer:
        """The tokenizer of the run: loaded if there is one, else trained on the rows of all stages, which are read first."""
        tokenizer = self.load_tokenizer(folder)
        if tokenizer is None:
            collected = [self.collect_rows(name) for name in self.recipe.stages]
            tokenizer = self.train_tokenizer(collected)
        return tokenizer

    def load_tokenizer(self, folder: Path | None = None) -> Tokenizer | None:
        """The tokenizer saved in `folder`, of the built dataset, of the recipe, or of the model that the run starts from; None
        if one has to be trained."""
        if folder is not None and (folder / "tokenizer_config.json").exists():
            return self._read_tokenizer(folder)
        if self.resuming and (model := self._saved_model()) is not None:
            self.log(f"note: the run's tokenizer is missing; the one in {model} is taken")
            return self._read_tokenizer(model)
        if self.recipe.built_dataset is not None:
            return self._built_tokenizer(Path(self.recipe.built_dataset))
        key, path = self.start_models.tokenizer_source()
        if path is None:
            return None
        tokenizer = self._read_tokenizer(path, key)
        if tokenizer.added:
            self.log(f"note: the tokenizer in {path} gets new tokens: {', '.join(tokenizer.added)}")
        if problem := tokenizer.round_trip_problem():
            self.log(f"warning: {problem}")
        return tokenizer

    def tokenizer_change(self, folder: Path) -> str | None:
        """What became of the tokenizer that the recipe names since the run saved it in `folder`; None: it is the same, or there
        is none of either."""
        key, path = self.start_models.tokenizer_source()
        if path is None or self.recipe.built_dataset is not None or not (folder / "tokenizer_config.json").exists():
            return None
        if not path.exists():  # a start model that is gone is told where its weights are
            return f"gone: {path}" if key == "tokenizer.path" else None
        saved = self._read_tokenizer(folder)
        try:
            is_same = self._read_tokenizer(path, key, saved.template.date).fingerprint() == saved.fingerprint()
        except FledgeError as error:
            return f"now: {error.what} ({path})"
        return None if is_same else f"tokenizer or chat template changed since: {path}"

    def _read_tokenizer(self, path: Path, key: str = "", date: datetime.date | None = None) -> Tokenizer:
        """The tokenizer in a folder with all that this run asks of it. A run that only continues texts needs no chat
        template."""
        config, stages = self.recipe.tokenizer, self.recipe.stages.values()
        chats = any(FORMATS[stage.kind].is_dialogue or stage.asks_in_turns for stage in stages)
        return load_tokenizer(path, self._template(), special_tokens=config.special_tokens, needs_template=chats, key=key,
                              template_date=date or config.template_date)  # fmt: skip

    def _template(self) -> str:
        """The name of the chat template: `auto` is `seq2seq` where the run starts from an encoder–decoder."""
        requested, start = self.recipe.tokenizer.template, first_initial_weights(self.recipe).config_directory
        return SEQ2SEQ if requested == "auto" and start is not None and read_decoder_start(start) is not None else requested

    def train_tokenizer(self, collected: Iterable[CollectedRows]) -> Tokenizer:
        """A tokenizer trained on the training texts of stages."""
        config = self.recipe.tokenizer
        self.log(f"training a tokenizer of {config.vocab_size:,} tokens …")
        texts = (text for rows in collected for text in rows.tokenizer_texts())
        tokenizer = train_tokenizer(texts, config.vocab_size, self._template(), config.special_tokens, self.log)
        if tokenizer.vocab_size < config.vocab_size:
            self.log(f"note: the text yields only {tokenizer.vocab_size:,} tokens, not {config.vocab_size:,}")
        return tokenizer

    def stage_data(self, name: str, tokenizer: Tokenizer) -> StageDataset:
        """The packed data of a stage: from the built dataset, from the directory of the run, or encoded now."""
        stage, seed = self.recipe.stages[name], self.seed(name)
        if self.recipe.built_dataset is not None:
            return load_built_dataset(Path(self.recipe.built_dataset) / name, stage, tokenizer, seed)
        directory = self.build_directory(name)
        if self.resuming and directory is not None and is_complete(directory) and self._keeps_build(name, directory):
            return load_built_dataset(directory, stage, tokenizer, seed)
        return encode(self.collect_rows(name), tokenizer, self.executor, self.log)

    def _keeps_build(self, name: str, directory: Path) -> bool:
        """Whether the data that a stage of the run has built is what it trains on. The files of a stage that has begun do not
        count any more; for any other stage changed files are read again. Both are logged."""
        if self.run is None or name in self.plans:
            return True
        built = BuildPlan.read(directory / PLAN_FILE)
        edited, gone = built.changed_files()
        has_begun = self.run.stage(name).has_begun()
        other = built.added_or_renamed() if has_begun else []
        files = ", ".join([*edited[:3], *(f"{path} (gone)" for path in gone[:3]), *other[:3]])
        if has_begun:
            if files:
                self.log(f"note: {name} has begun and goes on with the rows that it began with; changed since: {files}")
            return True
        if gone and not edited and built.requested == requested_data(self.recipe.stages[name], self.seed(name)):
            self.log(f"note: {name} uses the rows that were read when the run was prepared: {files}")
            return True
        if built.same_data_as(plan_build(self.recipe.stages[name], name, self.seed(name))):
            return True
        self.log(f"{name}: its data is read again, it changed since it was read" + (f": {files}" if files else ""))
        self.run.stage(name).forget_preparation()
        return False

    def _saved_model(self) -> Path | None:
        """A model directory with a tokenizer that the run has saved; None if it has saved none."""
        stages = () if self.run is None else (self.run.stage(name) for name in self.recipe.stages)
        models = (stage.newest_model() for stage in stages)
        return next((model for model in models if model is not None and (model / "tokenizer.json").exists()), None)

    def inputs_differ(self, tokenizer_folder: Path) -> bool:
        """Whether the data of any stage, or the tokenizer that the recipe names, changed since the run was prepared."""
        given = self.load_tokenizer()
        saved = (tokenizer_folder / "tokenizer_config.json").exists()
        if given is not None and saved and self._read_tokenizer(tokenizer_folder).fingerprint() != given.fingerprint():
            return True
        directories = {name: self.build_directory(name) for name in self.recipe.stages}
        built = [folder for folder in directories.values() if folder is not None and is_complete(folder)]
        return any(BuildPlan.read(folder / PLAN_FILE).changed_files()[0] for folder in built)

    def check_start_models(self) -> None:
        """Load every model directory that a stage starts from, so that a damaged one is found before anything is written.

        Raises FledgeError as `load_model`."""
        from fledge.model.loading import load_model  # it loads torch, which data alone does not need

        for folder, name in self.start_models.directories().items():
            quantization = self.recipe.stages[name].quantization
            load_model(folder, self.recipe.model.implementation, purpose=self._purpose(name), quantization=quantization)

    def _built_tokenizer(self, built: Path) -> Tokenizer:
        """The tokenizer of a built dataset. Raises FledgeError if the recipe asks for another tokenizer."""
        if not (built / "recipe.yaml").exists():
            raise FledgeError("this is not a directory of `fledge data build`", where=str(built), hint="check built_dataset")
        check_layout(built)
        before = load_recipe([str(built / "recipe.yaml")])
        changed = [line for line in differences(before, self.recipe) if line.startswith("tokenizer.")]
        if changed:
            raise FledgeError(
                "this directory was built with another tokenizer:\n  " + "\n  ".join(changed),
                where=str(built),
                hint="build it again, or leave built_dataset out",
            )
        return self._read_tokenizer(built / "tokenizer")

    # -- model and plan ---------------------------------------------------------------------------------------------

    def _purpose(self, name: str) -> Literal["language", "any"]:
        """What the model that a stage starts from may be."""
        return "any" if self.recipe.stages[name].trains_reward_model else "language"

    def model_cost(self, name: str, tokenizer: Tokenizer) -> ModelCost:
        """Sizes and cost of a stage's model. Raises FledgeError if stage, tokenizer or machine does not fit the model."""
        if name not in self._costs:
            cost = self._model_cost(name, tokenizer)
            self._costs[name] = cost.of_reward_model() if self.recipe.stages[name].trains_reward_model else cost
        return self._costs[name]

    def _model_directory(self, name: str) -> Path | None:
        """The model directory that has the sizes of a stage's model: what the run has saved, else what the recipe names; None:
        the recipe gives the sizes."""
        weights = self.start_models.of_stage(name)
        if weights.config_directory is None or self.run is None:
            return weights.config_directory
        saved = self.run.stage(name).newest_model()
        if saved is None and weights.previous_stage is not None:
            return self._model_directory(weights.previous_stage)
        return saved or weights.directory or weights.config_directory

    def _model_cost(self, name: str, tokenizer: Tokenizer) -> ModelCost:
        from fledge.model.loading import describe_model  # they load torch, which data alone does not need
        from fledge.plan.start_model import check_start_model, check_template

        path, model = self._model_directory(name), self.recipe.model
        if path is None:
            check_template(tokenizer, "the model of the recipe", is_encoder_decoder=False)
            return ModelCost(model, tokenizer.vocab_size)
        description = describe_model(path, model.implementation, self.log, purpose=self._purpose(name))
        is_new = model.config is not None and path == Path(model.config)
        check_start_model(self.recipe, name, description, path, tokenizer, has_weights=not is_new)
        vocab_size = tokenizer.vocab_size if is_new else max(description.cost.vocab_size, tokenizer.vocab_size)
        if (path / "tokenizer.json").exists():
            own = self._read_tokenizer(path, date=tokenizer.template.date)
            if own.fingerprint() != tokenizer.fingerprint():
                raise FledgeError("this model has another tokenizer or chat template than the run", where=str(path),
                                  hint=f"set tokenizer.path to {path}")  # fmt: skip
        return description.cost.with_vocabulary(vocab_size)

    def _growth_note(self, name: str, tokenizer: Tokenizer) -> list[str]:
        """A note that names the tokens for which the stage's initial model gets new rows; empty if it knows all tokens."""
        from fledge.model.loading import describe_model

        path = self.start_models.of_stage(name).directory
        if path is None:
            return []
        vocab_size = describe_model(path, self.recipe.model.implementation, purpose=self._purpose(name)).cost.vocab_size
        new = [text for text, _ in tokenizer.tokens_from(vocab_size)]
        if not new:
            return []
        return [f"embedding and head grow from {vocab_size:,} to {tokenizer.vocab_size:,} tokens; "
                f"these begin as the mean of the others: {', '.join(new)}"]  # fmt: skip

    def prepare(self, name: str, tokenizer: Tokenizer, data: StageDataset | None = None) -> PreparedStage:
        """Read, encode, pack and plan a stage. `data`: its packed data, where it is at hand. Raises PlanError, with the
        recipe key, for settings that cannot work."""
        from fledge.evaluate.reward_models import check_positions  # they load torch, which data alone does not need
        from fledge.evaluate.rewards import stage_rewards

        cost, stage = self.model_cost(name, tokenizer), self.recipe.stages[name]
        data = data or self.stage_data(name, tokenizer)
        data, notes = share_prompts(self.recipe, name, data, self._model_directory(name), self.run and self.run.stage(name))
        stage_rewards(self.recipe, name, tokenizer, self.run, loads=False)  # raises for rewards that cannot be computed
        if isinstance(stage, PolicySettings):
            check_positions(self._reward_model_costs(name, tokenizer), stage, name, data, tokenizer)
        self._recorded_plan(name)  # a damaged file is no mistake of the recipe
        try:
            plan, horizon, resolved = self._plan(name, tokenizer, data, stage, notes)
            check_settings_have_effect(resolved, horizon.steps, cost.config, self.recipe.runtime, data.validation)
            check_labels(data.train, horizon)
        except FledgeError as error:
            others = self._findings_of_failed_plan(name, tokenizer, data)
            raise PlanError(error.what, where=f"stages.{name}.{error.where}", hint=error.hint, others=others) from None
        warnings = self._warnings(name, tokenizer, data, resolved, plan)
        judges = self._reward_model_bytes(name, tokenizer)
        return PreparedStage(name=name, stage=resolved, data=data, plan=plan, horizon=horizon, warnings=warnings,
                             reward_models=judges)  # fmt: skip

    def _plan(
        self, name: str, tokenizer: Tokenizer, data: StageDataset, stage: Stage, chosen: Sequence[str] = ()
    ) -> tuple[StagePlan, TrainingHorizon, Stage]:
        """The plan of a stage, its horizon, and the stage with numbers in place of `auto`. `chosen`: sentences about earlier
        choices."""
        cost, recorded = self.model_cost(name, tokenizer), self._recorded_plan(name)
        if recorded is not None:
            stage = with_recorded_settings(self._with_capped_batch(stage, data, recorded), recorded)
            plan, horizon, stage = plan_stage(stage, data.train, cost, [], data.validation)
            return replace(plan, notes=recorded["notes"]), horizon, stage
        batch, notes = self._batch(stage, cost, data, self._reward_model_bytes(name, tokenizer))
        notes = [*chosen, *self._growth_note(name, tokenizer), *notes]
        return plan_stage(stage.model_copy(update={"batch": batch}), data.train, cost, notes, data.validation)

    def planned(self, name: str, tokenizer: Tokenizer, data: StageDataset, stage: Stage, plan: StagePlan) -> PlannedStage:
        """A stage as the critic reads it; `stage` has numbers in place of `auto`."""
        cost, fresh = self.model_cost(name, tokenizer), self.start_models.of_stage(name).are_fresh
        runtime = self.recipe.runtime
        return PlannedStage(name=name, recipe=self.recipe, stage=stage, plan=plan, train=data.train, validation=data.validation,
                            report=data.report, cost=cost, starts_fresh=fresh, capability=gpu_capability(runtime),
                            cpu_has_bf16=cpu_has_bf16(runtime))  # fmt: skip

    def _warnings(self, name: str, tokenizer: Tokenizer, data: StageDataset, stage: Stage, plan: StagePlan) -> list[Finding]:
        """What is doubtful about the plan of a stage."""
        return plan_warnings(self.planned(name, tokenizer, data, stage, plan))

    def _findings_of_failed_plan(self, name: str, tokenizer: Tokenizer, data: StageDataset) -> list[Finding]:
        """What else is doubtful about a stage whose plan fails: the findings of its plan without warm-up and minimum rate;
        none if that fails too."""
        try:
            plan, _, stage = self._plan(name, tokenizer, data, without_warmup(self.recipe.stages[name]))
        except FledgeError:
            return []
        return self._warnings(name, tokenizer, data, stage, plan)

    def _reward_model_costs(self, name: str, tokenizer: Tokenizer) -> dict[str, ModelCost]:
        from fledge.evaluate.reward_models import reward_model_costs

        return reward_model_costs(self.recipe, name, lambda stage: self.model_cost(stage, tokenizer))

    def _reward_model_bytes(self, name: str, tokenizer: Tokenizer) -> float:
        return sum(4.0 * one.parameters().total for one in self._reward_model_costs(name, tokenizer).values())

    def _batch(self, stage: Stage, cost: ModelCost, data: StageDataset, judges: float) -> tuple[BatchConfig, list[str]]:
        """The batch of a stage with a number in place of `auto`, as the free memory allows beside `judges` bytes of reward
        models, and notes that explain it."""
        batch, notes = stage.batch, list[str]()
        if batch.tokens_per_step is None:
            batch, notes = sized_batch(batch, stage.kind, stage.duration, data.train)
            if not batch.merge_micro_batches or batch.gradient_accumulation_steps == 1:
                return batch, notes
        from fledge.autotune.compute_config import chosen_device  # they load torch
        from fledge.plan.memory import batch_for_memory, divided_batch, memory_inputs

        if not self.for_this_machine:
            return divided_batch(batch, data.train.packed_length), notes
        runtime = self.recipe.runtime
        inputs = memory_inputs(stage, cost, data.train, chosen_device(runtime), judges, ranks=world_size(),
                               sharded=runtime.parallelism == "fsdp")  # fmt: skip
        batch, chosen = batch_for_memory(batch, inputs, runtime, must_fit=self.must_fit)
        return batch, [*notes, *chosen]

    def _with_capped_batch(self, stage: Stage, data: StageDataset, recorded: dict[str, Any]) -> Stage:
        """The stage with the micro-batch that it began with, where the recipe's was `auto` or could not be filled."""
        if stage.batch.tokens_per_step or not sized_batch(stage.batch, stage.kind, stage.duration, data.train)[1]:
            return stage
        batch = stage.batch.model_copy(update={"micro_batch_size": recorded["micro_batch_size"]})
        return stage.model_copy(update={"batch": batch})

    def _recorded_plan(self, name: str) -> dict[str, Any] | None:
        """The plan.json of a stage that was begun before: its choices stay, whatever memory or rules are now."""
        if name in self.plans:
            return self.plans[name]
        if not self.resuming or self.run is None or not self.run.stage(name).plan.exists():
            return None
        return read_json(self.run.stage(name).plan, RecordedPlan, "put the file back as it was, or start under another --name")
