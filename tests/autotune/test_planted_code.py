"""Code that somebody has put into the folder where torch would look for compiled code is not executed."""

import getpass
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest

from fledge.run.code_cache import VARIABLES

COMPILE = "import torch; torch.compile(lambda x: (x * 2).sum(), dynamic=False)(torch.ones(4, 8))"
OURS = "from fledge.run.code_cache import set_code_cache; set_code_cache()"
CACHE = "from fledge.autotune.compile import use_compile_cache; use_compile_cache()"
DYNAMO_FIRST = "import torch._dynamo"  # which sets TORCHINDUCTOR_CACHE_DIR to the predictable folder


class Planted:
    """An object whose unpickling creates a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> tuple[object, tuple[object, ...]]:
        """Open the file for writing."""
        return open, (str(self.mark), "w")


def compile_in(shared: Path, cache: Path, *lines: str, check: bool = True) -> None:
    """Compile a function in a process whose shared temporary directory is `shared`."""
    environment = {name: value for name, value in os.environ.items() if name not in VARIABLES}
    environment |= {"TMPDIR": str(shared), "FLEDGE_CACHE": str(cache)}
    subprocess.run([sys.executable, "-c", "\n".join([*lines, COMPILE])], env=environment, check=check, capture_output=True)


@pytest.mark.slow
def test_pickles_planted_in_the_shared_temporary_directory_are_not_loaded(tmp_path: Path) -> None:
    shared, cache, mark = tmp_path / "tmp", tmp_path / "cache", tmp_path / "executed"
    shared.mkdir()
    compile_in(shared, cache)
    predictable = shared / f"torchinductor_{getpass.getuser()}"
    entries = [file for kind in ("fxgraph", "aotautograd") for file in (predictable / kind).rglob("*") if file.is_file()]
    assert entries
    for file in entries:
        file.write_bytes(pickle.dumps(Planted(mark)))
    before = sorted(predictable.rglob("*"))
    compile_in(shared, cache, OURS, CACHE)
    compile_in(shared, cache, DYNAMO_FIRST, CACHE)
    assert not mark.exists() and sorted(predictable.rglob("*")) == before
    compile_in(shared, cache, check=False)  # torch's own choice: the planted code runs
    assert mark.exists()
