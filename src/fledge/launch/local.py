"""Starts the processes of a run on this machine and restarts them when one is lost.

torchrun's elastic agent does the work. The agent restarts the processes after any exit code but 0; so a process that ends in an
orderly way, even with a user error or after a signal, writes its exit code to a file and exits with 0.
"""

import json
import logging
import os
import signal
import sys
import tempfile
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from fledge.entrypoint import to_stderr
from fledge.errors import EXIT_PEER_LOST, FledgeError
from fledge.run.stopping import Interrupted, SignalHandler, signal_received

EXIT_CODE_DIR_ENV = "FLEDGE_EXIT_CODE_DIR"  # directory for exit codes, set for the processes started here
GRACE_SECONDS = 20  # time for a signal to reach this program's own handler
SIGNAL_REPEAT_SECONDS = 1.0  # between two signals to the processes
WATCH_SECONDS = 0.5  # between two checks of the parent process


def launch(arguments: Sequence[str], count: int, restarts: int, stopping: SignalHandler) -> int:
    """Run the command with these arguments in `count` processes and return its exit code. Signals are forwarded to them.

    `stopping` handles signals until the processes are started. Raises FledgeError if processes were lost more than `restarts`
    times.
    """
    with stopping.deferred():
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="fledge-") as folder, forward_signals() as signals:
        os.environ |= {
            EXIT_CODE_DIR_ENV: folder,
            "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(_threads_per_process(count))),
        }
        config = LaunchConfig(
            min_nodes=1, max_nodes=1, nproc_per_node=count, run_id=uuid.uuid4().hex, rdzv_backend="c10d",
            rdzv_endpoint="localhost:0", local_addr="localhost", max_restarts=restarts, monitor_interval=0.1,
            signals_to_handle="",
        )  # fmt: skip
        try:
            elastic_launch(config, sys.executable)("-m", "fledge.cli", *arguments)
        except ChildFailedError as error:
            if signals:
                return 128 + signals[0]
            rank, failure = error.get_first_failure()
            end = f"was killed by signal {-failure.exitcode}" if failure.exitcode < 0 else f"ended with code {failure.exitcode}"
            raise FledgeError(
                f"process {rank} {end}, after {restarts} restarts of all",
                hint="see its output above; the same command continues from the last checkpoint",
            ) from None
        finally:
            del os.environ[EXIT_CODE_DIR_ENV]
        return _report_messages(Path(folder))


def _report_messages(folder: Path) -> int:
    """Print the messages of the last attempt's processes, each once; return the first exit code with a cause of its own."""
    files = sorted(folder.iterdir())
    last_attempt = [file for file in files if file.name.partition("-")[0] == files[-1].name.partition("-")[0]]
    results = [json.loads(file.read_text(encoding="utf-8")) for file in last_attempt]
    causes = [(code, messages) for code, messages in results if code not in (0, EXIT_PEER_LOST)] or results
    for text in dict.fromkeys(text for _, messages in causes for text in messages):
        to_stderr(text)
    return causes[0][0] if causes else 0


def _threads_per_process(count: int) -> int:
    from fledge.run.environment import cores

    return max(1, cores() // count)


@contextmanager
def forward_signals() -> Iterator[list[int]]:
    """A context that forwards SIGINT and SIGTERM to the child processes; yields the list of signals received.

    Signals are repeated: a process that has just started has no handler yet, dies of the signal, and is started again.
    """
    import psutil

    received: list[int] = []
    finished = threading.Event()

    def forward() -> None:
        while not finished.is_set():
            for child in psutil.Process().children():
                with suppress(psutil.NoSuchProcess):
                    child.send_signal(received[0])
            finished.wait(SIGNAL_REPEAT_SECONDS)

    def handle(number: int, frame: Any) -> None:
        received.append(number)
        if len(received) == 1:
            threading.Thread(target=forward, name="fledge-signals", daemon=True).start()
            if not psutil.Process().children():
                raise Interrupted(number, "stopped on request")

    previous = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield received
    finally:
        finished.set()
        for number, handler in previous.items():
            signal.signal(number, handler)


def is_worker_process() -> bool:
    """Whether this process is one of several that were started together, here or by torchrun."""
    from fledge.run.environment import world_size

    return world_size() > 1


def run_worker_and_exit(work: Callable[[Callable[[str], None]], int]) -> NoReturn:
    """Run `work` in one of several processes and exit. `work` gets a function that reports messages, and returns an exit code.

    A process started by `launch` exits with 0 and leaves exit code and messages in a file for `launch`; after an unexpected
    error it exits with 1. It does not wait for threads, which could wait forever for a process that has ended.
    """
    folder, messages = os.environ.get(EXIT_CODE_DIR_ENV), []
    try:
        if folder is None:
            code = work(to_stderr)
        else:
            result = work(messages.append)
            if Path(folder).exists():
                attempt, rank = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), os.environ["RANK"]
                (Path(folder) / f"{attempt.zfill(6)}-{rank.zfill(6)}").write_text(
                    json.dumps([result, messages]), encoding="utf-8"
                )
            code = 0
    except SystemExit:
        raise
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def start_watchdog() -> None:
    """Start two threads that keep this process from outliving its run.

    One sends SIGTERM to this process when its parent has ended. The other ends the process when a signal has not reached its
    handler in time, because a library waits for a process that has ended.
    """
    if EXIT_CODE_DIR_ENV not in os.environ:
        return
    parent = os.getppid()
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)

    def watch_parent() -> None:
        while os.getppid() == parent:
            time.sleep(WATCH_SECONDS)
        os.kill(os.getpid(), signal.SIGTERM)

    def watch_signals() -> None:
        while os.read(read, 1)[0] not in (signal.SIGINT, signal.SIGTERM):
            continue
        time.sleep(GRACE_SECONDS)
        if not signal_received():
            os._exit(0)

    for watch in (watch_parent, watch_signals):
        threading.Thread(target=watch, name="fledge-watch", daemon=True).start()
