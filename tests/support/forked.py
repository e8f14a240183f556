"""Processes that start at once: importing torch and this package takes longer than what most tests do in a process.

Two servers import them once, and fork themselves for every call. Calls go to the two in turn, so that the processes of one
run hash strings differently, as those of a real run do.
"""

import atexit
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
_servers: list[subprocess.Popen[bytes]] = []


@dataclass(frozen=True, kw_only=True)
class Call:
    """A function, as `module:name`, that a process of its own calls with JSON values. `text`: its standard input; `variables`:
    of its environment, besides those of this process; `imports`: modules that the server may keep for later calls."""

    function: str
    arguments: list[Any]
    text: str = ""
    variables: dict[str, str] = field(default_factory=dict)
    folder: str = str(ROOT)
    imports: tuple[str, ...] = ()


def run(calls: Sequence[Call], timeout: float) -> list[subprocess.CompletedProcess[str]]:
    """Make calls at the same time: exit code, standard output and standard error of each. Raises subprocess.TimeoutExpired."""
    with tempfile.TemporaryDirectory() as folder:
        places = [Path(folder) / str(number) for number in range(len(calls))]
        asked: list[tuple[int, list[dict[str, Any]]]] = [(0, []), (1, [])]
        for number, (call, place) in enumerate(zip(calls, places, strict=True)):
            place.with_suffix(".in").write_text(call.text, encoding="utf-8")
            environment = {**os.environ, **call.variables}
            asked[number % 2][1].append({**asdict(call), "place": str(place), "environment": environment})
        codes = _ask([asked[number] for number in range(min(2, len(calls)))], timeout)
        if codes is None:
            raise subprocess.TimeoutExpired(calls[0].function, timeout, "".join(map(_errors_of, places)))
        in_order = [codes[number % 2][number // 2] for number in range(len(calls))]
        return [
            subprocess.CompletedProcess(call.arguments, code, _read(place.with_suffix(".out")), _errors_of(place))
            for call, code, place in zip(calls, in_order, places, strict=True)
        ]


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def _errors_of(place: Path) -> str:
    return _read(place.with_suffix(".err"))


def _ask(asked: Sequence[tuple[int, list[dict[str, Any]]]], timeout: float) -> list[list[int]] | None:
    """The exit codes of the calls of each server; None if they have not all ended in time."""
    servers, until = _running_servers(), time.monotonic() + timeout
    for number, calls in asked:
        _pipe(servers[number].stdin).write(json.dumps(calls).encode() + b"\n")
    codes = []
    for number, _ in asked:
        answer = _pipe(servers[number].stdout)
        ready, _, _ = select.select([answer], [], [], max(0.0, until - time.monotonic()))
        line = answer.readline() if ready else b""
        if not line:
            _stop_servers()
            return None
        codes.append(json.loads(line))
    return codes


def _pipe(pipe: Any) -> Any:
    assert pipe is not None
    return pipe


def _running_servers() -> list[subprocess.Popen[bytes]]:
    """The two processes that fork; they are started by the first call, which waits for them, and end with this process."""
    if not _servers:
        atexit.register(_stop_servers)
        command, pipe = [sys.executable, "-m", "tests.support.forked"], subprocess.PIPE
        for _ in range(2):
            _servers.append(subprocess.Popen(command, cwd=ROOT, stdin=pipe, stdout=pipe, process_group=0, bufsize=0))
        for server in _servers:
            assert _pipe(server.stdout).readline() == b"ready\n", "the server of processes has ended"
    return _servers


def _stop_servers() -> None:
    """End both servers and all that they have started."""
    for server in _servers:
        with suppress(ProcessLookupError):
            os.killpg(server.pid, signal.SIGKILL)
        server.wait()
    _servers.clear()


# -- in the other processes ------------------------------------------------------------------------------------------------

KEPT = ("torch.distributed.fsdp", "fledge.pipeline", "fledge.entrypoint", "fledge.cli.commands")


def _serve() -> None:
    """Answer every line of the standard input, a list of calls, by their exit codes. A process that was forked leaves the
    loop by SystemExit."""
    for name in KEPT:
        import_module(name)
    print("ready", flush=True)
    while line := sys.stdin.buffer.readline():
        calls = json.loads(line)
        for name in {name for call in calls for name in call["imports"]}:
            with suppress(Exception):  # the process that needs the module says what is wrong with it
                import_module(name)
        children = []
        for call in calls:
            child = os.fork()
            if not child:
                _answer(call)
            children.append(child)
        print(json.dumps([os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]), flush=True)


def _answer(call: dict[str, Any]) -> None:
    """Be the process of a call: take its files, environment and folder, and end as the function ends."""
    os.environ.clear()
    os.environ.update(call["environment"])
    os.chdir(call["folder"])
    place, written = call["place"], os.O_WRONLY | os.O_CREAT
    for number, (name, flags) in enumerate(((".in", os.O_RDONLY), (".out", written), (".err", written))):
        file = os.open(place + name, flags, 0o600)
        os.dup2(file, number)
        os.close(file)
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    try:
        module, _, name = call["function"].partition(":")
        getattr(import_module(module), name)(*call["arguments"])
    except SystemExit:
        raise
    except BaseException:
        traceback.print_exc()
        sys.exit(1)
    sys.exit(0)


if __name__ == "__main__":
    _serve()
