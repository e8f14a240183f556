import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from tests.support.report_run import write_run


@pytest.fixture
def run_directory(tmp_path: Path) -> Path:
    return write_run(tmp_path / "quickstart")
