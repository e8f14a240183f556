"""Causes between several processes: equal rows, different weights, uneven speed."""

import re
from collections.abc import Iterator

import numpy as np

from fledge.diagnosis.case import Case
from fledge.diagnosis.cause import Cause, Sign
from fledge.diagnosis.causes.consequences import BREAKS, BY_HEART
from fledge.diagnosis.causes.signs import above, at_most, sign, span
from fledge.diagnosis.thresholds import threshold

SAME_ROWS = "same data on every process"
DRIFT = "processes drift apart"
UNEVEN = "uneven step times"

TEXTS = ("text", "message", "reason", "error")
"""Keys of events that hold what was said."""
ROWS_SAID = re.compile(
    r"(processes|ranks) (read the same|did not share the) rows|same (data|batch|rows) on (every|all) (rank|process)"
)
WEIGHTS_SAID = re.compile(
    r"process \d+ does not hold the weights of process 0|"
    r"(parameters|weights) (differ|diverge)\w* (across|between|on) (ranks|processes)"
)


def _sentences(case: Case) -> Iterator[str]:
    """What the events of the log say, the text of crashes among them."""
    for event in case.log.events:
        for key in TEXTS:
            if isinstance(text := event.get(key), str):
                yield text


def _said(case: Case, pattern: re.Pattern[str]) -> str | None:
    return next((text for text in _sentences(case) if pattern.search(text)), None)


def same_rows(case: Case) -> Sign | None:
    """The log says that processes read equal rows."""
    text = _said(case, ROWS_SAID)
    if text is None:
        return None
    return sign(
        SAME_ROWS,
        "certain",
        f"every process trains on the same rows, so that several do the work of one: {text[:200]}",
        hint="give each process its own part of the rows: a DistributedSampler with set_epoch, or split_dataset_by_node",
        proof="compare a hash of the tokens of one update between the processes: they must differ",
        evidence={"text": text[:400], "processes": case.settings.processes},
    )


def drift(case: Case) -> Sign | None:
    """The log says that processes hold different weights."""
    text = _said(case, WEIGHTS_SAID)
    if text is None:
        return None
    return sign(
        DRIFT,
        "certain",
        f"the processes do not hold the same weights any more: {text[:200]}",
        hint="wrap the model once, before the optimizer is made; all processes must make the same updates with the same "
        "gradients "
        "and start from the same weights",
        proof="compare a checksum of each tensor between the processes after every update: they must be equal",
        evidence={"text": text[:400], "processes": case.settings.processes},
    )


def uneven(case: Case) -> Sign | None:
    """Many updates of several processes take far longer than the usual one."""
    seconds, processes = case.log.get("system/step_seconds"), case.settings.processes
    if seconds is None or not processes or processes <= 1 or len(seconds) < threshold("processes", "few_points"):
        return None
    usual = float(np.median(seconds.values))
    if usual <= 0:
        return None
    share = float(np.mean(seconds.values >= threshold("processes", "slow_step") * usual))
    confidence = at_most("likely", above("processes", "slow_steps", share))
    if confidence is None:
        return None
    return sign(
        UNEVEN,
        confidence,
        f"{share:.1%} of the updates take at least {threshold('processes', 'slow_step'):g} times the usual {usual:.3g} s: the "
        f"{processes:.0f} processes wait for the slowest of them",
        hint="give processes equal numbers of tokens, look for a machine that is slower or shared, and for files on a slow "
        "disk",
        proof="log the seconds of each process for some updates: they must be alike",
        evidence={"slow steps": share, "usual seconds": usual, "processes": processes},
        severity="warning",
        alternatives={"waiting for data": "the time that each step waits for data"},
        steps=span(seconds),
    )


CAUSES = (
    Cause(
        name=SAME_ROWS,
        category="processes",
        find=same_rows,
        explains=BY_HEART | {"duplicated data", "stopped by an error"},
        rank=4,
    ),
    Cause(
        name=DRIFT,
        category="processes",
        find=drift,
        explains=BREAKS | {"high level", "not a number", "stopped by an error"},
        rank=4,
    ),
    Cause(
        name=UNEVEN, category="processes", find=uneven, explains=frozenset({"slow training", "updates become slower"}), rank=60
    ),
)
"""The causes between several processes."""
