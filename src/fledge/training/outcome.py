"""The outcome of a finished stage, from the files of its directory."""

from typing import Any

from fledge.findings import Finding
from fledge.monitor.run_logger import show_finding
from fledge.monitor.verdicts import StageOutcome, verdicts
from fledge.plan.evaluation import validation_rows
from fledge.run import Console, StageDirectory
from fledge.run.alerts import Alerts
from fledge.run.events import read_events
from fledge.run.file_shapes import Evaluation
from fledge.run.text_files import read_json
from fledge.training.validation import ValidationSet


def judge(
    directory: StageDirectory,
    validation: ValidationSet | None,
    selected_step: int,
    metric: str,
    console: Console,
    alerts: Alerts,
) -> list[Finding]:
    """The verdicts on a finished stage, which go to the console and out as alerts."""
    found = verdicts(stage_outcome(directory, validation, selected_step, metric))
    for one in found:
        show_finding(console, one)
        alerts.send(one.severity, one.message, directory.root.name, selected_step, dict(one.evidence))
    return found


def stage_outcome(
    directory: StageDirectory, validation: ValidationSet | None, selected_step: int, metric: str = "loss"
) -> StageOutcome:
    """The outcome of a stage whose evaluations before and after are written. `metric`: its `metric_for_best_model`."""
    events = list(read_events(directory.events))
    before, after = (read_json(directory.evaluations / name, Evaluation) for name in ("before.json", "after.json"))
    evals = [event for event in events if event["kind"] == "eval"]
    evaluations = [(0, before.get(metric)), *((e["step"], e[f"eval/{metric}"]) for e in evals)]
    losses = [event["train/loss"] for event in events if event["kind"] == "step"]
    return StageOutcome(
        before=_metrics(before),
        after=_metrics(after),
        metric_name=metric,
        evaluations=[(step, value) for step, value in evaluations if value is not None],
        losses=[(event["step"], event["eval/loss"]) for event in evals if event["eval/loss"] is not None],
        train_losses=[loss for loss in losses if loss is not None],
        train_rewards=[event["train/reward"] for event in events if event["kind"] == "step" and "train/reward" in event],
        steps=len(losses),
        selected_step=selected_step,
        validation_rows=None if validation is None else validation_rows(validation.data, validation.max_packed_rows),
        answers=[(sample["prompt"], sample["answer"]) for sample in after["samples"]],
    )


def _metrics(evaluation: dict[str, Any]) -> dict[str, float | None]:
    """The metrics that are one number, or null."""
    return {name: value for name, value in evaluation.items() if value is None or isinstance(value, int | float)}
