"""Published readers of training curves on the logs of the doctor's bench: trainproof, runmedic, training-doctor.

They are no dependencies of fledge. Put them into an environment of their own and name its interpreter:

    python -m venv others && others/bin/pip install trainproof runmedic training-doctor
    python benchmarks/doctor_baselines.py --runs doctor-bench --python others/bin/python

`--runs`: the results of `fledge doctor bench`; without it the runs of its quick form are trained. Each program reads loss,
learning rate, gradient norm, validation loss and step time of a run from a file, as it asks for it, with its own defaults. What
it says is compared with what is wrong: an alarm is a finding above "info"; a cause is right if it is a name for the fault's
(`CAUSES`).
"""

import csv
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from measure import options, report

from fledge.doctor_bench.baselines import UNKNOWN
from fledge.doctor_bench.command import run as run_bench
from fledge.doctor_bench.effects import effects_of, place_of
from fledge.doctor_bench.records import CaseRecord, records
from fledge.doctor_bench.right_causes import is_right
from fledge.doctor_bench.score import Rate
from fledge.run.events import read_events

COLUMNS = {
    "train/loss": "loss",
    "train/lr": "learning_rate",
    "train/grad_norm": "grad_norm",
    "eval/loss": "eval_loss",
    "system/step_seconds": "step_time",
}
CAUSES = {  # name of a finding of these programs → the cause that it means, in the doctor's words
    "TP-NAN": "no finite numbers",
    "TP-NAN-GRAD": "no finite numbers",
    "TP-DIVERGE": "learning rate too high",
    "TP-GRAD-SPIKE": "learning rate too high",
    "TP-ZERO-LR": "learning rate zero",
    "TP-OVERFIT": "too many epochs",
    "TP-LOADER-BOUND": "waiting for data",
    "non_finite": "no finite numbers",
    "divergence": "learning rate too high",
    "loss_spikes": "learning rate too high",
    "grad_spikes": "learning rate too high",
    "input_bound": "waiting for data",
    "slowdown": "updates become slower",
    "memory_growth": "memory grows",
    "overfitting": "too many epochs",
    "lr_too_high": "learning rate too high",
    "lr_too_low": "learning rate too low",
}
TRAINING_DOCTOR = """
import json, sys
from training_doctor.doctor import Doctor
found = Doctor().load(sys.argv[1], format="csv").analyze()
print(json.dumps([getattr(one, "detector_name", "") for one in found]))
"""


def write_logs(stage: Path, folder: Path) -> None:
    """Write the curves of a stage as `log.jsonl` and `log.csv`."""
    rows: dict[int, dict[str, Any]] = {}
    for event in read_events(stage / "events.jsonl"):
        for name, column in COLUMNS.items():
            if name in event:
                value = float("nan") if event[name] is None else event[name]
                rows.setdefault(event["step"], {"step": event["step"]})[column] = value
    ordered = [rows[step] for step in sorted(rows)]
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in ordered))
    with (folder / "log.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["step", *COLUMNS.values()])
        writer.writeheader()
        writer.writerows(ordered)


def _output(command: list[str]) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False).stdout


def trainproof(python: str, folder: Path) -> list[str]:
    """The findings of trainproof, but for passes."""
    text = _output([python, "-m", "trainproof", "doctor", str(folder / "log.jsonl"), "--json"])
    return [one["id"] for each in json.loads(text)["reports"] for one in each["findings"] if one["level"] in ("WARN", "FAIL")]


def runmedic(python: str, folder: Path) -> list[str]:
    """The findings of runmedic above information."""
    text = _output([python, "-m", "runmedic", "diagnose", str(folder / "log.csv"), "--json"])
    return [one["check"] for each in json.loads(text) for one in each["findings"] if one["severity"] != "info"]


def training_doctor(python: str, folder: Path) -> list[str]:
    """The names of what training-doctor detects."""
    return json.loads(_output([python, "-c", TRAINING_DOCTOR, str(folder / "log.csv")]))


PROGRAMS: Mapping[str, Callable[[str, Path], list[str]]] = {
    "trainproof": trainproof,
    "runmedic": runmedic,
    "training-doctor": training_doctor,
}


def scores(said: list[tuple[CaseRecord, list[str]]], cases: list[CaseRecord]) -> dict[str, Any]:
    """Recall, false alarms and right causes of one program; the first finding that has a name here counts as its cause."""
    effects = effects_of(cases)
    faulty, healthy = [], []
    for record, findings in said:
        if not record.case.is_fault:
            healthy.append(bool(findings))
            continue
        effect = effects.get(place_of(record.case))
        if effect is None or effect.is_material:
            causes = [CAUSES.get(name, UNKNOWN) for name in findings]
            named = next((cause for cause in causes if cause != UNKNOWN), None)
            faulty.append((bool(findings), named is not None and is_right(record.case.condition, named)))
    rates = {
        "recall": Rate(sum(alarm for alarm, _ in faulty), len(faulty)),
        "false_alarms": Rate(sum(healthy), len(healthy)),
        "top1": Rate(sum(right for _, right in faulty), len(faulty)),
    }
    return {name: rate.as_dict() for name, rate in rates.items()}


def main() -> None:
    """Let each program read all runs."""
    parser = options(__doc__ or "")
    parser.add_argument("--runs", type=Path, help="results of fledge doctor bench")
    parser.add_argument("--python", default=sys.executable, help="interpreter with the programs")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        runs = chosen.runs or Path(temporary) / "runs"
        if chosen.runs is None:
            run_bench(["--quick", "--out", str(runs), "--train-only", "--json"])
        found = [(folder, record) for folder, record in records(runs) if record.failure is None and record.is_examined]
        cases = [record for _, record in found]
        results: dict[str, Any] = {"cases": len(cases)}
        for name, program in PROGRAMS.items():
            said, failed = [], 0
            for folder, record in found:
                if not (folder / record.log / "events.jsonl").exists():
                    continue
                write_logs(folder / record.log, Path(temporary))
                try:
                    said.append((record, program(chosen.python, Path(temporary))))
                except (json.JSONDecodeError, KeyError, subprocess.TimeoutExpired):
                    failed += 1
            results[name] = {**scores(said, cases), "could_not_read": failed} if said else "not installed"
            print(f"{name}: {json.dumps(results[name])}", flush=True)
    report(results)


if __name__ == "__main__":
    main()
