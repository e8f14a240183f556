"""The `fledge` command, run in a process of its own."""

import os
import runpy
import subprocess
import sys
from functools import partial

from tests.support import forked

COMMAND = [sys.executable, "-m", "fledge.cli"]
TIMEOUT = 280  # seconds


def fledge(
    *words: object, text: str = "", limit: int | None = None, folder: object = None, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run the command in a process, which has imported torch already (`COMMAND` is the command without that). `limit` is the
    size in bytes of the largest file that it may write, as on a full disk, and such a process imports torch itself; `folder`:
    where it runs; `variables`: of its environment."""
    environment, place = {"COLUMNS": "100", **variables}, str(folder or os.getcwd())
    if limit is not None:  # its output goes into pipes, which the limit does not concern
        return subprocess.run(
            [*COMMAND, *map(str, words)],
            input=text, capture_output=True, text=True, check=False, timeout=TIMEOUT, cwd=place,
            env={**os.environ, **environment}, preexec_fn=partial(_limit_files, limit),
        )  # fmt: skip
    call = forked.Call(
        function=f"{__name__}:be_command", arguments=[list(map(str, words))], text=text, folder=place, variables=environment
    )
    (ended,) = forked.run([call], TIMEOUT)
    return ended


def _limit_files(limit: int) -> None:
    import resource
    import signal

    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def be_command(words: list[str]) -> None:
    """Do what `python -m fledge.cli` does with these words."""
    sys.path[0] = os.getcwd()
    sys.argv[1:] = words
    runpy.run_module("fledge.cli", run_name="__main__", alter_sys=True)


def assert_error(result: subprocess.CompletedProcess[str], *messages: str) -> None:
    """Check that a command ended with exit code 2, without a traceback, and with these messages."""
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    for message in messages:
        assert message in result.stderr, result.stderr
