"""Shapes of lines that trainers print, rewritten into `name: number` before figures are read; and what is no figure."""

import re

from fledge.training_log.numbers import NUMBER, SPECIAL

CLOCK = re.compile(
    r"[\[(]?\b\d{4}[-/.]\d{1,2}[-/.]\d{1,2}(?:[T _]\d{1,2}:\d{2}(?::\d{2}(?:[.,]\d+)?)?(?:Z|\s?[+-]\d{2}:?\d{2})?)?\b[\])]?"
    r"|(?<![\w:.])\d{1,3}:\d{2}(?::\d{2})?(?:[.,]\d+)?(?![\w:])"
    r"|\b(?:\d+h\s?)?\d+m\s?\d+s\b|\b(?:cuda|xpu|npu|mps):\d+\b"
    r"|\[\w+[|][^\]]*\]|\[?rank\s?\d+\]?:?|\b[\w/]+\.py:\d+|\b\d{1,3}(?:\.\d{1,3}){3}(?::\d+)?\b"
)
"""Dates, clock times, places in source files, ranks and addresses: their numbers are no figures."""


def _shape(needs: str, pattern: str, replacement: str) -> tuple[str, re.Pattern[str], str]:
    return needs, re.compile(pattern, re.IGNORECASE), replacement


REWRITES: tuple[tuple[str, re.Pattern[str], str], ...] = (
    # torchtune's progress bar: epoch|update|Loss
    _shape("|loss", r"^\s*(\d+)\|(\d+)\|\s*(?=loss)", r"axis/epoch: \1 | axis/step: \2 | "),
    # minimind: Epoch:[1/2](100/1500)
    _shape(
        "epoch",
        r"\bepoch\s*:?\s*[\[(]\s*(\d+)\s*/\s*(\d+)\s*[\])]\s*[\[(]\s*(\d+)\s*/\s*(\d+)\s*[\])]",
        r" | axis/epoch: \1 | axis/total_epochs: \2 | axis/epoch_step: \3 | axis/epoch_steps: \4 | ",
    ),
    # Epoch 3(100/1500)
    _shape(
        "epoch",
        r"\bepoch\s*[:=]?\s*(\d+)\s*[\[(]\s*(\d+)\s*/\s*(\d+)\s*[\])]",
        r" | axis/epoch: \1 | axis/epoch_step: \2 | axis/epoch_steps: \3 | ",
    ),
    # Epoch [1/5], Epoch 1/5
    _shape(
        "epoch",
        r"\bepochs?\s*[:=]?\s*[\[(]?\s*(\d+(?:\.\d+)?)\s*/\s*(\d+)\s*[\])]?",
        r" | axis/epoch: \1 | axis/total_epochs: \2 | ",
    ),
    # Epoch 1 - 100/1000 - …
    _shape(
        "epoch",
        r"\bepoch\s*[:=]?\s*(\d+)\s+[-–—|]\s+(\d+)\s*/\s*(\d+)(?=\s|$)",
        r" | axis/epoch: \1 | axis/bar_step: \2 | axis/bar_total: \3 | ",
    ),
    # step 100/5000, iteration 100/ 5000, Step [100/600]
    _shape(
        "/",
        r"\b(?:global[_ ])?(step|update|iteration|iter|batch)s?\s*[:=#]?\s*[\[(]?\s*(\d+)\s*/\s*(\d+)\s*[\])]?",
        r" | \1: \2 | axis/total_steps: \3 | ",
    ),
    _shape("/infinity", r"\b(iteration|iter|step)\s+(\d+)\s*/\s*infinity", r" | \1: \2 | "),
    # a bar of tqdm: 12%|███   | 120/1000 [00:10<01:10, 12.3it/s, loss=2.1]
    _shape(
        "%|",
        r"\d+%\|[^|]*\|\s*(\d+)/(\d+)\s*\[[^\],]*(?:,\s*[\d.?]+\s?[^\s,\]]+)?,?",
        r" | axis/bar_step: \1 | axis/bar_total: \2 | ",
    ),
    _shape("it [", r"^\s*(\d+)it\s*\[[^\],]*(?:,\s*[\d.?]+\s?[^\s,\]]+)?,?", r" | axis/bar_step: \1 | "),
    # a bar of Keras: 100/100 [=====] - 5s 50ms/step - loss: 0.5
    _shape(
        "/",
        r"^\s*(\d+)/(\d+)\s*(?:\[[=>. ]*\]|[━╸╺─ ]+)\s*(?:-\s*)?(?:ETA:\s*\S+\s*)?(?:[\d.]+[smhu]+\s*)?"
        r"(?:[\d.]+\w+/(?:step|epoch))?",
        r" | axis/bar_step: \1 | axis/bar_total: \2 | ",
    ),
    _shape("第", r"第\s*(\d+)\s*/\s*(\d+)\s*(?:轮|个?\s*epoch|个?周期)", r" | axis/epoch: \1 | axis/total_epochs: \2 | "),
    _shape("第", r"第\s*(\d+)\s*(?:轮|个?\s*epoch|个?周期)", r" | axis/epoch: \1 | "),
    _shape("第", r"第\s*(\d+)\s*(?:步|个?\s*step|次迭代|次更新)", r" | axis/step: \1 | "),
    _shape("train", rf"^\s*(\d+)\s+train\s+(?={NUMBER}\s*$)", r"axis/step: \1 | train loss: "),
    _shape("val", rf"^\s*(\d+)\s+val\s+(?={NUMBER}\s*$)", r"axis/step: \1 | val loss: "),
    # LitGPT: loss train: 2.3, val: 2.4
    _shape("val", rf"(?<=\bval)(?=\s*[:=]\s*(?:{NUMBER}|{SPECIAL}))", r" loss"),
    # nanoGPT: loss 3.2, time 20.1ms
    _shape(", time", rf"(?<=, )time(?=:?\s+{NUMBER}\s?ms\b)", r"step_time"),
    # Megatron: lm loss value: 6.4E+00
    _shape("loss value", r"(?<=loss) value(?=\s*:)", ""),
)
"""What a line has in lower case, form of a part of it → the same as names and numbers. A later entry sees what an earlier one
wrote. A number is any that is read as one: a form must not depend on its sign or digits, for lines of one form are read
alike."""


def _crash(pattern: str, kind: str) -> tuple[re.Pattern[str], str]:
    return re.compile(pattern, re.IGNORECASE), kind


CRASHES: tuple[tuple[re.Pattern[str], str], ...] = (
    _crash(r"(?:CUDA|HIP|MPS|XPU|NPU)[^\n]{0,60}out of memory|OutOfMemoryError|OOM when allocating", "out of memory"),
    _crash(r"^\s*Killed\s*$|oom[-_ ]?kill|signal 9\b|SIGKILL|exit(?:ed with)? code (?:-9|137)\b", "killed"),
    _crash(
        r"\b(?:nan|inf)(?:\s*(?:or|/)\s*(?:nan|inf))?\b[^\n]{0,40}\b(?:found|detected|encountered|in (?:loss|grad))"
        r"|(?:found|detected|encountered)[^\n]{0,30}\b(?:nan|inf)\b|loss is (?:nan|inf)",
        "not a number",
    ),
    _crash(r"(?:loss )?scale[^\n]{0,40}(?:reached|at|below)[^\n]{0,20}minimum|minimum loss scale", "loss scale"),
    _crash(r"ncclInternalError|NCCL (?:error|timeout|WARN)|Watchdog caught collective|ChildFailedError", "processes"),
    _crash(r"No space left on device", "disk full"),
    _crash(r"^KeyboardInterrupt|received SIGTERM|CANCELLED AT|DUE TO TIME LIMIT", "stopped from outside"),
)
"""Form of a line → what ended the run, in a few words."""
TRACEBACK = "Traceback (most recent call last)"
RAISED = re.compile(r"^(?:\w+\.)*\w*(?:Error|Exception|Interrupt|Exit)\b.*$|^(?:\w+\.)+\w+:\s.*$")


def rewritten(line: str) -> str:
    """The line without clock times, and with known shapes as names and numbers."""
    line = CLOCK.sub(" ", line)
    lowered = line.lower()
    for needs, pattern, replacement in REWRITES:
        if needs in lowered:
            line = pattern.sub(replacement, line)
    return line


def crash_kind(line: str) -> str | None:
    """What ended a run, if this line says it."""
    return next((kind for pattern, kind in CRASHES if pattern.search(line)), None)
