"""The evaluation sets of a stage: loaded before anything is trained, asked before, while and after it trains."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from fledge.checkpoint.find import step_name
from fledge.errors import FledgeError
from fledge.evaluate.records import BEFORE, MetricValue, SetResult, read_set_result, write_set_result
from fledge.evaluate.sets.base import EvaluationSet
from fledge.evaluate.sets.kinds import load_set
from fledge.evaluate.sets.model import EvaluatedModel
from fledge.metric_names import METRIC_NAMES
from fledge.model.protocol import LanguageModel
from fledge.recipe import Recipe
from fledge.run import Console, StageDirectory
from fledge.tokenizer import Tokenizer

SHOWN = 4  # metrics of a set on the console


def load_stage_sets(recipe: Recipe, stage: str) -> list[EvaluationSet]:
    """The evaluation sets of a stage. Raises FledgeError, with the key of the recipe, for one that cannot be read."""
    prefix = f"stages.{stage}.evaluation.sets"
    return [load_set(name, config, f"{prefix}.{name}") for name, config in recipe.stages[stage].evaluation.sets.items()]


def check_sets(sets: Iterable[EvaluationSet], tokenizer: Tokenizer, max_positions: int) -> None:
    """Raise FledgeError for an item that leaves no room for an answer, or that the chat template cannot render."""
    for one in sets:
        one.check(tokenizer, max_positions)


@dataclass(frozen=True, kw_only=True)
class StageSets:
    """The sets of a stage with what is needed to ask them. Ranks other than the main process have none."""

    sets: Sequence[EvaluationSet]
    tokenizer: Tokenizer
    directory: StageDirectory
    console: Console

    def evaluate(self, model: LanguageModel, moment: str) -> list[SetResult]:
        """The results of all sets before or after the stage, in the order of their files, which are written to
        `eval/<moment>/`; with progress on the console."""
        asked, results = EvaluatedModel(model, self.tokenizer), list[SetResult]()
        for one in self.sets:
            result = evaluate_with_progress(one, asked, self.console)
            results.append(result)
            write_set_result(self.directory.set_results(moment), result)
            self.console.log(f"{moment} {self.directory.root.name}: {set_line(result)}")
            for note in result.notes if moment == BEFORE else ():
                self.console.log(f"  {note}")
        return sorted(results, key=lambda result: f"{result.name}.json")

    def evaluate_at(self, model: LanguageModel, step: int, names: Sequence[str]) -> dict[str, float]:
        """Ask some sets while the stage trains, and write the results to `eval/step-…/`. Returns `<set>/<metric>` → value."""
        asked, values = EvaluatedModel(model, self.tokenizer), {}
        for one in (one for one in self.sets if one.name in names):
            result = one.evaluate_model(asked)
            values |= {f"{one.name}/{name}": metric.value for name, metric in result.metrics.items()}
            self.console.log(f"step {step:,}: {set_line(result)}")
            try:
                write_set_result(self.directory.set_results(step_name(step)), result)
            except FledgeError as error:  # the event has the metrics; what was learned is worth more
                self.console.log(f"warning: a result is not written: {error.what} ({error.where})", style="yellow")
        return values

    def tell_changes(self) -> None:
        """Say which sets are others than before the stage, so that results before and after cannot be compared."""
        for one in self.sets:
            file = self.directory.set_results(BEFORE) / f"{one.name}.json"
            try:
                is_changed = file.exists() and read_set_result(file, with_items=False).fingerprint != one.fingerprint
            except FledgeError as error:  # what was learned is worth more than a comparison
                self.console.log(f"warning: a result from before is not read: {error.what} ({error.where})", style="yellow")
                continue
            if is_changed:
                self.console.log(
                    f"note: evaluation set {one.name} has changed since the stage began: its results cannot be compared"
                )


def evaluate_with_progress(one: EvaluationSet, model: EvaluatedModel, console: Console) -> SetResult:
    """The result of a model on a set, with progress on the console."""
    done = 0
    with console.progress(one.name, one.count) as bar:

        def progress(count: int) -> None:
            nonlocal done
            done += count
            bar.update(done)

        return one.evaluate_model(model, progress)


def set_line(result: SetResult) -> str:
    """The metrics of a set as console text, such as "colors: passed 80.0% [66.2%, 89.1%]"."""
    shown = list(result.metrics.items())[:SHOWN]
    return f"{result.name}: " + ", ".join(f"{name} {metric_text(name, metric)}" for name, metric in shown)


def metric_text(name: str, metric: MetricValue) -> str:
    """The value of a metric with its 95 % interval, rates in per cent."""
    form = METRIC_NAMES[name].format if name in METRIC_NAMES else "{:.4g}"
    text = form.format(metric.value)
    return text if metric.interval is None else f"{text} [{', '.join(form.format(end) for end in metric.interval)}]"
