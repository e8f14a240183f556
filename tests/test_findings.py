"""A finding is JSON, and its recipe change can be typed after the command."""

import json

from fledge.findings import Finding


def test_a_finding_is_json_with_every_field() -> None:
    finding = Finding(check="cut answers", severity="warning", message="3 rows are cut", evidence={"source": "a.jsonl"})
    assert json.loads(json.dumps(finding.as_dict())) == {
        "check": "cut answers",
        "severity": "warning",
        "message": "3 rows are cut",
        "where": "",
        "hint": "",
        "evidence": {"source": "a.jsonl"},
        "patch": None,
    }


def test_a_recipe_change_is_shown_as_options_of_the_command() -> None:
    patch = {
        "stages.sft.optimizer.learning_rate": 1e-05,
        "stages.sft.data.clean.decontaminate": True,
        "tokenizer.template": "chatml",
    }
    finding = Finding(check="x", severity="error", message="y", patch=patch)
    assert finding.overrides() == (
        '--stages.sft.optimizer.learning_rate 1e-05 --stages.sft.data.clean.decontaminate true --tokenizer.template "chatml"'
    )
    assert Finding(check="x", severity="error", message="y").overrides() == ""
