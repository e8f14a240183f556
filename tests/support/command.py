"""The `fledge` command, run in a process of its own."""

import os
import subprocess
import sys

COMMAND = [sys.executable, "-m", "fledge.cli"]


def fledge(*words: object, text: str = "", limit: int | None = None) -> subprocess.CompletedProcess[str]:
    """Run the command in a process. `limit` is the size in bytes of the largest file that it may write, as on a full disk."""

    def restrict() -> None:
        import resource
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit or 0, limit or 0))

    return subprocess.run(
        [*COMMAND, *map(str, words)], input=text, capture_output=True, text=True, check=False,
        preexec_fn=restrict if limit else None, env={**os.environ, "COLUMNS": "100"},
    )  # fmt: skip


def assert_error(result: subprocess.CompletedProcess[str], *messages: str) -> None:
    """Check that a command ended with exit code 2, without a traceback, and with these messages."""
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    for message in messages:
        assert message in result.stderr, result.stderr
