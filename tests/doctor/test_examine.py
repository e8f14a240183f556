"""What ends an examination, and what only leaves a depth of it out."""

from pathlib import Path

import pytest

from fledge.doctor import DoctorOptions
from fledge.doctor.examine import MEASURED, examine

LOG = "step,train/loss\n" + "\n".join(f"{step},{4 - step / 30:.4f}" for step in range(1, 61)) + "\n"


@pytest.mark.parametrize(
    "error", [IndexError("list index"), TypeError("of None"), AttributeError("'NoneType'"), ZeroDivisionError()]
)
def test_a_depth_that_fails_is_left_out_whatever_the_error_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fails(*arguments: object) -> None:
        raise error

    file = tmp_path / "log.csv"
    file.write_text(LOG, encoding="utf-8")
    monkeypatch.setitem(MEASURED, "data", fails)
    (found,) = examine(file, DoctorOptions(depth="data"))
    assert found.left_out["data"].startswith(f"this failed: {type(error).__name__}") and "train/loss" in found.case.log.series
