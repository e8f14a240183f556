"""Figures written in the form of each trainer are read back as they were."""

import json
import math
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledge.training_log import read_logs
from tests.training_log.logs import points, read_text_log

Row = tuple[int, float, float]
FORMS: dict[str, Callable[[Row], str]] = {
    "colons": lambda row: f"step:{row[0]}, loss:{row[1]!r}, lr:{row[2]!r}",
    "pipes": lambda row: f"step {row[0]:05d} | loss: {row[1]!r} | lr: {row[2]!r}",
    "equals": lambda row: f"step={row[0]} loss={row[1]!r} learning_rate={row[2]!r}",
    "blanks": lambda row: f"iter {row[0]}: loss {row[1]!r}, lr {row[2]!r}",
    "time": lambda row: f"2026-01-27 10:00:00,123 - INFO - step: {row[0]}  loss: {row[1]!r}  lr: {row[2]!r}",
    "dict": lambda row: str({"loss": row[1], "learning_rate": row[2], "step": row[0]}),
    "chinese": lambda row: f"步数：{row[0]}，损失：{row[1]!r}，学习率：{row[2]!r}",
    "thousands": lambda row: f"Step {row[0]:,} | Loss: {row[1]!r} | LR: {row[2]!r}",
    "total": lambda row: f"iteration {row[0]:8d}/ 9999999 | lm loss: {row[1]!r} | learning rate: {row[2]!r} |",
}
numbers = st.floats(1e-6, 1e3) | st.sampled_from([math.nan, math.inf, 0.0])
rows = st.lists(st.tuples(numbers, st.floats(1e-9, 1.0)), min_size=1, max_size=8)


def same(found: list[tuple[float, float]], expected: list[tuple[float, float]]) -> bool:
    """Whether the points are equal to the last bit; not a number equals itself."""
    return len(found) == len(expected) and all(
        a[0] == b[0] and (a[1] == b[1] or (math.isnan(a[1]) and math.isnan(b[1]))) for a, b in zip(found, expected, strict=True)
    )


@pytest.mark.parametrize("form", FORMS)
@given(values=rows, first=st.integers(1, 5000))
def test_text(form: str, values: list[tuple[float, float]], first: int) -> None:
    written = [(first + 7 * place, loss, rate) for place, (loss, rate) in enumerate(values)]
    with tempfile.TemporaryDirectory() as folder:
        log = read_text_log(Path(folder), "\n".join(map(FORMS[form], written)) + "\n")
    assert same(points(log, "train/loss"), [(step, loss) for step, loss, _ in written])
    assert same(points(log, "train/lr"), [(step, rate) for step, _, rate in written])


def _json(written: list[Row]) -> str:
    return "".join(json.dumps({"step": step, "loss": loss, "lr": rate}) + "\n" for step, loss, rate in written)


def _csv(written: list[Row]) -> str:
    return "step,loss,lr\n" + "".join(f"{step},{loss!r},{rate!r}\n" for step, loss, rate in written)


@pytest.mark.parametrize(
    ("name", "write"), [("a.jsonl", _json), ("a.csv", _csv), ("a.tsv", lambda r: _csv(r).replace(",", "\t"))]
)
@given(values=rows)
def test_tables(name: str, write: Callable[[list[Row]], str], values: list[tuple[float, float]]) -> None:
    written = [(1 + 7 * place, loss, rate) for place, (loss, rate) in enumerate(values)]
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / name
        file.write_text(write(written), encoding="utf-8")
        (log,) = read_logs(file)
    assert same(points(log, "train/loss"), [(step, loss) for step, loss, _ in written])
    assert same(points(log, "train/lr"), [(step, rate) for step, _, rate in written])


@given(st.text(max_size=300))
def test_no_text_breaks_the_reader(text: str) -> None:
    from fledge.errors import FledgeError

    with tempfile.TemporaryDirectory() as folder:
        try:
            log = read_text_log(Path(folder), text.encode("utf-8", "ignore").decode("utf-8"))
        except FledgeError:
            return
    assert log.series


@given(st.binary(max_size=300))
def test_no_bytes_break_the_reader(content: bytes) -> None:
    from fledge.errors import FledgeError

    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "run.log"
        file.write_bytes(content)
        try:
            (log,) = read_logs(file)
        except FledgeError:
            return
    assert log.series
