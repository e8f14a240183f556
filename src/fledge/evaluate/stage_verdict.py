"""The verdict on a finished stage, from the files of its directory, its rows and its model; and the roll back that follows."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fledge.autotune.determinism import allow_nondeterministic
from fledge.checkpoint.find import step_name, verify
from fledge.checkpoint.state import TrainState
from fledge.data import FORMATS, PackedDataset
from fledge.errors import FledgeError
from fledge.evaluate.records import AFTER, BEFORE, SetResult, read_set_results
from fledge.evaluate.stage_evaluation import StageEvaluation
from fledge.evaluate.training_targets import TargetFacts, training_targets
from fledge.evaluate.verdict import Verdict, decide, describe_verdict, thresholds
from fledge.evaluate.verdict_rules import StageEvidence, reasons
from fledge.findings import Finding
from fledge.model.adapters import adapter_weights
from fledge.model.eager import force_eager
from fledge.model.protocol import LanguageModel
from fledge.plan.evaluation import deciding_rows, validation_rows
from fledge.recipe.schema import Stage
from fledge.run import StageDirectory
from fledge.run.alerts import Alerts
from fledge.run.events import read_events
from fledge.training.model_writer import model_writer
from fledge.training.outcome import judge
from fledge.training.start_weights import StartWeights

SEVERITIES = {"release": "info", "keep training": "warning", "roll back": "error"}


@dataclass(frozen=True, kw_only=True)
class FinishedStage:
    """A stage after its last evaluation, with the `results` of its sets. `train`: its training data. `chosen`: the directory of
    the model that was evaluated, inside the stage, of step `step`; `state`: of the last step. `is_explicit_last`: whether the
    recipe says `select_checkpoint: last`. `start`: the weights that it began with."""

    evaluation: StageEvaluation
    results: Sequence[SetResult]
    train: PackedDataset
    chosen: Path
    step: int
    state: TrainState
    is_explicit_last: bool
    start: StartWeights

    @property
    def stage(self) -> Stage:
        """The section of the recipe."""
        return self.evaluation.stage

    @property
    def directory(self) -> StageDirectory:
        """The directory of the stage."""
        return self.evaluation.directory

    @property
    def validation_rows(self) -> int | None:
        """The number of validation rows; None without validation data."""
        held_out = self.evaluation.validation
        return None if held_out is None else validation_rows(held_out.data, held_out.max_packed_rows)

    @property
    def deciding_rows(self) -> int | None:
        """The number of validation rows that the metric of the stage is of; None without validation data."""
        held_out = self.evaluation.validation
        return None if held_out is None else deciding_rows(self.stage, held_out.data)

    @property
    def metric(self) -> str:
        """The metric that says whether the stage has learned: of a stage that draws its answers, their reward and not the
        likelihood of the rows' answers."""
        name = self.stage.metric_for_best_model
        return "reward" if name == "loss" and self.stage.answers_per_example > 1 else name

    @property
    def no_way_back(self) -> str | None:
        """Why the model before the stage cannot go on; None where it can."""
        if self.start.source is None:
            return "the stage began with new weights, so there is no model to go back to"
        if self.stage.trains_reward_model:
            return "the model before the stage is no reward model, so it is not put back"
        return None

    @property
    def may_roll_back(self) -> bool:
        """Whether the last good model is put back."""
        wanted = self.stage.evaluation.verdict.roll_back
        return not self.is_explicit_last if wanted == "auto" else wanted


def conclude(finished: FinishedStage, model: LanguageModel, alerts: Alerts) -> dict[str, Any]:
    """Entries of result.json: the `model` that goes on, the findings (`verdicts`) and the `verdict`. They are shown and go out
    as alerts, the verdict unless the stage is released."""
    directory, step, console = finished.directory, finished.step, finished.evaluation.console
    found = judge(directory, finished.evaluation.validation, step, finished.stage.metric_for_best_model, console, alerts)
    with force_eager(), allow_nondeterministic():
        verdict = stage_verdict(finished, model, found)
    chosen, verdict = _what_goes_on(finished, verdict, console.log)
    for line in describe_verdict(verdict):
        console.log(line, style=None if verdict.decision == "release" else "yellow")
    if verdict.decision != "release":
        why = "; ".join(reason.message for reason in verdict.deciding)
        evidence = {"decision": verdict.decision, "goes_on": verdict.goes_on}
        alerts.send(SEVERITIES[verdict.decision], f"verdict: {verdict.decision}: {why}", directory.root.name, step, evidence)
    return {"model": str(chosen), "verdicts": [one.as_dict() for one in found], "verdict": verdict.as_dict()}


def stage_verdict(finished: FinishedStage, model: LanguageModel | None, found: Sequence[Finding]) -> Verdict:
    """The verdict on a stage whose evaluations are written. Without a model, training answers are not scored."""
    stage, directory, log = finished.stage, finished.directory, finished.evaluation.console.log

    def unreadable(file: Path, error: FledgeError) -> None:  # what a stage has learned is worth more than a comparison
        log(f"warning: nothing is compared with a result from before: {error.what} ({error.where})")

    evidence = StageEvidence(
        kind=stage.kind,
        config=stage.evaluation.verdict,
        findings=found,
        before=directory.metrics(BEFORE),
        after=directory.metrics(AFTER),
        validation_rows=finished.validation_rows,
        deciding_rows=finished.deciding_rows,
        metric=finished.metric,
        sets_before=read_set_results(directory.set_results(BEFORE), unreadable),
        sets_after={result.name: result for result in finished.results},
        targets=_targets(finished, model),
        diagnosed=[event for event in read_events(directory.events) if event["kind"] == "finding"],
    )
    decision, ordered = decide(reasons(evidence))
    return Verdict(decision=decision, reasons=ordered, thresholds=thresholds(stage.evaluation.verdict, stage.kind))


def _targets(finished: FinishedStage, model: LanguageModel | None) -> TargetFacts | None:
    """What the training rows teach; None for texts, for answers that the model draws itself, and for reward models."""
    stage = finished.stage
    if not FORMATS[stage.kind].is_dialogue or stage.trains_reward_model or stage.answers_per_example > 1:
        return None
    return training_targets(finished.train.examples, finished.evaluation.tokenizer, model)


# -- the roll back -----------------------------------------------------------------------------------------------------

ROLLED_BACK = Path("rolled_back") / "model"  # the model before the stage, put back


def _what_goes_on(finished: FinishedStage, verdict: Verdict, log: Callable[[str], None]) -> tuple[Path, Verdict]:
    """The directory of the model that goes on, and the verdict with what that is: of a stage that is rolled back, its best
    checkpoint where only what came after it is bad, else the model before the stage, if there was one."""
    if finished.step == 0:
        return finished.chosen, replace(verdict, goes_on="start")
    verdict = replace(verdict, goes_on="trained" if finished.step == finished.state.step else "best")
    if verdict.decision != "roll back" or not finished.may_roll_back:
        return finished.chosen, verdict
    if all(reason.check == "worse_than_best" for reason in verdict.deciding):
        best = _checkpoint(finished, finished.state.best_step) if finished.state.best_step else None
        return (best, replace(verdict, goes_on="best")) if best else (finished.chosen, verdict)
    if finished.no_way_back is not None:
        log(f"warning: {finished.no_way_back}: the trained one goes on")
        return finished.chosen, verdict
    start = _checkpoint(finished, 0) or _put_back(finished, log)
    return (start, replace(verdict, goes_on="start")) if start else (finished.chosen, verdict)


def _checkpoint(finished: FinishedStage, step: int | None) -> Path | None:
    """The model in the whole checkpoint of a step; None without one."""
    if step is None or verify(finished.directory.checkpoints / step_name(step)) is not None:
        return None
    path = Path("checkpoints") / step_name(step)
    averaged = step > 0 and finished.chosen.name == "averaged"
    return path / ("averaged" if averaged else "model")


def _put_back(finished: FinishedStage, log: Callable[[str], None]) -> Path | None:
    """Write the model before the stage into its directory; None where the model is not there any more, or cannot be written."""
    folder = finished.directory.root / ROLLED_BACK
    tmp_folder = folder.with_name(".writing-model")
    try:
        model = finished.start.load_recorded()
        for path in (tmp_folder, folder):
            shutil.rmtree(path, ignore_errors=True)
        tmp_folder.mkdir(parents=True)
        weights = model.state_dict() if model.adapter is None else adapter_weights(model)
        model_writer(model, finished.evaluation.tokenizer)(tmp_folder, weights)
        tmp_folder.replace(folder)
    except (FledgeError, OSError) as error:
        what = error.what if isinstance(error, FledgeError) else f"it cannot be written: {error.strerror}"
        log(f"warning: the model before the stage is not put back, the trained one goes on: {what}")
        return None
    finally:
        shutil.rmtree(tmp_folder, ignore_errors=True)
    return ROLLED_BACK
