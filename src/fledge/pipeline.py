"""The stages of a recipe in order: data, plan, evaluate, train, evaluate; then the report."""

import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, closing, nullcontext, suppress
from functools import cache
from pathlib import Path
from typing import Any

import torch

from fledge.data import PackedData, StageData
from fledge.data.building.folder import drop_items, remove_build
from fledge.data.building.shards import BuildPlan
from fledge.data.survey.recorded import Places
from fledge.errors import FledgeError
from fledge.evaluate import sample
from fledge.evaluate.regression import Case, check, failing_before, load_cases, summary, write_failing
from fledge.model.decoder import Decoder
from fledge.model.directory import load_model, save_model
from fledge.model.generate import Sampling
from fledge.objective import LanguageObjective, PreferenceObjective
from fledge.plan import StagePlan
from fledge.preparation import Preparation, Prepared, keep_tokenizer
from fledge.recipe import Recipe, load_recipe, to_yaml
from fledge.recipe.changes import Change, Changes, judge
from fledge.recipe.schema import PreferenceStage
from fledge.run import Console, RunDirectory, StageDirectory, environment, only_one, write_json, write_text
from fledge.run.alerts import Alerts, Webhook
from fledge.run.directory import read_json
from fledge.run.startup import Startup
from fledge.run.stopping import Stopping
from fledge.tokenizer import Tokenizer
from fledge.train.checkpoint import TrainState, Weights, WriteModel, step_name
from fledge.train.compiling import forget_compiled
from fledge.train.feed import refuse_small_window
from fledge.train.loop import Loop, Objective, Work
from fledge.train.machine import Decision, decide, eagerly, head_kernel, refuse_device, warm_up
from fledge.train.ranks import Ranks
from fledge.train.reference import precomputed
from fledge.train.validation import validate

AfterStage = Callable[[str, Decoder, Tokenizer, StageDirectory], None]


class Pipeline:
    """Runs a recipe in its run directory; finished stages are not repeated.

    Of several ranks the first one prepares, decides and writes; the others read what it has written. All compute."""

    def __init__(
        self,
        recipe: Recipe,
        console: Console,
        after_stage: AfterStage | None = None,
        allow: Sequence[str] = (),
        ranks: Ranks | None = None,
    ) -> None:
        """`allow`: keys that a run which was begun may go on with although what is learned depends on them."""
        self.recipe, self.console, self.after_stage, self.allow = recipe, console, after_stage, allow
        self.ranks = ranks or Ranks()
        self.changed: list[Change] = []
        self.directory = RunDirectory(Path(recipe.output) / recipe.name)
        begun = self.directory.recipe.exists() or not self.ranks.first
        self.preparation = Preparation(recipe, console.say, lambda name: self.directory.stage(name).data, begun)
        self._startup: Startup | None = Startup()
        self._token_bytes: torch.Tensor | None = None

    # -- the run ----------------------------------------------------------------------------------------------------

    def run(self, resume: bool = False) -> Path:
        """Everything, in order; returns the run directory."""
        with (
            self._only_one(),
            Stopping(self.console.say, "stopped on request; what is finished is kept") as self.stopping,
            closing(self._alerts()) as self.alerts,
        ):
            return self._run(resume)

    def _only_one(self) -> AbstractContextManager[None]:
        """The first rank locks the run for all."""
        root = self.directory.root
        return only_one(root.with_name(f".{root.name}.lock"), root) if self.ranks.first else nullcontext()

    def _alerts(self) -> Alerts:
        """Who is told, as the recipe says. FledgeError where the environment lacks a secret."""
        config, say = self.recipe.alerts, self.console.say
        if not self.ranks.first:
            return Alerts(self.recipe.name, config.level, None, None, say)
        hook = config.webhook
        webhook = None if hook is None else Webhook(hook.url, hook.headers, hook.format, say)
        return Alerts(self.recipe.name, config.level, Path(config.file) if config.file else None, webhook, say)

    def _run(self, resume: bool) -> Path:
        refuse_device(self.recipe.machine)
        self._refuse_parallel()
        self.cases = regression_cases(self.recipe)
        tokenizer, prepared = self._begin(resume) if self.ranks.first else self._join()
        if self.ranks.first:
            self.ranks.told({name: stage.plan.as_dict() for name, stage in prepared.items()})
            for name in self.recipe.stages:
                drop_items(self.directory.stage(name).data)
        results = {name: self.directory.stage(name).result() for name in self.recipe.stages}
        self._token_bytes = _token_bytes(tokenizer)
        model: Path | None = Path(self.recipe.model.path) if self.recipe.model.path else None
        for order, (name, done) in enumerate(results.items()):
            directory = self.directory.stage(name)
            if done is None:
                done = self._run_stage(prepared[name], order, tokenizer, model, directory)
            else:
                self.console.say(f"{name}: finished before, not repeated")
            model = directory.root / done["model"]
        if self.ranks.first:
            self._summarise(tokenizer)
        return self.directory.root

    def _begin(self, resume: bool) -> tuple[Tokenizer, dict[str, Prepared]]:
        """Prepare the open stages, and write the beginning of the run. FledgeError, with nothing left behind, for a run that
        cannot be."""
        self._check(resume)
        try:
            with self._timed("data"):
                tokenizer = self.preparation.tokenizer(self.directory.tokenizer)
                prepared = {name: self._prepare(name, tokenizer) for name in self._open_stages()}
        except FledgeError:
            if not self.directory.recipe.exists():
                self._leave_nothing()
            raise
        self._write_beginning(tokenizer)
        return tokenizer, prepared

    def _join(self) -> tuple[Tokenizer, dict[str, Prepared]]:
        """The same, as the first rank has prepared it."""
        self.preparation.plans = self.ranks.told(None)
        tokenizer = self.preparation.tokenizer(self.directory.tokenizer)
        return tokenizer, {name: self.preparation.prepare(name, tokenizer) for name in self.preparation.plans}

    def _prepare(self, name: str, tokenizer: Tokenizer) -> Prepared:
        prepared = self.preparation.prepare(name, tokenizer)
        try:
            refuse_small_window(prepared.extent, self.ranks)
        except FledgeError as error:
            raise FledgeError(error.what, where=f"stages.{name}.{error.where}", hint=error.hint) from None
        return prepared

    def _refuse_parallel(self) -> None:
        """FledgeError for what cannot be divided among ranks."""
        if self.recipe.machine.parallel != "fsdp":
            return
        if self.ranks.alone:
            self.console.say("note: machine.parallel fsdp has no effect: one process has nothing to divide", style="yellow")
        for name, stage in self.recipe.stages.items():
            if stage.optimizer.name == "adamw8bit":
                raise FledgeError(
                    "the blocks of 8-bit AdamW cannot be divided among processes",
                    where=f"stages.{name}.optimizer.name",
                    hint="set adamw or muon, whose state is divided, or machine.parallel to ddp",
                )

    def _open_stages(self) -> list[str]:
        return [name for name in self.recipe.stages if self.directory.stage(name).result() is None]

    def _timed(self, name: str) -> AbstractContextManager[None]:
        """Time that belongs to a part of the start."""
        return nullcontext() if self._startup is None else self._startup.part(name)

    def _ready(self) -> Startup | None:
        """Where the time before the first step of all went; told once."""
        startup, self._startup = self._startup, None
        return startup

    def _leave_nothing(self) -> None:
        """Take away what was prepared for a run that cannot begin."""
        for name in self.recipe.stages:
            remove_build(self.directory.stage(name).data)
        for folder in (*(self.directory.stage(name).root for name in self.recipe.stages), self.directory.root):
            with suppress(OSError):
                folder.rmdir()

    def _check(self, resume: bool) -> None:
        """Go on with a run that was begun, with what of the recipe may be another than then; FledgeError for the rest."""
        folder = self.directory
        if not folder.recipe.exists():
            return
        before = load_recipe([str(folder.recipe)])
        begun = [name for name in before.stages if folder.stage(name).events.exists()]
        changes = judge(before, self.recipe, begun, self.allow)
        refused = [*changes.impossible, *changes.on_request]
        if refused:
            raise FledgeError(
                "the recipe differs from the one this run was begun with:" + "".join(f"\n  {change}" for change in refused),
                where=str(folder.recipe),
                hint=_way_on(folder.recipe, changes),
            )
        if not resume:
            self.console.say(f"this run was begun before: going on ({folder.root})")
        for change in changes.taken:
            self.console.say(f"changed: {change}", style="yellow")
        self.changed = changes.taken

    def _take(self) -> None:
        """Make the changed recipe that of the run; the one before is kept beside it."""
        folder, changed = self.directory, [change.key for change in self.changed]
        number = len(list(folder.root.glob("recipe.*.yaml"))) + 1
        write_text(folder.root / f"recipe.{number}.yaml", folder.recipe.read_text(encoding="utf-8"))
        if any(key.startswith("machine.") and not key.startswith(("machine.probe", "machine.memory")) for key in changed):
            for name in self.recipe.stages:
                if folder.stage(name).result() is None:
                    (folder.stage(name).root / "machine.json").unlink(missing_ok=True)
        write_text(folder.recipe, to_yaml(self.recipe))

    def _write_beginning(self, tokenizer: Tokenizer) -> None:
        """Recipe, machine and tokenizer: once every stage is known to be possible, so that a mistake leaves no run."""
        folder = self.directory
        keep_tokenizer(tokenizer, folder.tokenizer)
        if not (folder.root / "environment.json").exists():
            write_json(folder.root / "environment.json", environment())
        if not folder.recipe.exists():  # last: with it, the run has begun
            write_text(folder.recipe, to_yaml(self.recipe))
        elif self.changed:
            self._take()
        if tokenizer.added:
            self.console.say(f"note: {tokenizer.added} control tokens of the chat template were added to the tokenizer")

    def _start_model(self, prepared: Prepared, tokenizer: Tokenizer, before: Path | None) -> Decoder:
        path = Path(prepared.stage.start) if prepared.stage.start else before
        if path is None:
            model = Decoder(self.recipe.model, tokenizer.vocab_size)
            model.initialise(self.recipe.seed)
            return model
        return load_model(path)

    def _decision(self, prepared: Prepared, model: Decoder, directory: StageDirectory) -> Decision:
        """As it was measured when the stage began, and applied; the last bits of every number depend on it."""
        file = directory.root / "machine.json"
        stage, batch = prepared.stage, prepared.data.train.batch(0, prepared.stage.batch.rows)

        def objective(kernel: Any) -> Any:
            if isinstance(stage, PreferenceStage):
                return PreferenceObjective(stage.beta, 0.0, 0.0, torch.zeros(prepared.data.train.examples.count, 2))
            return LanguageObjective(stage.label_smoothing, kernel)

        if file.exists():
            decision = Decision.from_dict(read_json(file))
            if decision.device == "cuda" and not torch.cuda.is_available():
                raise FledgeError("this stage was begun on a CUDA device; none is at hand", where=str(file))
            decision.apply(model)
            compiling = warm_up(decision, model, batch, objective, self.console.say)
        else:
            micro_steps = prepared.extent.micro_batches(prepared.extent.steps)
            decision = decide(self.recipe.machine, model, batch, objective, micro_steps, self.console.say)
            decision.apply(model)
            write_json(file, decision.as_dict())
            compiling = float(decision.evidence.get("compile_seconds", 0.0))
        if self._startup is not None:
            self._startup.take("compile", compiling, out_of="probe")
        return decision

    def _objectives(
        self, prepared: Prepared, model: Decoder, decision: Decision, directory: StageDirectory, start: Decoder
    ) -> tuple[Objective, PreferenceObjective | None]:
        """The objective of training, and for preferences that of validation with a reference table of its own."""
        stage = prepared.stage
        if not isinstance(stage, PreferenceStage):
            return LanguageObjective(stage.label_smoothing, head_kernel(decision)), None

        def build(data: PackedData, part: str) -> PreferenceObjective:
            if stage.reference == "live":
                reference: Any = start
            else:
                self.console.say(f"reference log-probabilities of {data.examples.count:,} {part} pairs …")
                cache = directory.root / f"reference.{part}.safetensors"
                reference = precomputed(start, data, stage.batch.rows, decision, cache).to(decision.device)
            return PreferenceObjective(stage.beta, stage.label_smoothing, stage.sft_weight, reference)

        validation = prepared.data.validation
        return build(prepared.data.train, "training"), build(validation, "validation") if validation else None

    def _keep_account(self, prepared: Prepared, directory: StageDirectory) -> None:
        """Write data.json; FledgeError where a stage that has begun would go on with other data."""
        file, account = directory.root / "data.json", prepared.data.account()
        if directory.events.exists() and file.exists():
            before = read_json(file)
            prints = [[part and part["fingerprint"] for part in (one["train"], one["validation"])] for one in (before, account)]
            if prints[0] != prints[1]:
                raise FledgeError(
                    f"the data of stage {prepared.name} changed since it began: it cannot be resumed exactly",
                    where=str(file),
                    hint="put the files back as they were, or start under another --name",
                )
        write_json(file, account)

    def _run_stage(
        self, prepared: Prepared, order: int, tokenizer: Tokenizer, before: Path | None, directory: StageDirectory
    ) -> dict[str, Any]:
        name, started = prepared.name, time.monotonic()
        self.console.title(name)
        for line in prepared.data.ledger.lines():
            self.console.say(line)
        changed = {change.key: [change.before, change.after] for change in self.changed if change.concerns(name)}
        if self.ranks.first:
            self._keep_account(prepared, directory)
            of_stage = any(key.startswith(f"stages.{name}.") for key in changed)
            if of_stage or not (directory.root / "plan.json").exists():  # as it was planned when it began
                write_json(directory.root / "plan.json", prepared.plan.as_dict())
        self.console.say(_plan_line(prepared.plan))
        for note in prepared.plan.notes:
            self.console.say(f"  {note}")
        model = self._start_model(prepared, tokenizer, before)
        model.recompute_every = self.recipe.machine.recomputed
        forget_compiled()
        with self._timed("probe"), self.ranks.first_first():
            decision = self._decision(prepared, model, directory)
        self.console.say(_machine_line(decision))
        start = model
        if isinstance(prepared.stage, PreferenceStage) and prepared.stage.reference == "live":
            start = self._start_model(prepared, tokenizer, before)
            decision.apply(start).eval().requires_grad_(False)
        with self.ranks.first_first():
            objective, validation_objective = self._objectives(prepared, model, decision, directory, start)
        before_file = directory.evaluations / "before.json"
        if self.ranks.told(not before_file.exists()):
            with self._timed("evaluation"):
                self._measure(before_file, prepared, model, tokenizer, validation_objective, prepared.stage.batch.rows)
        divided = self.recipe.machine.parallel == "fsdp" and not self.ranks.alone
        work = Work(
            prepared.stage, model, objective, prepared.data.train, prepared.data.validation, validation_objective,
            prepared.extent, decision, directory, _writer(model, tokenizer), self.stopping,
            self.preparation.seed(name), self.recipe.logging.every, self.recipe.logging.tensorboard,
            _places(prepared.data), self.alerts, self._examiner(prepared, tokenizer, directory), self._token_bytes,
            self._ready, changed, self.ranks, divided,
        )  # fmt: skip
        state = Loop(work, self.console).run()
        self.ranks.wait()  # until the last checkpoint is there
        step = self._chosen_step(prepared, state, directory)
        averaged = prepared.stage.averaging.decay is not None
        chosen = Path("checkpoints") / step_name(step) / ("averaged" if averaged else "model")
        if divided:
            model = decision.apply(load_model(directory.root / chosen))
        elif step != state.step or averaged:
            model.load_state_dict(load_model(directory.root / chosen).state_dict())
        rows = state.micro or prepared.stage.batch.rows
        self._measure(directory.evaluations / "after.json", prepared, model, tokenizer, validation_objective, rows)
        if self.after_stage is not None and self.ranks.first:
            with eagerly():
                self.after_stage(name, model, tokenizer, directory)
        done = {"order": order, "model": str(chosen), "step": state.step, "seconds": state.seconds,
                "wall_seconds": round(time.monotonic() - started, 3), "stop": state.stop}  # fmt: skip
        if self.ranks.first:
            write_json(directory.done, done)
        return done

    def _chosen_step(self, prepared: Prepared, state: TrainState, directory: StageDirectory) -> int:
        """The step whose checkpoint goes on."""
        best = state.best_step
        if prepared.stage.keep != "best" or best is None or best == state.step:
            return state.step
        if not (directory.checkpoints / step_name(best)).exists():
            self.console.say(f"warning: the best checkpoint, of step {best:,}, was not saved: the last one goes on", "yellow")
            return state.step
        self.console.say(f"the best checkpoint goes on: step {best:,}")
        return best

    def _measure(
        self,
        file: Path,
        prepared: Prepared,
        model: Decoder,
        tokenizer: Tokenizer,
        validation_objective: PreferenceObjective | None,
        micro: int,
    ) -> None:
        """Perplexity and token accuracy on validation, `micro` rows at a time; and answers to the fixed prompts, by the first
        rank."""
        measured: dict[str, Any] = {}
        stage = prepared.stage
        if prepared.data.validation is not None:
            measured = validate(
                model,
                prepared.data.validation,
                stage.evaluation.max_rows,
                micro,
                validation_objective,
                self._token_bytes,
                ranks=self.ranks,
            )
            self.console.say(
                f"{file.stem} {prepared.name}: validation perplexity {measured['perplexity']:.4g}, "
                f"token accuracy {measured['token_accuracy']:.1%}"
            )
        if not self.ranks.first:
            return
        with eagerly():
            samples = sample(model, tokenizer, self.recipe.samples, stage.kind)
        write_json(file, {**measured, "samples": [one.as_dict() for one in samples]})

    def _examiner(
        self, prepared: Prepared, tokenizer: Tokenizer, directory: StageDirectory
    ) -> Callable[[Decoder, int], dict[str, Any]] | None:
        """Asks the stage's regression prompts; failing cases are kept in `regression/step-….jsonl`."""
        config = prepared.stage.regression
        if config is None:
            return None
        cases, sampling = self.cases[prepared.name], Sampling(max_new_tokens=config.max_new_tokens)

        def examine(model: Decoder, step: int) -> dict[str, Any]:
            with eagerly():
                checked = check(model, tokenizer, cases, sampling)
            before = failing_before(directory.regression, step)
            write_failing(checked, directory.regression / f"{step_name(step)}.jsonl")
            return summary(checked, before)

        return examine

    def _summarise(self, tokenizer: Tokenizer) -> None:
        results = [self.directory.stage(name).result() or {} for name in self.recipe.stages]
        summary = {
            "name": self.recipe.name,
            "seconds": sum(result["wall_seconds"] for result in results),
            "stages": list(self.recipe.stages),
            "tokenizer": {
                "vocab_size": tokenizer.vocab_size,
                "trained": not (self.recipe.tokenizer.path or self.preparation.first_model()),
            },
        }
        write_json(self.directory.summary, summary)


def _way_on(recipe: Path, changes: Changes) -> str:
    """What to do about a recipe that differs."""
    if changes.impossible:
        keys = ", ".join(change.key for change in changes.impossible[:3])
        return f"{keys} cannot change in a run that has begun: choose another --name, or go on with `fledge train {recipe}`"
    allow = " ".join(f"--allow {change.key}" for change in changes.on_request)
    return f"go on with them: {allow}; or without them: `fledge train {recipe}`; or choose another --name"


def _token_bytes(tokenizer: Tokenizer) -> torch.Tensor | None:
    """Bytes of each token's text, where they are fixed."""
    sizes = tokenizer.token_bytes()
    return None if sizes is None else torch.tensor(sizes, dtype=torch.float32)


def regression_cases(recipe: Recipe) -> dict[str, list[Case]]:
    """The regression prompts of the stages that have some. FledgeError for a file that is missing or wrong."""
    return {
        name: load_cases(Path(stage.regression.prompts))
        for name, stage in recipe.stages.items()
        if stage.regression is not None
    }


def _places(data: StageData) -> Callable[[int], str]:
    """Where the row of a training example stands; what that takes is read when it is first asked."""

    @cache
    def places() -> Places:
        return Places(data, BuildPlan.read(data.folder / "plan.json"))

    return lambda example: places().example(example)


def _writer(model: Decoder, tokenizer: Tokenizer) -> WriteModel:
    def write(folder: Path, weights: Weights) -> None:
        stops = sorted(tokenizer.stop_ids, key=lambda token: token != tokenizer.turn_end)
        save_model(model, folder, bos=tokenizer.document_start, eos=stops, pad=tokenizer.pad, weights=weights)
        tokenizer.save(folder)

    return write


def _plan_line(plan: StagePlan) -> str:
    return (
        f"plan: {plan.parameters / 1e6:.1f}M parameters, {plan.steps:,} steps, {plan.tokens:,} tokens "
        f"({plan.epochs:.3g} epochs of {plan.rows:,} rows), warm-up {plan.warmup_steps:,} steps ({plan.warmup_share:.1%}), "
        f"effective batch {plan.effective_batch_rows:,} rows ≈ {plan.effective_batch_tokens:,} tokens"
        + (f", from {plan.first_batch_rows:,} rows over {plan.batch_warmup_steps:,} steps" if plan.batch_warmup_steps else "")
    )


def _machine_line(decision: Decision) -> str:
    reason = decision.evidence.get("compile_reason", "")
    return (
        f"machine: {decision.device}, {decision.precision}, {decision.threads} threads, attention {decision.attention}, "
        f"compile {'on' if decision.compile else 'off'}" + (f" ({reason})" if reason else "")
    )


def dry_run(recipe: Recipe, console: Console) -> str:
    """The resolved recipe and the plan of every stage; nothing is written. FledgeError for what this machine cannot do."""
    refuse_device(recipe.machine)
    regression_cases(recipe)
    preparation = Preparation(recipe, console.say)
    tokenizer = preparation.tokenizer()
    lines = [to_yaml(recipe).rstrip(), "", f"# tokenizer: {tokenizer.vocab_size:,} tokens"]
    for name in recipe.stages:
        prepared = preparation.prepare(name, tokenizer)
        lines += [f"# {name}", *(f"#   {line}" for line in prepared.data.ledger.lines())]
        account = prepared.data.train.account()
        lines.append(f"#   {account['supervised_tokens']:,} supervised tokens an epoch, padding {account['padding_share']:.1%}")
        lines += [f"#   {_plan_line(prepared.plan)}", *(f"#   {note}" for note in prepared.plan.notes)]
        if prepared.plan.active_parameters != prepared.plan.parameters:
            lines.append(f"#   mixture of experts: {prepared.plan.active_parameters / 1e6:.1f}M parameters active per token")
    return "\n".join(lines)
