"""The runs of a proof: each is trained in this process, read on the held-out documents, and removed. What was measured stays,
so that a proof that was stopped goes on, and proofs of one stage share their unchanged runs."""

import gc
import math
import shutil
import time
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import orjson
import xxhash

from fledge.data import is_complete
from fledge.doctor.prove_budget import is_shorter
from fledge.doctor.prove_data import (
    build_patched,
    built_folder,
    changes_data,
    folder_of,
    held_out_examples,
    load,
    reseeded,
)
from fledge.doctor.prove_recipes import Length, Patch, ProofRecipes, Start
from fledge.doctor.prove_yardsticks import DOCUMENTS, HeldOut, Subject, Yardstick
from fledge.errors import FledgeError
from fledge.pipeline import Pipeline
from fledge.plan.horizon import pinned_batch
from fledge.prepare import Preparation, PreparedStage
from fledge.recipe import Recipe
from fledge.run import Console, RunDirectory, StageDirectory, write_json
from fledge.run.console import silent
from fledge.run.directory import resolve_model_path
from fledge.run.file_hash import hash_files
from fledge.run.lock import lock_file
from fledge.run.text_files import read_json
from fledge.tokenizer import Tokenizer, load_tokenizer

PROOFS = "proofs"  # folder of a stage
DIGITS = 7  # of a figure that is kept
MEASURING = 2  # how figures are measured: another number where that changed, so that runs are measured anew


@dataclass(frozen=True, kw_only=True)
class Variant:
    """The stage with one patch: its whole recipe, the build that it reads, and its plan at full length."""

    patch: dict[str, Any]
    recipe: Recipe
    built: Path
    prepared: PreparedStage


@dataclass(frozen=True, kw_only=True)
class Observation:
    """What was measured on a run. `values`: name of a figure → document → value. `failed`: why it ended without a model; empty
    otherwise. `no_numbers`: name of a figure → documents whose value is no finite number. `weights`: their hash. `seconds`: all
    in."""

    values: dict[str, dict[str, float]]
    failed: str = ""
    no_numbers: dict[str, list[str]] = field(default_factory=dict)
    weights: str = ""
    steps: int = 0
    seconds: float = 0.0

    def stand_ins(self, figure: str) -> Collection[str]:
        """The documents whose value of a figure stands for none: of a run without a model all."""
        return self.values[figure] if self.failed else self.no_numbers.get(figure, ())


@dataclass(kw_only=True)
class ProofRuns:
    """Trains and measures runs of a stage. `start`: where they begin."""

    recipes: ProofRecipes
    console: Console
    start: Start = "stage"
    spent: float = 0.0
    _held_out: dict[str, HeldOut] = field(default_factory=dict)

    @property
    def directory(self) -> StageDirectory:
        """The stage of the run."""
        return self.recipes.run.stage(self.recipes.stage)

    @property
    def folder(self) -> Path:
        """Where proofs of the stage are kept."""
        return self.directory.root / PROOFS

    @property
    def work(self) -> Path:
        """The folder of runs that are trained, which is removed at the end."""
        return self.folder / "work"

    def tokenizer(self) -> tuple[Path, Tokenizer]:
        """The folder of the run's tokenizer, and the tokenizer."""
        folder = self.recipes.run.tokenizer
        return folder, load_tokenizer(folder)

    # -- variants -----------------------------------------------------------------------------------------------------

    def variant(self, patch: Patch) -> Variant:
        """The stage with a patch. Raises FledgeError if the recipe does not take it, or its data cannot be built."""
        whole = self.recipes.normalised(patch)
        recipe = self.recipes.whole(whole, self.start)
        built = built_folder(self.recipes.run, self.recipes.given, self.recipes.stage)
        if changes_data(built, recipe.stages[self.recipes.stage]):
            key = hash_of(recipe.stages[self.recipes.stage].data.model_dump(mode="json"))
            folder = self.work / "data" / key
            if not is_complete(folder / self.recipes.stage):
                self.console.log("the patch changes the data: it is built anew, from the files of the recipe")
            built = build_patched(recipe, self.tokenizer()[0], folder, self.console.log)
        dataset = self._dataset(built, recipe, self.recipes.seed(0))
        return Variant(patch=whole, recipe=recipe, built=built, prepared=self.recipes.prepared(recipe, dataset))

    def as_long(self, variant: Variant, kept: Variant) -> Variant:
        """A variant with as many updates as another, where its data alone makes it shorter: without copies of rows, the same
        epochs are fewer updates, and a pair of runs would compare these instead."""
        key = f"stages.{self.recipes.stage}.duration"
        if variant.built == kept.built or key in variant.patch or not is_shorter(variant.prepared, kept.prepared):
            return variant
        steps, prefix = kept.prepared.plan.steps, f"stages.{self.recipes.stage}.batch"
        pinned = pinned_batch(variant.recipe.stages[self.recipes.stage].batch, variant.prepared.plan.effective_batch_rows)
        self.console.log(f"the patch leaves fewer rows in an epoch: it is tried for {steps:,} updates, as many as before")
        sizes = {f"{prefix}.{name}": value for name, value in pinned.items()}
        return self.variant({**variant.patch, **sizes, key: f"{steps} steps"})

    def _dataset(self, built: Path, recipe: Recipe, seed: int) -> Path:
        """The data of a build in the order of a seed of the recipe."""
        seeded = recipe.model_copy(update={"seed": seed})
        of_stage = Preparation(seeded, silent).seed(self.recipes.stage)
        out = self.work / "data" / f"{hash_of(str(built.resolve()))}-{seed}"
        return reseeded(built, recipe, of_stage, out, self.tokenizer())

    def held_out(self, variants: Sequence[Variant]) -> HeldOut:
        """The documents that the runs of these variants are read on: validation documents of the last one's data that no
        variant trains on."""
        last = variants[-1]
        key = "|".join(str(one.built) for one in variants)
        if key not in self._held_out:
            tokenizer = self.tokenizer()[1]
            name = self.recipes.stage
            data = {one.built: load(one.built, one.recipe.stages[name], tokenizer) for one in variants}
            judging = data[last.built].validation
            examples = held_out_examples(judging, [one.train for one in data.values()], DOCUMENTS)
            assert judging is not None
            self._held_out[key] = HeldOut(
                recipe=last.recipe,
                stage=last.prepared.stage,
                tokenizer=tokenizer,
                data=judging,
                examples=examples,
                start=self.recipes.start_model(self.start),
                find_earlier=self._earlier,
            )
        return self._held_out[key]

    def _earlier(self) -> HeldOut | None:
        """The held-out documents of the stage before; None without one, or where its data is gone. Raises FledgeError, with the
        stage, if they are too few."""
        recipe, tokenizer = self.recipes.given, self.tokenizer()[1]
        for name in reversed(recipe.stages_before(self.recipes.stage)):
            stage, folder = recipe.stages[name], folder_of(self.recipes.run, recipe, name)
            if not is_complete(folder) or (data := load(folder, stage, tokenizer)).validation is None:
                continue
            try:
                examples = held_out_examples(data.validation, [data.train], DOCUMENTS)
            except FledgeError as error:
                raise FledgeError(error.what, where=f"stages.{name}.{error.where}", hint=error.hint) from None
            return HeldOut(recipe=recipe, stage=stage, tokenizer=tokenizer, data=data.validation, examples=examples, start=None)
        return None

    # -- one run ------------------------------------------------------------------------------------------------------

    def observe(
        self, variant: Variant, length: Length, pair: int, held_out: HeldOut, yardsticks: Sequence[Yardstick]
    ) -> Observation:
        """The figures of one run, trained where they were not measured before."""
        seed = self.recipes.seed(pair)
        recipe = self.recipes.short(variant.recipe, variant.prepared, length, seed)
        names = [one.scale.name for one in yardsticks]
        tree = recipe.model_dump(mode="json", exclude={"name", "output", "built_dataset"})
        key = hash_of([MEASURING, tree, str(variant.built), names, list(held_out.examples)])
        file = self.folder / "runs" / f"{key}.json"
        if file.exists():
            return Observation(**read_json(file, dict[str, Any]))
        for one in yardsticks:
            one.read(held_out)  # what is not there is told before a run is trained
        begun = time.monotonic()
        dataset = self._dataset(variant.built, variant.recipe, seed)
        recipe = recipe.model_copy(update={"name": key, "output": str(self.work), "built_dataset": str(dataset)})
        failed = self._train(recipe)
        found = self._measure(RunDirectory(self.work / key).stage(self.recipes.stage), held_out, yardsticks, failed)
        self.spent += time.monotonic() - begun
        found = Observation(**{**asdict(found), "seconds": round(time.monotonic() - begun, 3)})
        write_json(file, asdict(found))
        shutil.rmtree(self.work / key, ignore_errors=True)
        gc.collect()
        return found

    def _train(self, recipe: Recipe) -> str:
        """Train a run to its end; returns why it failed, empty if it did not. FledgeError for one that could not begin."""
        try:
            Pipeline(recipe, Console(quiet=True)).run()
        except FledgeError as error:
            stage = RunDirectory(Path(recipe.output) / recipe.name).stage(self.recipes.stage)
            if not stage.has_begun():
                raise
            return error.text()
        return ""

    def _measure(
        self, directory: StageDirectory, held_out: HeldOut, yardsticks: Sequence[Yardstick], failed: str
    ) -> Observation:
        subject = Subject(directory=directory, held_out=held_out)
        if failed:
            return Observation(values={one.scale.name: one.of_failed(held_out) for one in yardsticks}, failed=failed)
        values: dict[str, dict[str, float]] = {}
        no_numbers: dict[str, list[str]] = {}
        for one in yardsticks:
            name, worst, found = one.scale.name, one.worst(held_out), one.measure(subject)
            no_numbers[name] = [key for key, value in found.items() if not math.isfinite(value)]
            values[name] = {key: round(value, DIGITS) if math.isfinite(value) else worst for key, value in found.items()}
        result = directory.result() or {}
        weights = hash_files(*sorted(resolve_model_path(str(directory.root)).glob("*.safetensors")))
        return Observation(values=values, no_numbers=no_numbers, weights=weights, steps=int(result.get("step", 0)))

    def clean(self) -> None:
        """Remove the folder of runs."""
        shutil.rmtree(self.work, ignore_errors=True)

    def leave_nothing(self) -> None:
        """Remove the folder of proofs where it holds no more than the lock of one that was refused. The lock is held."""
        lock = lock_file(self.work)
        if {one.name for one in self.folder.iterdir()} <= {lock.name}:
            shutil.rmtree(self.folder, ignore_errors=True)


def hash_of(value: Any) -> str:
    """A hash of JSON values."""
    return xxhash.xxh3_64_hexdigest(orjson.dumps(value, option=orjson.OPT_SORT_KEYS))
