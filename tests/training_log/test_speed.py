"""Reading a long log takes a second or two, and keeps every digit."""

import json
import random
import time
from pathlib import Path

import pytest

from fledge.training_log import read_logs

STEPS = 100_000
SECONDS = 1.5


def _seconds(file: Path) -> float:
    start = time.process_time()
    read_logs(file)
    return time.process_time() - start


@pytest.mark.slow
def test_json_lines_of_100_000_steps(tmp_path: Path) -> None:
    draw = random.Random(7)
    names = ("loss", "learning_rate", "grad_norm", "accuracy", "tps", "kl", "entropy", "reward")
    rows = [{"step": step, **{name: draw.random() for name in names}} for step in range(1, STEPS + 1)]
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (log,), *taken = read_logs(file), *(_seconds(file) for _ in range(3))
    assert log.series["train/loss"].values.tolist() == [row["loss"] for row in rows]
    assert min(taken) <= SECONDS
