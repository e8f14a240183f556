"""The names of the pictures: whatever a log calls its runs, each picture is one file of the folder."""

from pathlib import Path

import pytest

from fledge.doctor.plots import write_plots
from tests.doctor.made_up import FAULTY, NOTHING, examination

pytest.importorskip("matplotlib")


def test_names_of_runs_that_are_paths_make_files_of_the_folder(tmp_path: Path) -> None:
    folder = tmp_path / "in" / "pictures"
    stages = ["logs/a/version_0", "logs-a-version_0", "../x", "..", "学习 率", "a" * 300, "sft-zh"]
    files = write_plots([examination(FAULTY if stage == "../x" else NOTHING, stage=stage) for stage in stages], folder)
    assert [file.name for file in files] == [
        "logs-a-version_0-loss.png", "logs-a-version_0-2-loss.png", "x-1-learning-rate-too-high.png", "log-loss.png",
        "学习-率-loss.png", f"{'a' * 40}-loss.png", "sft-zh-loss.png",
    ]  # fmt: skip
    assert sorted(tmp_path.rglob("*.png")) == sorted(files) and all(file.parent == folder for file in files)
