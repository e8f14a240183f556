"""Reading a long log takes a second or two, and keeps every digit."""

import json
import random
from pathlib import Path

import pytest

from fledge.training_log import read_logs
from tests.support.pace import ratio_to_yardstick

STEPS = 100_000
MOST = 11  # times the yardstick of `tests.support.pace`


@pytest.mark.slow
def test_json_lines_of_100_000_steps(tmp_path: Path) -> None:
    draw = random.Random(7)
    names = ("loss", "learning_rate", "grad_norm", "accuracy", "tps", "kl", "entropy", "reward")
    rows = [{"step": step, **{name: draw.random() for name in names}} for step in range(1, STEPS + 1)]
    file = tmp_path / "a.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    (log,) = read_logs(file)
    assert log.series["train/loss"].values.tolist() == [row["loss"] for row in rows]
    assert ratio_to_yardstick(lambda: read_logs(file)) <= MOST
