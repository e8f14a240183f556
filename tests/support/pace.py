"""How fast this machine runs Python, so that a test of speed asks for a ratio and passes on a slow machine too."""

import json
import time
from collections.abc import Callable

LINES = [json.dumps({"step": step, "loss": step / 7, "learning_rate": 1 / (step + 1)}) for step in range(50_000)]
TRIES = 3


def seconds_of(work: Callable[[], object]) -> float:
    """Seconds of the processor that some work takes."""
    start = time.process_time()
    work()
    return time.process_time() - start


def yardstick() -> None:
    """A fixed piece of work: 50,000 short lines are read as JSON, and their figures are added up."""
    total = 0.0
    for line in LINES:
        total += sum(json.loads(line).values())


def ratio_to_yardstick(work: Callable[[], object]) -> float:
    """Seconds of some work ÷ seconds of the yardstick: the least of some tries of each, which take turns."""
    tries = [(seconds_of(work), seconds_of(yardstick)) for _ in range(TRIES)]
    return min(one for one, _ in tries) / min(other for _, other in tries)
