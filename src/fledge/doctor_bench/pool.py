"""Runs the cases of the bench in worker processes, which import everything once."""

import json
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Any

from fledge.doctor_bench.case_key import CaseKey

ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false", "RAYON_NUM_THREADS": "1"}
Answer = dict[str, Any]


def run_cases(
    keys: Sequence[CaseKey], out: Path, processes: int, done: Callable[[Answer], None], work: Sequence[str] = ("train",)
) -> None:
    """Run cases in `processes` workers; `done` gets the answer of each. `work`: arguments of the worker. A worker that dies is
    replaced, and its case is answered as a failure."""
    waiting: SimpleQueue[CaseKey] = SimpleQueue()
    for key in keys:
        waiting.put(key)
    lock = threading.Lock()

    def answered(answer: Answer) -> None:
        with lock:
            done(answer)

    threads = [threading.Thread(target=_serve, args=(waiting, out, number, answered, work)) for number in range(processes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def _serve(waiting: SimpleQueue[CaseKey], out: Path, number: int, done: Callable[[Answer], None], work: Sequence[str]) -> None:
    """One worker after another, until no case waits."""
    worker: subprocess.Popen[str] | None = None
    try:
        while True:
            try:
                key = waiting.get_nowait()
            except Empty:
                return
            if worker is None:
                worker = _started(out, number, work)
            answer = _asked(worker, key)
            if answer is None:
                worker.kill()
                worker.wait()
                answer = {"key": key.text, "failure": f"the worker ended ({worker.returncode})", "error": None, "seconds": {}}
                worker = None
            done(answer)
    finally:
        if worker is not None:
            assert worker.stdin is not None
            worker.stdin.close()
            worker.wait()


def _started(out: Path, number: int, work: Sequence[str]) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "fledge.doctor_bench.worker", str(out), *work]
    log = (out / f"worker-{number}.log").open("a", encoding="utf-8")
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=log,
        text=True,
        env={**os.environ, **ONE_THREAD},
    )


def _asked(worker: subprocess.Popen[str], key: CaseKey) -> Answer | None:
    """The answer of a worker to a case; None if it has ended."""
    assert worker.stdin is not None and worker.stdout is not None
    try:
        worker.stdin.write(key.text + "\n")
        worker.stdin.flush()
        line = worker.stdout.readline()
    except OSError:
        return None
    return json.loads(line) if line else None
