"""Reports of a stage reach its events, the console and the receivers of alerts in one form."""

import json
from pathlib import Path
from typing import Any

import pytest

from fledge.findings import Finding
from fledge.monitor.remedies import REMEDIES, with_remedy
from fledge.monitor.run_logger import LogTargets, RunLogger
from fledge.recipe import recipe_from_dict
from fledge.recipe.schema import PretrainStage
from fledge.run import Console, StageDirectory, read_events
from fledge.run.alerts import Alerts

FIELDS = {"kind", "step", "check", "severity", "message", "where", "hint", "evidence", "patch"}


def _stage(**changes: Any) -> PretrainStage:
    values = {"kind": "pretrain", "data": {"train": "x"}, "optimizer": {"learning_rate": 1e-3, "betas": [0.9, 0.95]}}
    values["optimizer"]["weight_decay"] = 0.1
    return PretrainStage.model_validate({**values, **changes})


def _logger(folder: Path, stage: PretrainStage, step: int = 0) -> RunLogger:
    alerts = Alerts("mine", "info", folder / "alerts.jsonl", None, print)
    targets = LogTargets(directory=StageDirectory(folder / "base"), alerts=alerts)
    return RunLogger(targets, step, stage, Console(quiet=True))


def _step(logger: RunLogger, step: int, **values: Any) -> None:
    logger.write("step", step, **{"train/loss": 3.0, "train/grad_norm": 0.5, **values})


def test_alerts_and_guards_are_events_of_one_form(tmp_path: Path) -> None:
    logger = _logger(tmp_path, _stage(guards={"non_finite": {"consecutive": 1}}))
    logger.report(Finding(check="checkpoint", severity="warning", message="no space", evidence={"free": 3}), 4)
    _step(logger, 5, **{"train/grad_norm": None})
    [trigger] = logger.check_guards()
    logger.report(trigger.finding, 5, "guard", action=trigger.action, first_bad_step=trigger.first_bad_step)
    logger.close()
    alert, guard = [event for event in read_events(tmp_path / "base" / "events.jsonl") if event["kind"] != "step"]
    assert set(alert) == FIELDS and set(guard) == FIELDS | {"action", "first_bad_step"}
    assert (alert["kind"], alert["check"], alert["evidence"], alert["patch"]) == ("alert", "checkpoint", {"free": 3}, None)
    assert (guard["check"], guard["severity"], guard["action"], guard["first_bad_step"]) == (
        "non_finite",
        "error",
        "rollback",
        5,
    )
    assert guard["patch"] == {"stages.base.optimizer.learning_rate": 5e-4} and "learning_rate" in guard["hint"]


def test_receivers_of_alerts_get_the_evidence_with_the_recipe_change(tmp_path: Path) -> None:
    logger = _logger(tmp_path, _stage())
    finding = Finding(check="disk", severity="error", message="full", where="/disk", evidence={"free": 7}, patch={"a.b": 1})
    logger.report(finding, 9, "guard", action="stop")
    logger.close()
    [alert] = [json.loads(line) for line in (tmp_path / "alerts.jsonl").read_text(encoding="utf-8").splitlines()]
    assert (alert["level"], alert["message"], alert["stage"], alert["step"]) == ("error", "full", "base", 9)
    assert alert["evidence"] == {"free": 7, "check": "disk", "where": "/disk", "patch": {"a.b": 1}, "action": "stop"}


def test_a_logger_that_is_opened_again_knows_the_events_up_to_its_step(tmp_path: Path) -> None:
    stage = _stage(guards={"non_finite": {"consecutive": 3}})
    logger = _logger(tmp_path, stage)
    for step in (1, 2, 3):
        _step(logger, step, **{"train/grad_norm": None})
    actions = [trigger.action for trigger in logger.check_guards()]
    logger.close()
    resumed = _logger(tmp_path, stage, step=2)
    assert resumed.world_size_before == 1 and resumed.check_guards() == []
    _step(resumed, 3, **{"train/grad_norm": None})
    assert actions == ["skip", "skip", "rollback"] and [t.action for t in resumed.check_guards()] == ["rollback"]
    resumed.close()


TREE = {
    "stages": {"base": {"kind": "pretrain", "data": {"train": "x", "max_seq_len": 32}, "optimizer": {"learning_rate": 1e-3}}}
}


@pytest.mark.parametrize("check", REMEDIES)
def test_the_recipe_change_of_every_remedy_is_accepted_by_the_recipe(check: str) -> None:
    finding = with_remedy(Finding(check=check, severity="warning", message="x"), "base", _stage())
    assert finding.hint
    for key, value in (finding.patch or {}).items():
        tree: Any = json.loads(json.dumps(TREE))
        *sections, last = key.split(".")
        section = tree
        for name in sections:
            section = section.setdefault(name, {})
        section[last] = value
        assert recipe_from_dict(tree) != recipe_from_dict(TREE)


def test_a_remedy_that_is_already_applied_is_followed_by_another(tmp_path: Path) -> None:
    skipping, best = _stage(guards={"grad_spike": "skip"}), _stage(select_checkpoint="best")
    spike, overfit = (Finding(check=check, severity="warning", message="x") for check in ("grad_spike", "validation_increase"))
    assert with_remedy(spike, "base", _stage()).patch == {"stages.base.guards.grad_spike.action": "skip"}
    assert with_remedy(spike, "base", skipping).patch == {"stages.base.optimizer.learning_rate": 5e-4}
    assert with_remedy(overfit, "base", _stage()).patch == {"stages.base.select_checkpoint": "best"}
    assert with_remedy(overfit, "base", best).patch == {"stages.base.early_stopping.patience": 3}
