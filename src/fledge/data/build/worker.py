"""A worker process: `python -m fledge.data.build.worker FOLDER PHASE`, shard numbers on its input, one answer a line."""

import os
import signal
import sys
import traceback
from pathlib import Path

from fledge.data.build.executors import run_shard
from fledge.errors import FledgeError


def main(folder: str, phase: str) -> None:
    """Perform shards until the input ends. An empty answer is success, else the text of a FledgeError."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is not an answer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupted command stops its workers itself
    for line in sys.stdin:
        try:
            run_shard(Path(folder), phase, int(line))
            answer = ""
        except FledgeError as error:
            answer = error.as_json()
        except Exception:
            traceback.print_exc()
            sys.exit(1)
        print(answer, file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
