"""Resuming a run with its recipe, or a changed one: what may change, what takes effect, and when it is recorded.

The recipe of a run is replaced when the first stage goes on under the new one, and not before: until then nothing was trained
under it.
"""

from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

from fledge.data.build.directory import remove_build
from fledge.errors import FledgeError
from fledge.recipe import Recipe, load_recipe, to_yaml
from fledge.recipe.resume_policy import Change, Changes, compare_recipes
from fledge.run import Console, RunDirectory, StageDirectory, check_layout, write_text


class RunHistory:
    """What a run has trained, and the changes of its recipe since. `changed`: the changes that take effect.

    `extended`: the finished stage that trains on because its duration was made longer; None if there is none.
    """

    def __init__(self, directory: RunDirectory, recipe: Recipe, console: Console) -> None:
        self.directory, self.recipe, self.console = directory, recipe, console
        self.exists = directory.recipe.exists()
        self.changed: list[Change] = []
        self.extended: str | None = None
        self._adopted = False

    @cached_property
    def before(self) -> Recipe | None:
        """The recipe of the run, read once; None if there is no run yet."""
        if not self.exists:
            return None
        check_layout(self.directory.root)
        return load_recipe([str(self.directory.recipe)])

    def has_begun(self) -> bool:
        """Whether any stage of the run has begun to train."""
        return bool(self._begun_stages())

    def _begun_stages(self) -> list[str]:
        """The stages of the run that have begun to train, in order."""
        stages = () if self.before is None else self.before.stages
        return [name for name in stages if self.directory.stage(name).has_begun()]

    def is_finished(self, name: str) -> bool:
        """Whether a stage is not to be trained any more."""
        return name != self.extended and self.directory.stage(name).result() is not None

    def needs_measuring(self) -> bool:
        """Whether settings of the machine have changed, so that unfinished stages measure it again."""
        keys = [change.key for change in self.changed]
        return any(
            key.startswith("runtime.") and not key.startswith(("runtime.autotune", "runtime.memory_budget")) for key in keys
        )

    # -- which changes are possible -----------------------------------------------------------------------------------

    def check_changes(self, allowed: Sequence[str], resume: bool) -> None:
        """Compare the recipe with that of the run. Raises FledgeError for changes that are not allowed or have no effect."""
        assert self.before is not None
        started = self._begun_stages()
        self.extended = self._stage_to_extend(started, allowed)
        finished = {
            name: self._why_finished(name, started)
            for name in started
            if name != self.extended and self.directory.stage(name).result() is not None
        }
        changes = compare_recipes(self.before, self.recipe, started, allowed, finished)
        not_allowed = [*changes.rejected, *changes.needs_allow]
        if not_allowed:
            raise FledgeError(
                "the recipe differs from the one this run was begun with:" + "".join(f"\n  {change}" for change in not_allowed),
                where=str(self.directory.recipe),
                hint=_resume_hint(self.directory.recipe, changes),
            )
        if not resume:
            self.console.log(f"resuming the run in {self.directory.root}")
        for change in changes.applied:
            self.console.log(f"changed: {change}", style="yellow")
        for change in changes.without_effect:
            self.console.log(f"note: without effect, its stage is finished: {change}")
        self.changed = changes.applied

    def _stage_to_extend(self, started: list[str], allowed: Sequence[str]) -> str | None:
        """The last stage that has begun, if it is finished, has not ended early and has another duration now."""
        last = started[-1] if started else None
        if last is None or self.before is None or last not in self.recipe.stages:
            return None
        result = self.directory.stage(last).result()
        if result is None or result.get("stop") or self.before.stages[last].duration == self.recipe.stages[last].duration:
            return None
        return last

    def _why_finished(self, name: str, started: list[str]) -> str:
        """The reason why a finished stage cannot change any more."""
        result = self.directory.stage(name).result() or {}
        if name != started[-1]:
            return f"{name} is finished, and {started[started.index(name) + 1]} has begun with its model"
        if result.get("stop"):
            return f"{name} ended early at step {result['step']:,}: {result['stop']}"
        return f"{name} is finished"

    def check_extension(self, steps: int) -> None:
        """Raise FledgeError if the finished stage that is to train on would have nothing to do in `steps` steps in all."""
        if self.extended is None:
            return
        done = (self.directory.stage(self.extended).result() or {})["step"]
        if steps <= done:
            raise FledgeError(
                f"stage {self.extended} is finished after {done:,} steps: with {steps:,} steps in all it cannot train on",
                where=f"stages.{self.extended}.duration",
                hint=f"write more than {done:,} steps, or leave the duration as it was; nothing was changed",
            )
        line = f"{self.extended}: trains on from step {done:,} to step {steps:,}, with the schedule of the whole new length"
        self.console.log(line, style="yellow")

    # -- what is recorded ---------------------------------------------------------------------------------------------

    def adopt(self) -> None:
        """Record the changes, once, now that a stage goes on under them: the recipe before is kept as `recipe.N.yaml`, the
        result of a stage that trains on as `result.N.json`."""
        if self._adopted or self.before is None or not self.changed:
            return
        self._adopted = True
        if self.extended is not None:
            _keep_result(self.directory.stage(self.extended))
        number = len(list(self.directory.root.glob("recipe.*.yaml"))) + 1
        earlier = self.directory.recipe.read_text(encoding="utf-8")
        write_text(self.directory.root / f"recipe.{number}.yaml", earlier)
        write_text(self.directory.recipe, to_yaml(self._recipe_to_store()))

    def _recipe_to_store(self) -> Recipe:
        """The recipe, with the sections of finished stages as they were trained."""
        assert self.before is not None
        stages = {
            name: self.before.stages[name] if name in self.before.stages and self.is_finished(name) else stage
            for name, stage in self.recipe.stages.items()
        }
        return self.recipe.model_copy(update={"stages": stages})

    def remove_preparation(self, names: Sequence[str]) -> None:
        """Remove what was prepared for a run that has not begun to train, so that it is prepared again."""
        self.directory.recipe.unlink(missing_ok=True)
        self.before, self.exists = None, False
        for name in names:
            self.directory.stage(name).forget_preparation()
            remove_build(self.directory.stage(name).data)


def _keep_result(stage: StageDirectory) -> None:
    """Rename the result and the last evaluation of a finished stage that trains on."""
    number = len(list(stage.root.glob("result.*.json"))) + 1
    after = stage.evaluations / "after.json"
    if after.exists():
        after.replace(stage.evaluations / f"after.{number}.json")
    if (results := stage.set_results("after")).exists():
        results.replace(stage.set_results(f"after.{number}"))
    stage.result_file.replace(stage.root / f"result.{number}.json")


def _resume_hint(recipe: Path, changes: Changes) -> str:
    """The hint for a recipe that differs from the run's."""
    if changes.rejected:
        keys = ", ".join(change.key for change in changes.rejected[:3])
        return f"{keys} cannot change in a run that has begun: choose another --name, or resume it: `fledge train {recipe}`"
    allow = " ".join(f"--allow-change {change.key}" for change in changes.needs_allow)
    return f"resume with these changes: {allow}; or without them: `fledge train {recipe}`; or choose another --name"
