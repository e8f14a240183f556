"""One stage of a run: evaluate, train, evaluate; and what all stages of a run have in common."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import torch

from fledge.autotune.autotune import ComputeConfig, autotune, force_eager, head_kernel, warm_up
from fledge.autotune.compile import reset_compiler
from fledge.checkpoint.checkpoint import TrainState, Weights, WriteModel, step_name
from fledge.data import PackedDataset, StageDataset
from fledge.data.analysis.build_stats import RowLocator
from fledge.data.build.shards import BuildPlan
from fledge.distributed.context import DistributedContext
from fledge.errors import FledgeError
from fledge.evaluate import sample
from fledge.evaluate.prompt_tests import Case, previous_failures, run_cases, summary, write_failing
from fledge.generation.engine import SamplingParams
from fledge.model.decoder import Decoder
from fledge.model.loading import load_model
from fledge.model.protocol import LanguageModel
from fledge.objective import CausalLMObjective, DPOObjective
from fledge.plan import StagePlan
from fledge.prepare import PreparedStage
from fledge.recipe import Recipe
from fledge.recipe.resume_policy import Change
from fledge.recipe.schema import PreferenceStage
from fledge.run import Console, StageDirectory, write_json
from fledge.run.alerts import Alerts
from fledge.run.startup import StartupTimer
from fledge.run.stopping import SignalHandler
from fledge.run.text_files import read_json
from fledge.tokenizer import Tokenizer
from fledge.train.reference import precompute_ref_log_probs
from fledge.train.trainer import Objective, TrainContext, Trainer
from fledge.train.validation import validate

AfterStage = Callable[[str, LanguageModel, Tokenizer, StageDirectory], None]


@dataclass
class RunContext:
    """What the stages of a run have in common."""

    recipe: Recipe
    console: Console
    tokenizer: Tokenizer
    stopping: SignalHandler
    alerts: Alerts
    cases: dict[str, list[Case]]  # regression prompts, by stage
    ranks: DistributedContext
    startup: StartupTimer | None
    after_stage: AfterStage | None = None
    changed: list[Change] = field(default_factory=list)
    token_bytes: torch.Tensor | None = None

    def timed(self, name: str) -> AbstractContextManager[None]:
        """Time that belongs to a part of the start."""
        return nullcontext() if self.startup is None else self.startup.phase(name)

    def take_startup_report(self) -> StartupTimer | None:
        """Where the time before the first step of all went; told once."""
        startup, self.startup = self.startup, None
        return startup


class StageRunner:
    """Runs one stage in its directory, from the model directory of the stage `before`, if there is one."""

    def __init__(
        self,
        shared: RunContext,
        prepared: PreparedStage,
        order: int,
        seed: int,
        before: Path | None,
        directory: StageDirectory,
    ) -> None:
        self.shared, self.prepared, self.order, self.seed = shared, prepared, order, seed
        self.before, self.directory = before, directory
        self.recipe, self.console, self.ranks, self.tokenizer = shared.recipe, shared.console, shared.ranks, shared.tokenizer

    def run(self) -> dict[str, Any]:
        """All of it; returns what result.json says."""
        name, stage, started = self.prepared.name, self.prepared.stage, time.monotonic()
        self.console.title(name)
        for line in self.prepared.data.ledger.lines():
            self.console.log(line)
        changed = {change.key: [change.before, change.after] for change in self.shared.changed if change.concerns(name)}
        if self.ranks.is_main_process:
            self._write_data_report()
            of_stage = any(key.startswith(f"stages.{name}.") for key in changed)
            if of_stage or not (self.directory.root / "plan.json").exists():  # as it was planned when it began
                write_json(self.directory.root / "plan.json", self.prepared.plan.as_dict())
        self.console.log(plan_line(self.prepared.plan))
        for note in self.prepared.plan.notes:
            self.console.log(f"  {note}")
        model = self._start_model()
        model.activation_checkpoint_every = self.recipe.runtime.activation_checkpoint_every
        reset_compiler()
        with self.shared.timed("probe"), self.ranks.main_process_first():
            decision = self._decision(model)
        self.console.log(_machine_line(decision))
        if not self.ranks.alone:
            self.console.log(f"{self.ranks.world_size} processes share each update ({self.recipe.runtime.parallelism})")
        start = model
        if isinstance(stage, PreferenceStage) and not stage.precompute_ref_log_probs:
            start = self._start_model()
            decision.apply(start).eval().requires_grad_(False)
        with self.ranks.main_process_first():
            objective, validation_objective = self._objectives(model, decision, start)
        before_file = self.directory.evaluations / "before.json"
        if self.ranks.broadcast_object(not before_file.exists()):
            with self.shared.timed("evaluation"):
                self._evaluate(before_file, model, validation_objective, stage.batch.micro_batch_rows)
        divided = self.recipe.runtime.parallelism == "fsdp" and not self.ranks.alone
        state = self._train(model, objective, validation_objective, decision, changed, divided)
        chosen = self._select_checkpoint(state)
        if divided:
            model = decision.apply(self._load(self.directory.root / chosen))
        elif chosen != self._checkpoint(state.step, averaged=False):
            model.load_state_dict(self._load(self.directory.root / chosen).state_dict())
        rows = state.micro_batch_size or stage.batch.micro_batch_rows
        self._evaluate(self.directory.evaluations / "after.json", model, validation_objective, rows)
        if self.shared.after_stage is not None and self.ranks.is_main_process:
            with force_eager():
                self.shared.after_stage(name, model, self.tokenizer, self.directory)
        done = {"order": self.order, "model": str(chosen), "step": state.step, "seconds": state.seconds,
                "wall_seconds": round(time.monotonic() - started, 3), "stop": state.stop_reason}  # fmt: skip
        if self.ranks.is_main_process:
            write_json(self.directory.result_file, done)
        return done

    def _train(
        self,
        model: LanguageModel,
        objective: Objective,
        validation_objective: DPOObjective | None,
        decision: ComputeConfig,
        changed: dict[str, list[Any]],
        divided: bool,
    ) -> TrainState:
        """The loop, until the last checkpoint is there for all ranks."""
        data, shared, logging = self.prepared.data, self.shared, self.recipe.logging
        work = TrainContext(
            self.prepared.stage,
            model,
            objective,
            data.train,
            data.validation,
            validation_objective,
            self.prepared.extent,
            decision,
            self.directory,
            _writer(model, self.tokenizer),
            shared.stopping,
            self.seed,
            logging.every_steps,
            logging.tensorboard,
            _places(data),
            shared.alerts,
            self._prompt_test_callback(),
            shared.token_bytes,
            shared.take_startup_report,
            changed,
            self.ranks,
            divided,
        )
        state = Trainer(work, self.console).run()
        self.ranks.barrier()
        return state

    def _start_model(self) -> LanguageModel:
        path = Path(self.prepared.stage.init_from) if self.prepared.stage.init_from else self.before
        if path is None:
            model = Decoder(self.recipe.model, self.tokenizer.vocab_size)
            model.initialise(self.recipe.seed)
            return model
        model = self._load(path)
        for note in model.notes:
            self.console.log(f"note: {note}")
        return model

    def _load(self, folder: Path) -> LanguageModel:
        return load_model(folder, self.recipe.model.implementation)

    def _decision(self, model: LanguageModel) -> ComputeConfig:
        """As it was measured when the stage began, and applied; the last bits of every number depend on it."""
        file = self.directory.root / "compute.json"
        stage, batch = self.prepared.stage, self.prepared.data.train.batch(0, self.prepared.stage.batch.micro_batch_rows)

        def objective(kernel: Any) -> Any:
            if isinstance(stage, PreferenceStage):
                return DPOObjective(stage.beta, 0.0, 0.0, torch.zeros(self.prepared.data.train.examples.count, 2))
            return CausalLMObjective(stage.label_smoothing, kernel)

        if file.exists():
            decision = ComputeConfig.from_dict(read_json(file))
            if decision.device == "cuda" and not torch.cuda.is_available():
                raise FledgeError("this stage was begun on a CUDA device; none is at hand", where=str(file))
            decision.apply(model)
            compiling = warm_up(decision, model, batch, objective, self.console.log)
        else:
            micro_steps = self.prepared.extent.micro_batches(self.prepared.extent.steps)
            decision = autotune(self.recipe.runtime, model, batch, objective, micro_steps, self.console.log)
            decision.apply(model)
            write_json(file, decision.as_dict())
            compiling = float(decision.measurements.get("compile_seconds", 0.0))
        if self.shared.startup is not None:
            self.shared.startup.reassign("compile", compiling, out_of="probe")
        return decision

    def _objectives(
        self, model: LanguageModel, decision: ComputeConfig, start: LanguageModel
    ) -> tuple[Objective, DPOObjective | None]:
        """The objective of training, and for preferences that of validation with a reference table of its own."""
        stage = self.prepared.stage
        if not isinstance(stage, PreferenceStage):
            return CausalLMObjective(stage.label_smoothing, head_kernel(decision)), None

        def build(data: PackedDataset, part: str) -> DPOObjective:
            if not stage.precompute_ref_log_probs:
                reference: Any = start
            else:
                self.console.log(f"reference log-probabilities of {data.examples.count:,} {part} pairs …")
                cache = self.directory.root / f"reference.{part}.safetensors"
                reference = precompute_ref_log_probs(start, data, stage.batch.micro_batch_rows, decision, cache).to(
                    decision.device
                )
            return DPOObjective(stage.beta, stage.label_smoothing, stage.sft_loss_weight, reference)

        validation = self.prepared.data.validation
        return build(self.prepared.data.train, "training"), build(validation, "validation") if validation else None

    def _write_data_report(self) -> None:
        """Write data_report.json; FledgeError where a stage that has begun would go on with other data."""
        file, account = self.directory.root / "data_report.json", self.prepared.data.account()
        if self.directory.events.exists() and file.exists():
            before = read_json(file)
            prints = [[part and part["fingerprint"] for part in (one["train"], one["validation"])] for one in (before, account)]
            if prints[0] != prints[1]:
                raise FledgeError(
                    f"the data of stage {self.prepared.name} changed since it began: it cannot be resumed exactly",
                    where=str(file),
                    hint="put the files back as they were, or start under another --name",
                )
        write_json(file, account)

    def _select_checkpoint(self, state: TrainState) -> Path:
        """The model directory that goes on, within the stage's."""
        best, averaged = state.best_step, self.prepared.stage.ema.decay is not None
        last = self._checkpoint(state.step, averaged)
        if self.prepared.stage.select_checkpoint != "best" or best is None or best == state.step:
            return last
        if not (self.directory.checkpoints / step_name(best)).exists():
            self.console.log(f"warning: the best checkpoint, of step {best:,}, was not saved: the last one goes on", "yellow")
            return last
        self.console.log(f"the best checkpoint goes on: step {best:,}")
        return self._checkpoint(best, averaged)

    def _checkpoint(self, step: int, averaged: bool) -> Path:
        return Path("checkpoints") / step_name(step) / ("averaged" if averaged else "model")

    def _evaluate(self, file: Path, model: LanguageModel, validation_objective: DPOObjective | None, micro: int) -> None:
        """Perplexity and token accuracy on validation, `micro` rows at a time; and answers to the fixed prompts, by the first
        rank."""
        measured: dict[str, Any] = {}
        stage = self.prepared.stage
        if self.prepared.data.validation is not None:
            measured = validate(
                model,
                self.prepared.data.validation,
                stage.evaluation.max_packed_rows,
                micro,
                validation_objective,
                self.shared.token_bytes,
                ranks=self.ranks,
            )
            self.console.log(
                f"{file.stem} {self.prepared.name}: validation perplexity {measured['perplexity']:.4g}, "
                f"token accuracy {measured['token_accuracy']:.1%}"
            )
        if not self.ranks.is_main_process:
            return
        with force_eager():
            samples = sample(model, self.tokenizer, self.recipe.generation_samples, stage.kind)
        write_json(file, {**measured, "samples": [one.as_dict() for one in samples]})

    def _prompt_test_callback(self) -> Callable[[LanguageModel, int], dict[str, Any]] | None:
        """Asks the stage's regression prompts; failing cases are kept in `regression/step-….jsonl`."""
        config = self.prepared.stage.prompt_tests
        if config is None:
            return None
        cases, sampling = self.shared.cases[self.prepared.name], SamplingParams(max_new_tokens=config.max_new_tokens)

        def examine(model: LanguageModel, step: int) -> dict[str, Any]:
            with force_eager():
                checked = run_cases(model, self.tokenizer, cases, sampling)
            before = previous_failures(self.directory.prompt_tests, step)
            write_failing(checked, self.directory.prompt_tests / f"{step_name(step)}.jsonl")
            return summary(checked, before)

        return examine


def _places(data: StageDataset) -> Callable[[int], str]:
    """Where the row of a training example stands; what that takes is read when it is first asked."""

    @cache
    def places() -> RowLocator:
        return RowLocator(data, BuildPlan.read(data.folder / "build_plan.json"))

    return lambda example: places().example(example)


def _writer(model: LanguageModel, tokenizer: Tokenizer) -> WriteModel:
    def write(folder: Path, weights: Weights) -> None:
        stops = sorted(tokenizer.stop_ids, key=lambda token: token != tokenizer.eot_id)
        model.save_pretrained(folder, bos=tokenizer.bos_id, eos=stops, pad=tokenizer.pad, weights=weights)
        tokenizer.save(folder)

    return write


def plan_line(plan: StagePlan) -> str:
    return (
        f"plan: {plan.parameters / 1e6:.1f}M parameters, {plan.steps:,} steps, {plan.tokens:,} tokens "
        f"({plan.epochs:.3g} epochs of {plan.rows:,} rows), warm-up {plan.warmup_steps:,} steps ({plan.warmup_share:.1%}), "
        f"effective batch {plan.effective_batch_rows:,} rows ≈ {plan.effective_batch_tokens:,} tokens"
        + (f", from {plan.first_batch_rows:,} rows over {plan.batch_warmup_steps:,} steps" if plan.batch_warmup_steps else "")
    )


def _machine_line(decision: ComputeConfig) -> str:
    reason = decision.measurements.get("compile_reason", "")
    return (
        f"machine: {decision.device}, {decision.precision}, {decision.threads} threads, attention {decision.attention}, "
        f"compile {'on' if decision.compile else 'off'}" + (f" ({reason})" if reason else "")
    )
