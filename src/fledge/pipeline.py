"""The stages of a recipe in order: data, plan, evaluate, train, evaluate; then the report."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, closing, nullcontext, suppress
from pathlib import Path

import torch

from fledge.autotune.autotune import check_device
from fledge.data.build.directory import drop_items, remove_build
from fledge.distributed.context import DistributedContext
from fledge.errors import FledgeError
from fledge.evaluate.prompt_tests import Case, load_cases
from fledge.prepare import Preparation, PreparedStage, save_tokenizer_once
from fledge.recipe import Recipe, load_recipe, to_yaml
from fledge.recipe.initial_weights import first_initial_weights, initial_weights
from fledge.recipe.resume_policy import Change, Changes, compare_recipes
from fledge.run import Console, RunDirectory, environment, exclusive_lock, write_json, write_text
from fledge.run.alerts import Alerts, Webhook
from fledge.run.startup import StartupTimer
from fledge.run.stopping import SignalHandler
from fledge.stage import AfterStage, RunContext, StageRunner, plan_line
from fledge.tokenizer import Tokenizer
from fledge.training.batch_source import check_enough_rows


class Pipeline:
    """Runs a recipe in its run directory; finished stages are not repeated.

    Of several ranks the first one prepares, decides and writes; the others read what it has written. All compute."""

    def __init__(
        self,
        recipe: Recipe,
        console: Console,
        after_stage: AfterStage | None = None,
        allow: Sequence[str] = (),
        ranks: DistributedContext | None = None,
    ) -> None:
        """`allow`: keys that a run which was begun may go on with although what is learned depends on them."""
        self.recipe, self.console, self.after_stage, self.allow = recipe, console, after_stage, allow
        self.ranks = ranks or DistributedContext()
        self.changed: list[Change] = []
        self.directory = RunDirectory(Path(recipe.output) / recipe.name)
        begun = self.directory.recipe.exists() or not self.ranks.is_main_process
        self.preparation = Preparation(recipe, console.log, lambda name: self.directory.stage(name).data, begun)
        self._startup = StartupTimer()

    # -- the run ----------------------------------------------------------------------------------------------------

    def run(self, resume: bool = False) -> Path:
        """Everything, in order; returns the run directory."""
        with (
            self._only_one(),
            SignalHandler(self.console.log, "stopped on request; what is finished is kept") as self.stopping,
            closing(self._alerts()) as self.alerts,
        ):
            return self._run(resume)

    def _only_one(self) -> AbstractContextManager[None]:
        """The first rank locks the run for all."""
        root = self.directory.root
        return exclusive_lock(root.with_name(f".{root.name}.lock"), root) if self.ranks.is_main_process else nullcontext()

    def _alerts(self) -> Alerts:
        """Who is told, as the recipe says. FledgeError where the environment lacks a secret."""
        config, say = self.recipe.alerts, self.console.log
        if not self.ranks.is_main_process:
            return Alerts(self.recipe.name, config.level, None, None, say)
        hook = config.webhook
        webhook = None if hook is None else Webhook(hook.url, hook.headers, hook.format, say)
        return Alerts(self.recipe.name, config.level, Path(config.file) if config.file else None, webhook, say)

    def _run(self, resume: bool) -> Path:
        check_device(self.recipe.runtime)
        self._check_parallelism()
        cases = regression_cases(self.recipe)
        tokenizer, prepared = self._begin(resume) if self.ranks.is_main_process else self._load_prepared()
        if self.ranks.is_main_process:
            self.ranks.broadcast_object({name: stage.plan.as_dict() for name, stage in prepared.items()})
            for name in self.recipe.stages:
                drop_items(self.directory.stage(name).data)
        results = {name: self.directory.stage(name).result() for name in self.recipe.stages}
        shared = RunContext(
            recipe=self.recipe,
            console=self.console,
            tokenizer=tokenizer,
            stopping=self.stopping,
            alerts=self.alerts,
            prompt_test_cases=cases,
            ranks=self.ranks,
            startup=self._startup,
            after_stage=self.after_stage,
            recipe_changes=self.changed,
            token_bytes=_token_bytes(tokenizer),
        )
        models: dict[str, Path] = {}
        for order, (name, result) in enumerate(results.items()):
            directory = self.directory.stage(name)
            if result is None:
                seed, init_directory = (
                    self.preparation.seed(name),
                    initial_weights(self.recipe, name).resolve(models.__getitem__),
                )
                runner = StageRunner(
                    shared, prepared[name], order=order, seed=seed, init_directory=init_directory, directory=directory
                )
                result = runner.run()
            else:
                self.console.log(f"{name}: finished before, not repeated")
            models[name] = directory.root / result["model"]
        if self.ranks.is_main_process:
            self._summarise(tokenizer)
        return self.directory.root

    def _begin(self, resume: bool) -> tuple[Tokenizer, dict[str, PreparedStage]]:
        """Prepare the open stages, and write the beginning of the run. FledgeError, with nothing left behind, for a run that
        cannot be."""
        self._check(resume)
        try:
            with self._startup.phase("data"):
                tokenizer = self.preparation.tokenizer(self.directory.tokenizer)
                prepared = {name: self._prepare(name, tokenizer) for name in self._open_stages()}
        except FledgeError:
            if not self.directory.recipe.exists():
                self._remove_partial_run()
            raise
        self._write_beginning(tokenizer)
        return tokenizer, prepared

    def _load_prepared(self) -> tuple[Tokenizer, dict[str, PreparedStage]]:
        """The same, as the first rank has prepared it."""
        self.preparation.plans = self.ranks.broadcast_object(None)
        tokenizer = self.preparation.tokenizer(self.directory.tokenizer)
        return tokenizer, {name: self.preparation.prepare(name, tokenizer) for name in self.preparation.plans}

    def _prepare(self, name: str, tokenizer: Tokenizer) -> PreparedStage:
        prepared = self.preparation.prepare(name, tokenizer)
        try:
            check_enough_rows(prepared.extent, self.ranks)
        except FledgeError as error:
            raise FledgeError(error.what, where=f"stages.{name}.{error.where}", hint=error.hint) from None
        return prepared

    def _check_parallelism(self) -> None:
        """FledgeError for what cannot be divided among ranks."""
        if self.recipe.runtime.parallelism != "fsdp":
            return
        if not self.ranks.is_distributed:
            self.console.log("note: runtime.parallelism fsdp has no effect: one process has nothing to divide", style="yellow")
        for name, stage in self.recipe.stages.items():
            if stage.optimizer.name == "adamw8bit":
                raise FledgeError(
                    "the blocks of 8-bit AdamW cannot be divided among processes",
                    where=f"stages.{name}.optimizer.name",
                    hint="set adamw or muon, whose state is divided, or runtime.parallelism to ddp",
                )

    def _open_stages(self) -> list[str]:
        return [name for name in self.recipe.stages if self.directory.stage(name).result() is None]

    def _remove_partial_run(self) -> None:
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
        changes = compare_recipes(before, self.recipe, begun, self.allow)
        refused = [*changes.rejected, *changes.needs_allow]
        if refused:
            raise FledgeError(
                "the recipe differs from the one this run was begun with:" + "".join(f"\n  {change}" for change in refused),
                where=str(folder.recipe),
                hint=_resume_hint(folder.recipe, changes),
            )
        if not resume:
            self.console.log(f"this run was begun before: going on ({folder.root})")
        for change in changes.applied:
            self.console.log(f"changed: {change}", style="yellow")
        self.changed = changes.applied

    def _adopt_changed_recipe(self) -> None:
        """Make the changed recipe that of the run; the one before is kept beside it."""
        folder, changed = self.directory, [change.key for change in self.changed]
        number = len(list(folder.root.glob("recipe.*.yaml"))) + 1
        write_text(folder.root / f"recipe.{number}.yaml", folder.recipe.read_text(encoding="utf-8"))
        if any(
            key.startswith("runtime.") and not key.startswith(("runtime.autotune", "runtime.memory_budget")) for key in changed
        ):
            for name in self.recipe.stages:
                if folder.stage(name).result() is None:
                    (folder.stage(name).root / "compute.json").unlink(missing_ok=True)
        write_text(folder.recipe, to_yaml(self.recipe))

    def _write_beginning(self, tokenizer: Tokenizer) -> None:
        """Recipe, machine and tokenizer: once every stage is known to be possible, so that a mistake leaves no run."""
        folder = self.directory
        save_tokenizer_once(tokenizer, folder.tokenizer)
        if not (folder.root / "environment.json").exists():
            write_json(folder.root / "environment.json", environment())
        if not folder.recipe.exists():  # last: with it, the run has begun
            write_text(folder.recipe, to_yaml(self.recipe))
        elif self.changed:
            self._adopt_changed_recipe()
        if tokenizer.added:
            self.console.log(f"note: {tokenizer.added} control tokens of the chat template were added to the tokenizer")

    def _summarise(self, tokenizer: Tokenizer) -> None:
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


def _resume_hint(recipe: Path, changes: Changes) -> str:
    """What to do about a recipe that differs."""
    if changes.rejected:
        keys = ", ".join(change.key for change in changes.rejected[:3])
        return f"{keys} cannot change in a run that has begun: choose another --name, or go on with `fledge train {recipe}`"
    allow = " ".join(f"--allow-change {change.key}" for change in changes.needs_allow)
    return f"go on with them: {allow}; or without them: `fledge train {recipe}`; or choose another --name"


def _token_bytes(tokenizer: Tokenizer) -> torch.Tensor | None:
    """Bytes of each token's text, where they are fixed."""
    sizes = tokenizer.token_bytes()
    return None if sizes is None else torch.tensor(sizes, dtype=torch.float32)


def regression_cases(recipe: Recipe) -> dict[str, list[Case]]:
    """The regression prompts of the stages that have some. FledgeError for a file that is missing or wrong."""
    return {
        name: load_cases(Path(stage.prompt_tests.prompts))
        for name, stage in recipe.stages.items()
        if stage.prompt_tests is not None
    }


def dry_run(recipe: Recipe, console: Console) -> str:
    """The resolved recipe and the plan of every stage; nothing is written. FledgeError for what this machine cannot do."""
    check_device(recipe.runtime)
    regression_cases(recipe)
    preparation = Preparation(recipe, console.log)
    tokenizer = preparation.tokenizer()
    lines = [to_yaml(recipe).rstrip(), "", f"# tokenizer: {tokenizer.vocab_size:,} tokens"]
    for name in recipe.stages:
        prepared = preparation.prepare(name, tokenizer)
        lines += [f"# {name}", *(f"#   {line}" for line in prepared.data.report.lines())]
        summary = prepared.data.train.summary()
        lines.append(f"#   {summary['target_tokens']:,} supervised tokens an epoch, padding {summary['padding_share']:.1%}")
        lines += [f"#   {plan_line(prepared.plan)}", *(f"#   {note}" for note in prepared.plan.notes)]
        if prepared.plan.active_parameters != prepared.plan.parameters:
            lines.append(f"#   mixture of experts: {prepared.plan.active_parameters / 1e6:.1f}M parameters active per token")
    return "\n".join(lines)
