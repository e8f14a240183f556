"""A worker process of the bench: reads the keys of cases, one a line, runs each, and answers with a line of JSON.

`python -m fledge.doctor_bench.worker FOLDER [train|again|effect] [keep]`. It ends when its input is closed. `train`: train and
examine; `effect`: train alone; `again`: examine kept models again.
"""

import json
import os
import sys
import traceback
from pathlib import Path


def main(arguments: list[str]) -> int:
    """Run the cases of the input."""
    out, what, keeps = Path(arguments[0]), arguments[1], "keep" in arguments
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever is printed by a run goes to the log, and not among the answers
    import torch

    from fledge.doctor_bench.case_key import CaseKey
    from fledge.doctor_bench.runs import examine_again, run_case

    torch.set_num_threads(1)
    for line in sys.stdin:
        key = CaseKey.parse(line.strip())
        record = examine_again(key, out) if what == "again" else run_case(key, out, examines=what == "train", keeps=keeps)
        if record.failure is not None:
            traceback.print_exc()
        answer = {"key": record.key, "error": record.error, "failure": record.failure, "seconds": record.seconds}
        print(json.dumps(answer), file=answers, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
