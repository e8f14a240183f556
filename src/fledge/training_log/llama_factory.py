"""Logs of LLaMA-Factory: trainer_log.jsonl, and what stands beside it."""

from pathlib import Path

from fledge.run.text_files import read_json
from fledge.training_log.assemble import Origin, assemble
from fledge.training_log.given import Given
from fledge.training_log.huggingface import beside
from fledge.training_log.records import TrainingLog, TrainingSettings
from fledge.training_log.rows import Rows
from fledge.training_log.tables import add_record, json_objects
from fledge.training_log.text_file import read_text

LOG = "trainer_log.jsonl"
LEFT_OUT = ("percentage", "elapsed_time", "remaining_time")
RESULTS = "all_results.json"


def log_file(target: Path) -> Path | None:
    """The trainer_log.jsonl of a file or folder; None without one."""
    if target.is_file():
        return target if target.name.endswith(LOG) else None
    return target / LOG if (target / LOG).is_file() else None


def read_trainer_log(path: Path, given: Given) -> list[TrainingLog]:
    """The log in a trainer_log.jsonl."""
    rows, planned, reached = Rows(), 0.0, 0.0
    for number, record in json_objects(read_text(path), rows):
        total, step = record.get("total_steps"), record.get("current_steps")
        planned = float(total) if isinstance(total, int | float) else planned
        reached = float(step) if isinstance(step, int | float) else reached
        rows.unread["progress and clock times"] += sum(name in record for name in LEFT_OUT)
        add_record(rows, number, {name: value for name, value in record.items() if name not in LEFT_OUT})
    settings = beside(
        path.parent, rows, TrainingSettings(steps=planned or None, origin={"steps": path.name} if planned else {})
    )
    results = path.parent / RESULTS
    if results.is_file() and isinstance(found := read_json(results), dict):
        rows.events.append({"kind": "end", **found})
    ended = True if results.is_file() else (reached >= planned if planned else None)
    origin = Origin(source=f"LLaMA-Factory {LOG}", path=str(path), counts="update", settings=settings, ended=ended)
    return [assemble(rows, origin, given)]
