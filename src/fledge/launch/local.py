"""Starts the processes of a run on this machine, and starts them again when one is lost.

Underneath is torchrun's elastic agent. It takes every exit code but 0 for a reason to start again; so a process that ends
in good order, also with an error of the user's or after a signal, leaves its exit code in a file and ends with 0.
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

EXIT_CODE_DIR_ENV = "FLEDGE_EXIT_CODE_DIR"  # folder for exit codes; set for the processes that are started here
GRACE = 20  # seconds that a signal may take until this program's own code hears of it
SIGNAL_REPEAT_SECONDS = 1.0  # seconds between two signals to them
WATCH_INTERVAL = 0.5  # seconds between two looks at it


def launch(arguments: Sequence[str], count: int, restarts: int, stopping: SignalHandler) -> int:
    """Run the command with these arguments in `count` processes; returns its exit code. Signals are passed on to them.

    `stopping` listens until they are started. FledgeError where they were lost more often than they may be started again."""
    with stopping.deferred():
        from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
        from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="fledge-") as folder, forward_signals() as asked:
        os.environ |= {EXIT_CODE_DIR_ENV: folder, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(_threads(count)))}
        config = LaunchConfig(
            min_nodes=1, max_nodes=1, nproc_per_node=count, run_id=uuid.uuid4().hex, rdzv_backend="c10d",
            rdzv_endpoint="localhost:0", local_addr="localhost", max_restarts=restarts, monitor_interval=0.1,
            signals_to_handle="",
        )  # fmt: skip
        try:
            elastic_launch(config, sys.executable)("-m", "fledge.cli", *arguments)
        except ChildFailedError as error:
            if asked:
                return 128 + asked[0]
            rank, failure = error.get_first_failure()
            how = f"was killed by signal {-failure.exitcode}" if failure.exitcode < 0 else f"ended with code {failure.exitcode}"
            raise FledgeError(
                f"process {rank} {how}, after {restarts} restarts of all",
                hint="look at what it said before; the same command goes on from the last checkpoint",
            ) from None
        finally:
            del os.environ[EXIT_CODE_DIR_ENV]
        return _code(Path(folder))


def _code(folder: Path) -> int:
    """Say what the processes of the last attempt have said, each thing once; returns the exit code of the first one that has
    one of its own."""
    files = sorted(folder.iterdir())
    last = [file for file in files if file.name.partition("-")[0] == files[-1].name.partition("-")[0]]
    ends = [json.loads(file.read_text(encoding="utf-8")) for file in last]
    own = [(code, said) for code, said in ends if code not in (0, EXIT_PEER_LOST)] or ends
    for text in dict.fromkeys(text for _, said in own for text in said):
        to_stderr(text)
    return own[0][0] if own else 0


def _threads(count: int) -> int:
    from fledge.run.environment import cores

    return max(1, cores() // count)


@contextmanager
def forward_signals() -> Iterator[list[int]]:
    """SIGINT and SIGTERM go to the processes that this one has started, again and again: one that has just been started does
    not listen yet, dies of it, and is started again. Gives the signals that came."""
    import psutil

    asked: list[int] = []
    ended = threading.Event()

    def pass_on() -> None:
        while not ended.is_set():
            for child in psutil.Process().children():
                with suppress(psutil.NoSuchProcess):
                    child.send_signal(asked[0])
            ended.wait(SIGNAL_REPEAT_SECONDS)

    def hear(number: int, frame: Any) -> None:
        asked.append(number)
        if len(asked) == 1:
            threading.Thread(target=pass_on, name="fledge-signals", daemon=True).start()
            if not psutil.Process().children():
                raise Interrupted(number, "stopped on request")

    before = {number: signal.signal(number, hear) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        ended.set()
        for number, handler in before.items():
            signal.signal(number, handler)


def is_worker_process() -> bool:
    """Whether this process is one of several that were started together, here or by torchrun."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def run_worker_and_exit(work: Callable[[Callable[[str], None]], int]) -> NoReturn:
    """The last thing that one of several processes does: `work`, which may say something, and gives its exit code. Where
    `launch` has started it the process ends with 0, and leaves both for `launch`; with 1 after an error that nobody expected.

    It ends without waiting for threads: those that talk to a process that is gone would wait for it."""
    folder, said = os.environ.get(EXIT_CODE_DIR_ENV), []
    try:
        if folder is None:
            code = work(to_stderr)
        else:
            end = work(said.append)
            if Path(folder).exists():
                attempt, rank = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), os.environ["RANK"]
                (Path(folder) / f"{attempt.zfill(6)}-{rank.zfill(6)}").write_text(json.dumps([end, said]), encoding="utf-8")
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
    """From now on two threads see to it that this process does not stay behind: it asks itself to stop when the one that
    started it is gone, and ends where a signal does not get through, because a library waits for a process that has ended."""
    if EXIT_CODE_DIR_ENV not in os.environ:
        return
    starter = os.getppid()
    read, write = os.pipe()
    os.set_blocking(write, False)
    signal.set_wakeup_fd(write, warn_on_full_buffer=False)

    def watch_starter() -> None:
        while os.getppid() == starter:
            time.sleep(WATCH_INTERVAL)
        os.kill(os.getpid(), signal.SIGTERM)

    def watch_signals() -> None:
        while os.read(read, 1)[0] not in (signal.SIGINT, signal.SIGTERM):
            continue
        time.sleep(GRACE)
        if not signal_received():
            os._exit(0)

    for watch in (watch_starter, watch_signals):
        threading.Thread(target=watch, name="fledge-watch", daemon=True).start()
