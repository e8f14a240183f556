"""A sample run directory for the tests of the report."""

from pathlib import Path

import pytest

from tests.support.report_run import write_run


@pytest.fixture
def run_directory(tmp_path: Path) -> Path:
    """A run of three stages with every file that the report reads."""
    return write_run(tmp_path / "quickstart")
