"""Starts the processes of a run on this machine, and starts them again when one is lost.

Underneath is torchrun's elastic agent. It takes every exit code but 0 for a reason to start again; so a process that ends
in good order, also with an error of the user's or after a signal, leaves its exit code in a file and ends with 0.
"""

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
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn

from fledge.errors import GONE, FledgeError

ENDINGS = "FLEDGE_ENDINGS"  # the folder for exit codes: set for the processes that are started here
GRACE = 30  # seconds that processes get to end after the one that started them is gone
WATCH = 0.5  # seconds between two looks at it


def launch(arguments: Sequence[str], count: int, restarts: int) -> int:
    """Run the command with these arguments in `count` processes; returns its exit code. Signals are passed on to them.

    FledgeError where they were lost more often than they may be started again."""
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="fledge-") as folder, _passing_on() as asked:
        os.environ |= {ENDINGS: folder, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(_threads(count)))}
        config = LaunchConfig(
            min_nodes=1, max_nodes=1, nproc_per_node=count, run_id=uuid.uuid4().hex, rdzv_backend="c10d",
            rdzv_endpoint="localhost:0", max_restarts=restarts, monitor_interval=0.1, signals_to_handle="",
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
            del os.environ[ENDINGS]
        codes = [int(file.read_text()) for file in sorted(Path(folder).iterdir())]
    return codes[0] if codes else 0


def _threads(count: int) -> int:
    from fledge.run.environment import cores

    return max(1, cores() // count)


@contextmanager
def _passing_on() -> Iterator[list[int]]:
    """SIGINT and SIGTERM go to the processes that this one has started; gives those that came."""
    import psutil

    asked: list[int] = []

    def pass_on(number: int, frame: Any) -> None:
        asked.append(number)
        children = psutil.Process().children()
        if not children:
            raise KeyboardInterrupt
        for child in children:
            try:
                child.send_signal(number)
            except psutil.NoSuchProcess:
                continue

    before = {number: signal.signal(number, pass_on) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def is_process() -> bool:
    """Whether this process is one of several that were started together, here or by torchrun."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def end_process(work: Callable[[], int]) -> NoReturn:
    """The last thing that one of several processes does: `work`, which gives its exit code. Where `launch` has started it the
    process ends with 0, and leaves its code for `launch`; with 1 after an error that nobody expected.

    It ends without waiting for threads: those that talk to a process that is gone would wait for it."""
    try:
        code, folder = work(), os.environ.get(ENDINGS)
        if folder is not None:
            if code not in (0, GONE) and Path(folder).exists():
                (Path(folder) / os.environ["RANK"].zfill(6)).write_text(str(code))
            code = 0
    except SystemExit:
        raise
    except BaseException:
        traceback.print_exc()
        code = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def end_with_starter() -> None:
    """From now on this process asks itself to stop when the one that started it is gone, and a while later it ends."""
    if ENDINGS not in os.environ:
        return
    starter = os.getppid()

    def watch() -> None:
        while os.getppid() == starter:
            time.sleep(WATCH)
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(GRACE)
        os._exit(1)

    threading.Thread(target=watch, name="fledge-starter", daemon=True).start()
