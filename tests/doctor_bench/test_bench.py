import json
from pathlib import Path

import pytest

from fledge.doctor_bench.command import run


@pytest.mark.slow
def test_the_quick_form_tells_faults_and_leaves_healthy_runs_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["--quick", "--out", str(tmp_path), "--json", "--processes", "1"]) == 0
    figures = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert figures["failures"] == 0 and figures["cases"] == 10
    assert figures["recall"] >= 0.8 and figures["false_alarms"] == 0.0
    assert figures["top1"] >= 0.6
    again = run(["--quick", "--judge", str(tmp_path), "--json"])
    assert again == 0
    assert json.loads(capsys.readouterr().out.splitlines()[-1]) == figures
