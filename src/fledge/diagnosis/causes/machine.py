"""Causes in the machine and in how a run went on: waiting for data, slowing down, growing memory, crashes, resumes."""

from fledge.diagnosis.case import Case
from fledge.diagnosis.cause import Cause, Sign
from fledge.diagnosis.causes.batch import micro_batches, resized
from fledge.diagnosis.causes.signs import other_setting, sign, span
from fledge.diagnosis.thresholds import threshold

WAITING, SLOWER, GROWING = "waiting for data", "updates become slower", "memory grows"
OUT_OF_MEMORY, RESUMED, STOPPED = "out of memory", "resumed without optimizer state", "stopped by an error"
MEMORY_WORDS = ("out of memory", "outofmemory", "cannot allocate memory", "oom-kill", "memoryerror", "bad_alloc")


def _limit(name: str) -> float:
    return threshold("machine", name)


def waiting(case: Case) -> Sign | None:
    """Updates that wait for their batches."""
    share, seconds = case.value("curve/data_share"), case.value("curve/step_seconds")
    if share is None or share < _limit("data_share"):
        return None
    return sign(
        WAITING,
        "certain" if share >= _limit("data_share_certain") else "likely",
        f"{share:.0%} of the time of an update ({seconds:.3g} s) is spent waiting for its batch",
        hint="prepare the data before training and keep it on a local disk; give the loader of batches more worker processes "
        "where it has some (dataloader_num_workers, num_workers)",
        proof="time a hundred updates with the rows already in memory",
        evidence={"data_share": share, "step_seconds": seconds},
        severity="warning",
        steps=span(case.log.get("system/step_seconds")),
    )


def slower(case: Case) -> Sign | None:
    """Updates that take longer and longer."""
    ratio, growth = case.value("curve/slow_down"), case.value("curve/memory_growth_share") or 0.0
    trend, points = case.value("curve/slow_trend") or 0.0, case.value("curve/points") or 0
    if ratio is None or ratio < _limit("slow_down") or trend < _limit("slow_trend") or points < _limit("slow_points"):
        return None
    return sign(
        SLOWER,
        "likely",
        f"an update takes {ratio:.1f} times as long at the end as at the beginning",
        hint="look for what grows: memory that is swapped, a list that is kept, longer rows at the end, another program on the "
        "machine, a device that is too hot",
        proof="resume from the last checkpoint in a new process and time a hundred updates",
        evidence={"slow_down": ratio, "memory_growth_share": growth},
        severity="warning",
        alternatives={GROWING: "system/memory_bytes"},
        steps=span(case.log.get("system/step_seconds")),
    )


def growing(case: Case) -> Sign | None:
    """Memory that grows steadily after the first part of a run."""
    share, steady = case.value("curve/memory_growth_share"), case.value("curve/memory_is_steady")
    growth = case.value("curve/memory_growth")
    if share is None or steady is None or share < _limit("memory_growth") or steady < _limit("memory_steady"):
        return None
    is_cpu = other_setting(case, "device") == "cpu"
    keeps_code = is_cpu and case.settings.precision == "bf16"  # oneDNN does, for each shape of a product
    is_clear = share >= _limit("memory_growth_likely") or steady >= _limit("memory_very_steady")
    return sign(
        GROWING,
        "likely" if is_clear and not keeps_code else "possible",
        f"memory grew steadily by {growth / 2**20:,.0f} MiB ({share:.0%}) after the first part of the run",
        hint="look for losses or batches that are kept with their graph (use .item()), and for caches without a limit",
        proof="train as many updates again: memory grows by as much again",
        evidence={"growth_bytes": growth, "growth_share": share, "correlation": steady},
        severity="warning",
        alternatives={"code that a CPU keeps for each shape in bf16": "the same updates in fp32"} if keeps_code else {},
        steps=span(case.log.get("system/memory_bytes")),
    )


def out_of_memory(case: Case) -> Sign | None:
    """A log that ends with a complaint about memory, or has one before its last records."""
    text, before_records = case.value("curve/crash") or "", case.value("curve/crash_before_records") or ""
    is_end = any(word in text.lower() for word in MEMORY_WORDS)
    if not is_end and not any(word in before_records.lower() for word in MEMORY_WORDS):
        return None
    text = text if is_end else before_records
    rows = case.settings.micro_batch_rows
    fewer = max(1, int(rows // 2)) if rows and rows > 1 else None
    exact = {"merge_micro_batches": False} if case.log.stage and other_setting(case, "device") == "cuda" else {}
    return sign(
        OUT_OF_MEMORY,
        "certain" if is_end else "possible",
        f"the run ended without memory: {text[:160]}"
        if is_end
        else f"memory ran out, and the last records stand behind that line, where a buffer may have held them: {text[:160]}",
        hint="use a smaller micro-batch with more accumulation, activation checkpointing, shorter rows, or an adapter",
        proof="train ten updates of the longest rows with the smaller micro-batch",
        evidence={"text": text[:300], "micro_batch_rows": rows},
        patch=resized(case, 2 * micro_batches(case), micro_batch_size=fewer, **exact),
        alternatives={GROWING: "system/memory_bytes"},
        steps=None,
    )


def stopped(case: Case) -> Sign | None:
    """A log that ends with another error."""
    text = case.value("curve/crash") or ""
    if not text or any(word in text.lower() for word in MEMORY_WORDS):
        return None
    return sign(
        STOPPED,
        "certain",
        f"the log ends with an error: {text[:160]}",
        hint="read the lines before it; the last sound checkpoint can be trained on",
        proof="resume from the last checkpoint: the same error comes, or does not",
        evidence={"text": text[:300]},
        severity="warning",
    )


def resumed(case: Case) -> Sign | None:
    """A loss that jumps up where a process went on with the run, or gradients and updates that do."""
    jump, restored = case.value("curve/resume_jump"), case.value("probe/restored_state")
    if restored is not None and restored < _limit("restored"):
        return _not_restored(case, restored)
    if jump is None:
        return None
    level, gradient, updates = jump["level"], jump.get("gradient_z", 0.0), jump.get("update_factor", 0.0)
    jumps = jump["z"] >= _limit("jump_z") and jump["size"] >= max(_limit("jump_share") * abs(level), _limit("jump_nats"))
    begins_anew = gradient >= _limit("gradient_z") and updates >= _limit("update_factor")
    if not jumps and not begins_anew and gradient < _limit("gradient_z_alone"):
        return None
    says = [f"the loss jumps by {jump['size']:.3f} from {level:.3f}"] if jumps else []
    says += ["gradients are larger than before"] if gradient >= _limit("gradient_z") else []
    says += [f"updates are {updates:.1f} times as large"] if updates >= _limit("update_factor") else []
    return sign(
        RESUMED,
        "likely" if jumps or begins_anew else "possible",
        f"at step {jump['step']:,.0f}, where the run went on, {' and '.join(says)}: the state of the optimizer, the schedule "
        "or the weights did not come back as it was",
        hint="save and load optimizer, schedule and step with the weights, and in their full precision",
        proof="resume from one checkpoint twice and compare the losses with those of a run that was not interrupted",
        evidence=dict(jump),
        severity="warning",
        alternatives={"checkpoint damaged": "probe/files_damaged", "other data after the resume": "the rows of both sides"},
        steps=(float(jump["step"]) - 20, float(jump["step"]) + 20),
    )


def _not_restored(case: Case, share: float) -> Sign:
    """The trainer's own restoring of a checkpoint that brings back only a share of the optimizers' state."""
    jump, resumes = case.value("curve/resume_jump"), case.value("curve/resumes")
    went_on = f"; the run went on {resumes:,.0f} times" if resumes else ""
    return sign(
        RESUMED,
        "certain",
        f"restoring a checkpoint brings back only {share:.0%} of the saved state of the optimizers{went_on}",
        hint="load the state of each optimizer after it was made, under the names under which it was saved",
        proof="restore a checkpoint and compare the moments of each tensor with those of the file: they must be equal",
        evidence={"restored_share": share, "resumes": resumes, "jump": jump},
        severity="error" if resumes else "warning",
        steps=None if jump is None else (float(jump["step"]) - 20, float(jump["step"]) + 20),
    )


CAUSES = (
    Cause(name=OUT_OF_MEMORY, category="machine", find=out_of_memory, rank=30, setting=True, explains=frozenset({STOPPED})),
    Cause(name=RESUMED, category="machine", find=resumed, rank=34, needs=("probe/restored_state",),
          explains=frozenset({"loss spikes", "divergence", "oscillation", "learning rate not as planned"})),
    Cause(name=GROWING, category="machine", find=growing, rank=60, needs=("system/memory_bytes",),
          explains=frozenset({"slow training", "updates become slower", OUT_OF_MEMORY})),
    Cause(name=WAITING, category="machine", find=waiting, rank=62, needs=("system/phases/data",),
          explains=frozenset({"slow training", SLOWER})),
    Cause(name=SLOWER, category="machine", find=slower, rank=64, needs=("system/step_seconds",),
          explains=frozenset({"slow training"})),
    Cause(name=STOPPED, category="machine", find=stopped, rank=80, is_effect=True),
)  # fmt: skip
"""The causes in the machine."""
