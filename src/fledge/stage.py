"""One stage of a run: evaluate, train, choose a checkpoint, evaluate again."""

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from fledge.autotune.autotune import DTYPES, ComputeConfig, autotune, head_kernel, warm_up
from fledge.autotune.compile import reset_compiler
from fledge.autotune.compute_config import chosen_device, known_precision
from fledge.autotune.determinism import allow_nondeterministic
from fledge.checkpoint.find import step_name
from fledge.checkpoint.state import TrainState
from fledge.data import PackedDataset
from fledge.data.build.load import split_fingerprints
from fledge.data.build.row_locator import example_locator
from fledge.errors import FledgeError
from fledge.evaluate.generated import GeneratedAnswers
from fledge.evaluate.records import SetResult
from fledge.evaluate.reward_models import check_reward_models
from fledge.evaluate.rewards import stage_rewards
from fledge.evaluate.sets.in_stage import StageSets
from fledge.evaluate.stage_evaluation import StageEvaluation
from fledge.evaluate.stage_verdict import FinishedStage, conclude
from fledge.model.adapters import trained_parameters
from fledge.model.eager import force_eager
from fledge.model.frozen_weights import round_frozen_weights
from fledge.model.linear_cross_entropy import LossKernel
from fledge.model.protocol import LanguageModel
from fledge.monitor.run_logger import LogTargets
from fledge.objective import Objective, ObjectiveContext, build_objective
from fledge.objective.disentanglement import disentanglement_probe
from fledge.plan import describe_plan
from fledge.prediction import conclude_prediction, predict, stage_inputs, write_prediction
from fledge.prepare import PreparedStage
from fledge.recipe.schema import GenerationSamplesConfig
from fledge.run import RunDirectory, StageDirectory, write_json
from fledge.run.file_shapes import StageData
from fledge.run.text_files import read_json
from fledge.run_context import RunContext
from fledge.training.context import TrainContext
from fledge.training.hooks import Hook
from fledge.training.initial_model import StageModels
from fledge.training.live_doctor import LiveDoctor
from fledge.training.model_writer import model_writer
from fledge.training.reference import ReferenceProvider
from fledge.training.rollout import RewardTable
from fledge.training.selection import selected_step
from fledge.training.sources import source_maker
from fledge.training.start_weights import StartWeights
from fledge.training.trainable import load_saved_weights
from fledge.training.trainer import Trainer
from fledge.training.validation import ValidationSet


class StageRunner:
    """Runs one stage in its directory. It starts from the model directory `init_directory`; None: from new weights."""

    def __init__(
        self,
        shared: RunContext,
        prepared: PreparedStage,
        *,
        order: int,
        seed: int,
        init_directory: Path | None,
        directory: StageDirectory,
    ) -> None:
        self.shared, self.prepared, self.order, self.seed = shared, prepared, order, seed
        self.directory = directory
        self.recipe, self.console, self.ranks, self.tokenizer = shared.recipe, shared.console, shared.ranks, shared.tokenizer
        self.models = StageModels(
            recipe=shared.recipe,
            stage=prepared.stage,
            tokenizer=shared.tokenizer,
            start=init_directory,
            log=shared.console.log,
        )
        self.start = StartWeights(
            directory=directory,
            source=init_directory,
            load_initial=self.models.initial,
            load=self.models.saved,
            log=shared.console.log,
        )
        self.rewards: RewardTable | None = None  # made when the stage begins, from models that earlier stages have written
        self._on_end: Callable[[], None] = lambda: None  # of the main process: compares the stage with its prediction
        self._on_start: list[Callable[[], None]] = []  # what records a changed recipe, once training goes on under it

    def run(self) -> dict[str, Any]:
        """Run the stage and return the content of result.json."""
        name, stage, started = self.prepared.name, self.prepared.stage, time.monotonic()
        self.console.title(name)
        changed = {change.key: [change.before, change.after] for change in self.shared.recipe_changes if change.concerns(name)}
        self._report_data_and_plan(changed)
        model, fingerprint, has_begun = self._begin()
        model.activation_checkpoint_every = self.recipe.runtime.activation_checkpoint_every
        reset_compiler()
        with self.shared.timed("autotune"), self.ranks.main_process_first():
            compute = self._compute_config(model)
        self.console.log(compute.describe())
        self._predict(model, compute)
        if self.ranks.is_distributed:
            self.console.log(f"{self.ranks.world_size} processes share each update ({self.recipe.runtime.parallelism})")
        reference = ReferenceProvider(
            stage=stage,
            model=model,
            start=self.start,
            fingerprint=fingerprint,
            resumed=has_begun,
            compute=compute,
            folder=self.directory.root,
            log=self.console.log,
        )
        with self.ranks.main_process_first():
            objective = self._objective(self.prepared.data.train, "training", head_kernel(compute), reference)
            evaluation = self._evaluation(self._validation_set(head_kernel(compute), reference))
        reference.check(objective, self.prepared.data.train)
        before_file = self.directory.evaluations / "before.json"
        if self.ranks.broadcast_object(not before_file.exists()) and not has_begun:
            with self.shared.timed("evaluation"):
                evaluation.evaluate(before_file, model, stage.batch.micro_batch_rows)
        is_sharded = self.recipe.runtime.parallelism == "fsdp" and self.ranks.is_distributed
        hooks = evaluation.hooks(self.prepared.horizon.steps)
        state = self._train(model, objective, hooks, compute=compute, recipe_changes=changed, is_sharded=is_sharded)
        step = selected_step(stage.select_checkpoint, state, self.directory.checkpoints, self.console.log)
        chosen = self._checkpoint(step, stage.ema.decay is not None)
        if is_sharded:
            model = compute.apply(self.models.saved(self.directory.root / chosen))
        elif chosen != self._checkpoint(state.step, averaged=False):
            load_saved_weights(model, self.directory.root / chosen)
        rows = state.micro_batch_size or stage.batch.micro_batch_rows
        results = evaluation.evaluate(self.directory.evaluations / "after.json", model, rows)
        if self.shared.after_stage is not None and self.ranks.is_main_process:
            with force_eager(), allow_nondeterministic():
                self.shared.after_stage(name, model, self.tokenizer, self.directory)
        concluded = self._conclude(model, evaluation, results, state, step)
        return self._write_result(state, concluded, model, wall_seconds=time.monotonic() - started)

    def _conclude(
        self, model: LanguageModel, evaluation: StageEvaluation, results: list[SetResult], state: TrainState, step: int
    ) -> dict[str, Any]:
        """The entries of result.json that say what the figures mean: the model that goes on, the findings and the verdict."""
        finished = FinishedStage(
            evaluation=evaluation,
            results=results,
            train=self.prepared.data.train,
            chosen=self._checkpoint(step, self.prepared.stage.ema.decay is not None),
            step=step,
            state=state,
            is_explicit_last=self.recipe.stages[self.prepared.name].select_checkpoint == "last",
            start=self.start,
        )
        is_main = self.ranks.is_main_process
        return self.ranks.broadcast_object(conclude(finished, model, self.shared.alerts) if is_main else None)

    def _predict(self, model: LanguageModel, compute: ComputeConfig) -> None:
        """Log and write what the stage is predicted to take."""
        inputs = stage_inputs(self.prepared, model.cost, self.recipe.runtime)
        prediction = predict(inputs, compute, self.ranks)
        if prediction is not None:
            self.console.log(prediction.line())
        if self.ranks.is_main_process:
            write_prediction(self.directory, prediction)
            self._on_end = lambda: conclude_prediction(self.directory, inputs, compute, self.ranks, self.console.log)

    def _report_data_and_plan(self, changed: dict[str, list[Any]]) -> None:
        """Log the data report and the plan, and write their files. `changed`: changed keys of the recipe."""
        name, plan = self.prepared.name, self.prepared.plan
        for line in self.prepared.data.report.lines():
            self.console.log(line)
        if self.ranks.is_main_process:
            self._write_data_report()
            if not self.directory.plan.exists():  # the plan of the beginning stays
                write_json(self.directory.plan, plan.as_dict())
            elif any(key.startswith(f"stages.{name}.") for key in changed):
                self._on_start.append(lambda: write_json(self.directory.plan, plan.as_dict()))
        self.console.log(describe_plan(plan))
        for note in plan.notes:
            self.console.log(f"  {note}")

    def _train(
        self,
        model: LanguageModel,
        objective: Objective,
        hooks: tuple[Hook, ...],
        *,
        compute: ComputeConfig,
        recipe_changes: dict[str, list[Any]],
        is_sharded: bool,
    ) -> TrainState:
        """Train until the last checkpoint is complete on all ranks."""
        data, shared, doctor = self.prepared.data, self.shared, self._doctor(model)
        context = TrainContext(
            stage=self.prepared.stage,
            horizon=self.prepared.horizon,
            seed=self.seed,
            model=model,
            objective=objective,
            data=data.train,
            locate_example=example_locator(data),
            compute=compute,
            log=LogTargets(
                directory=self.directory,
                config=self.recipe.logging,
                recipe=self.recipe.model_dump(mode="json", exclude={"alerts"}),
                alerts=shared.alerts,
                take_startup_report=shared.take_startup_report,
                recipe_changes=recipe_changes,
                observers=() if doctor is None else (doctor,),
            ),
            doctor=doctor,
            write_model=model_writer(model, self.tokenizer),
            stopping=shared.stopping,
            hooks=hooks,
            on_start=self._record_changes,
            ranks=self.ranks,
            is_sharded=is_sharded,
            make_source=source_maker(self.tokenizer, self.rewards),
        )
        state = Trainer(context, self.console).run()
        self.ranks.barrier()
        return state

    def _doctor(self, model: LanguageModel) -> LiveDoctor | None:
        """What looks for causes of bad training while the stage trains; None if the recipe wants none."""
        stage, data = self.prepared.stage, self.prepared.data
        if not stage.doctor.every:
            return None
        return LiveDoctor(
            stage=stage,
            train=data.train,
            validation=data.validation,
            tokenizer=self.tokenizer,
            directory=self.directory,
            model=model,
            total_steps=self.prepared.horizon.steps,
        )

    def _begin(self) -> tuple[LanguageModel, str, bool]:
        """The model that the stage begins or goes on with, the fingerprint of the weights that it began with, and whether it
        has begun before."""
        has_begun = bool(self.ranks.broadcast_object(len(self.directory.checkpoint_paths())))
        model, fingerprint = self.start.resume() if has_begun else self.start.begin(write=self.ranks.is_main_process)
        with self.ranks.main_process_first():
            run, device = RunDirectory(self.directory.root.parent), chosen_device(self.recipe.runtime)
            self.rewards = stage_rewards(self.recipe, self.prepared.name, self.tokenizer, run, device=device)
            check_reward_models(self.directory, self.rewards, begins=not has_begun and self.ranks.is_main_process)
        return model, fingerprint, has_begun

    def _record_changes(self) -> None:
        """Write what a changed recipe changes in the directories of stage and run, in the main process."""
        if self.ranks.is_main_process:
            for record in (*self._on_start, self.shared.adopt_recipe):
                record()

    def _compute_config(self, model: LanguageModel) -> ComputeConfig:
        """The compute configuration, applied to the model: read if the stage has begun, else measured and stored.

        The last bits of every number depend on it, so a resumed stage keeps the configuration of its beginning.
        """
        file = self.directory.root / "compute.json"
        train = self.prepared.data.train
        batch = train.batch(0, self.prepared.stage.batch.micro_batch_rows)

        def objective(kernel: LossKernel | None) -> Objective:
            return self._objective(train, "training", kernel, reference=None)

        measure_again = self.shared.measure_again and self.ranks.is_main_process  # the other ranks read what it has written
        self._round_frozen(model, known_precision(self.recipe.runtime))  # before it is moved to a GPU
        if file.exists() and not measure_again:
            compute = ComputeConfig.read(file)
            if compute.device == "cuda" and not torch.cuda.is_available():
                raise FledgeError("this stage was begun on a CUDA device; none is at hand", where=str(file))
            self._round_frozen(model, compute.precision)
            compute.apply(model)
            compile_seconds = warm_up(compute, model, batch, objective, self.console.log)
        else:
            own = self.prepared.horizon.micro_batches(self.prepared.horizon.steps)
            micro_steps = self.shared.micro_steps.get(self.prepared.name, own)
            compute = autotune(
                self.recipe.runtime, model, batch, objective=objective, micro_steps=micro_steps, log=self.console.log
            )
            is_rounded = self._round_frozen(model, compute.precision)
            compute.apply(model)
            write_json(file, compute.as_dict())
            compile_seconds = float(compute.measurements.get("compile_seconds", 0.0))
            if is_rounded:  # the code for other dtypes is another one
                compile_seconds += warm_up(compute, model, batch, objective, self.console.log)
        if self.shared.startup is not None:
            self.shared.startup.reassign("compile", compile_seconds, out_of="autotune")
        return compute

    def _round_frozen(self, model: LanguageModel, precision: str | None) -> bool:
        """Keep the frozen weights of an adapted model in a precision (None: not known yet); returns whether one changed."""
        saved = 0 if precision is None else round_frozen_weights(model, DTYPES[precision])
        if saved:
            self.console.log(
                f"the frozen matrices are kept in {precision}, as products read them: {saved / 2**20:,.0f} MiB less"
            )
        return saved > 0

    def _objective(
        self, data: PackedDataset, split: str, kernel: LossKernel | None, reference: ReferenceProvider | None
    ) -> Objective:
        """The objective of the stage on the data of a split."""
        return build_objective(
            ObjectiveContext(
                stage=self.prepared.stage,
                data=data,
                split=split,
                kernel=kernel,
                token_bytes=self.shared.token_bytes,
                reference=reference,
            )
        )

    def _validation_set(self, kernel: LossKernel | None, reference: ReferenceProvider) -> ValidationSet | None:
        """The validation data and their objective; None without such data."""
        data = self.prepared.data.validation
        if data is None:
            return None
        objective = self._objective(data, "validation", kernel, reference)
        probe, rows = disentanglement_probe(self.prepared.stage, objective), self.prepared.stage.evaluation.max_packed_rows
        return ValidationSet(data, objective, rows, probe)

    def _evaluation(self, validation: ValidationSet | None) -> StageEvaluation:
        """What the stage is evaluated with."""
        stage, answers = self.prepared.stage, None
        if validation is not None and stage.evaluation.generated_answers is not None:
            config, metric = stage.evaluation.generated_answers, stage.metric_for_best_model
            answers = GeneratedAnswers.of(validation.data, self.tokenizer, config, metric, self.rewards)
            self.console.log(answers.describe())
        return StageEvaluation(
            stage=stage,
            tokenizer=self.tokenizer,
            samples=GenerationSamplesConfig() if stage.trains_reward_model else self.recipe.generation_samples,
            validation=validation,
            answers=answers,
            cases=self.shared.prompt_test_cases.get(self.prepared.name, ()),
            sets=StageSets(
                sets=self.shared.evaluation_sets.get(self.prepared.name, ()),
                tokenizer=self.tokenizer,
                directory=self.directory,
                console=self.console,
            ),
            directory=self.directory,
            console=self.console,
            ranks=self.ranks,
            locate=example_locator(self.prepared.data, self.prepared.data.validation),
        )

    def _write_data_report(self) -> None:
        """Write data_report.json. Raises FledgeError if a stage that has begun would go on with other data."""
        file, report = self.directory.data_report, self.prepared.data.as_dict()
        has_begun = self.directory.has_begun() and file.exists()
        if has_begun and split_fingerprints(read_json(file, StageData)) != split_fingerprints(report):
            raise FledgeError(
                f"the data of stage {self.prepared.name} changed since it began: it cannot be resumed exactly",
                where=str(file),
                hint="put the files back as they were, or start under another --name",
            )
        write_json(file, report)

    def _checkpoint(self, step: int, averaged: bool) -> Path:
        return Path("checkpoints") / step_name(step) / ("averaged" if averaged else "model")

    def _write_result(
        self, state: TrainState, concluded: dict[str, Any], model: LanguageModel, wall_seconds: float
    ) -> dict[str, Any]:
        """Write result.json, which marks the stage as finished, and return its content. `concluded`: as `_conclude`."""
        trained, total = trained_parameters(model)
        result = {
            "order": self.order,
            "model": concluded["model"],
            "step": state.step,
            "seconds": state.seconds,
            "wall_seconds": round(wall_seconds, 3),
            "stop": state.stop_reason,
            "best_step": state.best_step,
            "trained_parameters": trained,
            "parameters": total,
            "verdicts": concluded["verdicts"],
            "verdict": concluded["verdict"],
        }
        if self.ranks.is_main_process:
            self._on_end()
            write_json(self.directory.result_file, result)
        return result
