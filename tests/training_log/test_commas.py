"""What a comma in a number means is decided by the whole column or log."""

from pathlib import Path

import pytest

from fledge.training_log import read_logs
from fledge.training_log.decimal_commas import comma_of, point_for_comma
from tests.training_log.logs import points, read_text_log


@pytest.mark.parametrize(
    ("number", "decimal"),
    [("2,5", True), ("2,3105", True), ("0,125", True), (",5", True), ("1.234,5", True), ("1,234,567", False),
     ("1,234.5", False), ("2,310", None), ("12,34,5", None)],
)  # fmt: skip
def test_comma_of_a_number(number: str, decimal: bool | None) -> None:
    assert comma_of(number) is decimal


@pytest.mark.parametrize("mark", ["\t", ";"])
def test_a_column_has_one_meaning_of_its_commas(tmp_path: Path, mark: str) -> None:
    rows = [("step", "loss", "lr"), ("900", "2,310", "1,5E-4"), ("1,000", "2,3105", "1E-4")]
    file = tmp_path / "a.csv"
    file.write_text("".join(mark.join(row) + "\n" for row in rows))
    (log,) = read_logs(file)
    assert points(log, "train/loss") == [(900, 2.31), (1000, 2.3105)]
    assert points(log, "train/lr") == [(900, 1.5e-4), (1000, 1e-4)] and not log.unread


@pytest.mark.parametrize(("mark", "loss"), [("\t", 2310), (";", 2.31)])
def test_where_nothing_tells_the_mark_between_cells_does(tmp_path: Path, mark: str, loss: float) -> None:
    file = tmp_path / "a.csv"
    file.write_text(f"step{mark}loss\n1{mark}2,310\n2{mark}2,205\n")
    (log,) = read_logs(file)
    assert points(log, "train/loss")[0] == (1, loss)


def test_thousands_in_quotes(tmp_path: Path) -> None:
    file = tmp_path / "a.csv"
    file.write_text('step,loss,tokens_per_second\n1,2.5,"1,020"\n2,2.4,"1,100"\n')
    (log,) = read_logs(file)
    assert points(log, "system/tokens_per_second") == [(1, 1020), (2, 1100)]


def test_decimal_commas_of_a_text(tmp_path: Path) -> None:
    text = "learning_rate = 0,001\n" + "".join(
        f"2026-01-27 10:00:00,123 step: {step} loss: {loss} lr: 0,001\n"
        for step, loss in (("900", "2,3105"), ("1,000", "2,310"))
    )
    log = read_text_log(tmp_path, text)
    assert points(log, "train/loss") == [(900, 2.3105), (1000, 2.31)]
    assert points(log, "train/lr") == [(900, 1e-3), (1000, 1e-3)] and log.settings.learning_rate == 1e-3


def test_a_text_with_points_keeps_its_commas() -> None:
    lines = ["Num examples = 10,000", "shape: 64,12", *["step 1,000 loss: 2.5, lr: 0.1"] * 3]
    assert point_for_comma(lines) is None


def test_numbers_as_text_within_a_record(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_text('{"step": 10, "train": {"loss": "2.5", "note": "x"}}\n{"step": 20, "train": {"loss": "NaN"}}\n')
    (log,) = read_logs(file)
    assert points(log, "train/loss")[0] == (10, 2.5) and len(log.series["train/loss"]) == 2
    assert log.unread == {"column train/note: not numbers": 1}
