"""A worker process: `python -m fledge.data.build.worker FOLDER PHASE` reads shard numbers and prints an answer for each, a line
each."""

import os
import signal
import sys
import traceback
from pathlib import Path

from fledge.data.build.phases import run_shard_in
from fledge.errors import FledgeError


def main(folder: str, phase: str) -> None:
    """Run a phase on shards until the input ends. An empty answer is success, otherwise it is a FledgeError as JSON."""
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints is not an answer
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupted command stops its workers itself
    for line in sys.stdin:
        try:
            run_shard_in(Path(folder), phase, int(line))
            answer = ""
        except FledgeError as error:
            answer = error.as_json()
        except Exception:
            traceback.print_exc()
            sys.exit(1)
        print(answer, file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
