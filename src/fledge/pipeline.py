"""A run: the stages of a recipe in order, prepared together and then trained one after another."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, closing, nullcontext, suppress
from importlib.util import find_spec
from pathlib import Path

import torch

from fledge.autotune.autotune import check_device
from fledge.data.build.directory import drop_items, remove_build
from fledge.distributed.context import DistributedContext
from fledge.errors import FledgeError, missing_extra
from fledge.evaluate.bleu import import_sacrebleu
from fledge.evaluate.metrics import needs_sacrebleu
from fledge.evaluate.prompt_tests import check_cases
from fledge.evaluate.samples import check_samples
from fledge.evaluate.sets.base import EvaluationSet
from fledge.evaluate.sets.in_stage import check_sets, load_stage_sets
from fledge.monitor.run_logger import show_finding
from fledge.pinned_prompt_tests import PinnedPromptTests
from fledge.plan.warnings import PlanError
from fledge.prepare import Preparation, PreparedStage
from fledge.recipe import Recipe, differences, to_yaml
from fledge.recipe.initial_weights import first_initial_weights
from fledge.resume import RunHistory
from fledge.run import Console, RunDirectory, environment, exclusive_lock, write_json, write_text
from fledge.run.alerts import Alerts, Webhook, check_alert_file
from fledge.run.sinks import check_sinks
from fledge.run.startup import StartupTimer
from fledge.run.stopping import SignalHandler
from fledge.run.text_files import remove_partial_files
from fledge.run_context import AfterStage, RunContext
from fledge.stage import StageRunner
from fledge.tokenizer import Tokenizer
from fledge.tokenizer.saving import save_tokenizer
from fledge.training.batch_source import check_enough_rows

NOT_SHARDED = {"adamw8bit": "the blocks of 8-bit AdamW", "adafactor": "the means of rows and columns of Adafactor"}
"""The state of optimizers that FSDP cannot shard."""


class Pipeline:
    """Runs the stages of a recipe in its run directory; finished stages are not repeated.

    Of several ranks the main process prepares the data and writes the files; the others read them. All ranks train.
    """

    def __init__(
        self,
        recipe: Recipe,
        console: Console,
        after_stage: AfterStage | None = None,
        allow: Sequence[str] = (),
        ranks: DistributedContext | None = None,
        *,
        startup: StartupTimer | None = None,
        micro_steps: Mapping[str, int] | None = None,
    ) -> None:
        """`allow`: keys that may differ from the recipe of a run that is resumed, although what is learned depends on them.

        `after_stage` is called in the main process with the trained model of each stage. `startup`: the timer of a caller that
        has done something else before. `micro_steps`: micro-batches of each stage that the time of compiling is weighed
        against, if these are not those of the recipe.
        """
        self.micro_steps = micro_steps or {}
        self.recipe, self.console, self.after_stage, self.allow = recipe, console, after_stage, allow
        self.ranks = ranks or DistributedContext()
        self.directory = RunDirectory(Path(recipe.output) / recipe.name)
        self.history = RunHistory(self.directory, recipe, console)
        resuming = self.history.exists or not self.ranks.is_main_process
        self.preparation = Preparation(
            recipe, console.log, lambda name: self.directory.stage(name).data, resuming=resuming, run=self.directory
        )
        self.prompt_tests = PinnedPromptTests(recipe, self.directory, console.log)
        self.evaluation_sets: dict[str, list[EvaluationSet]] = {}  # of unfinished stages; the main process has them
        self._startup = startup or StartupTimer()

    # -- the run ----------------------------------------------------------------------------------------------------

    def run(self, resume: bool = False, locked: bool = False) -> Path:
        """Run all unfinished stages in order and return the run directory.

        `resume` says that an earlier run is expected; `locked`, that the caller holds the lock of the run.

        Raises FledgeError if the recipe differs from the earlier run's in a way
        that `allow` does not name, if data or machine do not fit the recipe, or if another process has locked the run.
        """
        with (
            nullcontext() if locked else self._lock(),
            SignalHandler(self.console.log, "stopped on request; what is finished is kept") as self.stopping,
            closing(self._alerts()) as self.alerts,
        ):
            if self.ranks.is_main_process:
                remove_partial_files(self.directory.root)
            return self._run(resume)

    def _lock(self) -> AbstractContextManager[None]:
        """The lock of the run, which the main process holds for all ranks."""
        return exclusive_lock(self.directory.root) if self.ranks.is_main_process else nullcontext()

    def _alerts(self) -> Alerts:
        """The receivers of alerts. Raises FledgeError if an environment variable that the recipe names is not set."""
        config, log = self.recipe.alerts, self.console.log
        if not self.ranks.is_main_process:
            return Alerts(self.recipe.name, config.level, None, None, log)
        hook = config.webhook
        if config.file is not None:
            check_alert_file(Path(config.file))
        webhook = None if hook is None else Webhook(hook.url, hook.headers, hook.format, log)
        return Alerts(self.recipe.name, config.level, Path(config.file) if config.file else None, webhook, log)

    def _run(self, resume: bool) -> Path:
        check_device(self.recipe.runtime)
        check_sharding(self.recipe)
        if self.recipe.runtime.parallelism == "fsdp" and not self.ranks.is_distributed:
            self.console.log("note: runtime.parallelism fsdp has no effect: one process has nothing to divide", style="yellow")
        check_extras(self.recipe)
        tokenizer, prepared = self._begin(resume) if self.ranks.is_main_process else self._load_prepared()
        if self.ranks.is_main_process:
            self.ranks.broadcast_object({name: stage.plan.as_dict() for name, stage in prepared.items()})
            for name in self.recipe.stages:
                drop_items(self.directory.stage(name).data)
        results = {name: None if name in prepared else self.directory.stage(name).result() for name in self.recipe.stages}
        shared = RunContext(
            recipe=self.recipe,
            console=self.console,
            tokenizer=tokenizer,
            stopping=self.stopping,
            alerts=self.alerts,
            prompt_test_cases=self.prompt_tests.cases,
            evaluation_sets=self.evaluation_sets,
            ranks=self.ranks,
            startup=self._startup,
            after_stage=self.after_stage,
            recipe_changes=self.history.changed,
            adopt_recipe=self.history.adopt,
            measure_again=self.history.needs_measuring(),
            token_bytes=_token_bytes(tokenizer),
            micro_steps=self.micro_steps,
        )
        models: dict[str, Path] = {}
        for order, (name, result) in enumerate(results.items()):
            directory = self.directory.stage(name)
            if result is None:
                runner = StageRunner(
                    shared,
                    prepared[name],
                    order=order,
                    seed=self.preparation.seed(name),
                    init_directory=self.preparation.start_models.of_stage(name).resolve(models.__getitem__),
                    directory=directory,
                )
                result = runner.run()
                self.ranks.barrier()  # what the main process writes last is there for the next stage of every rank
            else:
                self.console.log(f"{name}: finished before, not repeated")
            models[name] = directory.root / result["model"]
        if self.ranks.is_main_process:
            self._summarize(tokenizer)
        return self.directory.root

    def _begin(self, resume: bool) -> tuple[Tokenizer, dict[str, PreparedStage]]:
        """Prepare the unfinished stages and write the first files of the run. A FledgeError leaves nothing behind."""
        self._compare_with_earlier_run(resume)
        self.prompt_tests.load(self._unfinished_stages())
        self.evaluation_sets = {name: load_stage_sets(self.recipe, name) for name in self._unfinished_stages()}
        try:
            with self._startup.phase("data"):
                if not self.preparation.resuming:
                    self.preparation.check_start_models()
                tokenizer = self.preparation.tokenizer(self.directory.tokenizer if self.preparation.resuming else None)
                for name in self._unfinished_stages():
                    self.preparation.model_cost(name, tokenizer)
                    self._check_prompts(name, tokenizer)
                prepared = {name: self._prepare(name, tokenizer) for name in self._unfinished_stages()}
            if self.history.extended is not None:
                self.history.check_extension(prepared[self.history.extended].plan.steps)
        except FledgeError:
            if not self.directory.recipe.exists():
                self._remove_partial_run()
            raise
        self._write_first_files(tokenizer)
        return tokenizer, prepared

    def _load_prepared(self) -> tuple[Tokenizer, dict[str, PreparedStage]]:
        """The tokenizer and the unfinished stages as the main process has prepared them."""
        self.preparation.plans = self.ranks.broadcast_object(None)
        self.prompt_tests.load_pinned(self.preparation.plans)
        tokenizer = self.preparation.tokenizer(self.directory.tokenizer)
        return tokenizer, {name: self.preparation.prepare(name, tokenizer) for name in self.preparation.plans}

    def _check_prompts(self, name: str, tokenizer: Tokenizer) -> None:
        """Raise FledgeError for prompts of samples and tests that the model of a stage could not answer after its last step."""
        positions = self.preparation.model_cost(name, tokenizer).config.max_position_embeddings
        check_samples(tokenizer, self.recipe.generation_samples, self.recipe.stages[name].kind, positions)
        check_cases(tokenizer, self.prompt_tests.cases.get(name, []), positions)
        check_sets(self.evaluation_sets.get(name, []), tokenizer, positions)

    def _prepare(self, name: str, tokenizer: Tokenizer) -> PreparedStage:
        prepared = prepare_stage(self.preparation, name, tokenizer, self.console)
        try:
            check_enough_rows(prepared.horizon, self.ranks)
        except FledgeError as error:
            raise FledgeError(error.what, where=f"stages.{name}.{error.where}", hint=error.hint) from None
        for warning in prepared.warnings:
            show_finding(self.console, warning)
        return prepared

    def _unfinished_stages(self) -> list[str]:
        return [name for name in self.recipe.stages if not self.history.is_finished(name)]

    def _compare_with_earlier_run(self, resume: bool) -> None:
        """Check the changes of the recipe since the run began. A run that has not begun to train is begun anew if its recipe or
        its data differ now."""
        history = self.history
        if history.before is None:
            return
        if history.has_begun():
            history.check_changes(self.allow, resume)
            if (change := self.preparation.tokenizer_change(self.directory.tokenizer)) is not None:
                self.console.log(f"note: the run goes on with the tokenizer that it began with; {change}")
        elif differences(history.before, self.recipe) or self.preparation.inputs_differ(self.directory.tokenizer):
            self.console.log(f"note: the run in {self.directory.root} has not begun to train: it is prepared anew")
            history.remove_preparation([*history.before.stages, *self.recipe.stages])
            self.preparation.resuming = False

    def _remove_partial_run(self) -> None:
        """Remove the files that were prepared for a run that cannot begin."""
        for name in self.recipe.stages:
            remove_build(self.directory.stage(name).data)
        for folder in (*(self.directory.stage(name).root for name in self.recipe.stages), self.directory.root):
            with suppress(OSError):
                folder.rmdir()

    def _write_first_files(self, tokenizer: Tokenizer) -> None:
        """Write recipe, environment and tokenizer. This comes after all checks, so that a mistake leaves no run."""
        folder = self.directory
        save_tokenizer(tokenizer, folder.tokenizer, replace=not self.preparation.resuming)
        self.prompt_tests.pin()
        if not (folder.root / "environment.json").exists():
            write_json(folder.root / "environment.json", environment())
        self.preparation.start_models.pin()
        if not folder.recipe.exists():  # last: a run with this file is prepared
            write_text(folder.recipe, to_yaml(self.recipe))

    def _summarize(self, tokenizer: Tokenizer) -> None:
        results = [self.directory.stage(name).result() or {} for name in self.recipe.stages]
        summary = {
            "name": self.recipe.name,
            "seconds": sum(result["wall_seconds"] for result in results),
            "stages": list(self.recipe.stages),
            "tokenizer": {
                "vocab_size": tokenizer.vocab_size,
                "trained": not (self.recipe.tokenizer.path or first_initial_weights(self.recipe).directory),
            },
        }
        write_json(self.directory.summary, summary)


def _token_bytes(tokenizer: Tokenizer) -> torch.Tensor | None:
    """Bytes of each token's text [V]; None for a tokenizer whose tokens have no fixed text."""
    sizes = tokenizer.token_bytes()
    return None if sizes is None else torch.tensor(sizes, dtype=torch.float32)


def prepare_stage(preparation: Preparation, name: str, tokenizer: Tokenizer, console: Console) -> PreparedStage:
    """A prepared stage. If its plan fails, the console shows what else is doubtful about it."""
    try:
        return preparation.prepare(name, tokenizer)
    except PlanError as error:
        for finding in error.others:
            show_finding(console, finding)
        raise


def check_sharding(recipe: Recipe) -> None:
    """Raise FledgeError for a stage that FSDP cannot divide, if the recipe asks for it."""
    if recipe.runtime.parallelism != "fsdp":
        return
    for name, stage in recipe.stages.items():
        if stage.optimizer.name in NOT_SHARDED:
            raise FledgeError(
                f"{NOT_SHARDED[stage.optimizer.name]} cannot be divided among processes",
                where=f"stages.{name}.optimizer.name",
                hint="set adamw or muon, whose state is divided, or runtime.parallelism to ddp",
            )


def check_extras(recipe: Recipe) -> None:
    """Raise FledgeError if the recipe asks for a receiver of figures, BLEU or 4-bit weights and the library, which is needed
    later, is not installed."""
    check_sinks(recipe.logging)
    for name, stage in recipe.stages.items():
        answers = stage.evaluation.generated_answers
        if answers is not None and needs_sacrebleu(answers.scores):
            key = "bleu" if answers.bleu is not None else "metrics"
            import_sacrebleu(f"stages.{name}.evaluation.generated_answers.{key}")
        if stage.quantization is not None and find_spec("bitsandbytes") is None:
            raise missing_extra("bitsandbytes", "qlora", f"stages.{name}.quantization")
