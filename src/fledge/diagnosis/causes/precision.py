"""Causes in the arithmetic: overflow of fp16, and numbers that are none."""

import math

import numpy as np

from fledge.diagnosis.case import Case
from fledge.diagnosis.cause import Cause, Sign
from fledge.diagnosis.causes.matching import matching
from fledge.diagnosis.causes.signs import sign, span
from fledge.diagnosis.thresholds import threshold

OVERFLOW, BAD_ROWS, BAD_NUMBERS = "fp16 overflow", "bad numbers in single rows", "no finite numbers"
SCALE_WORDS = ("loss scale", "grad scaler", "gradscaler", "overflow")


def _limit(name: str) -> float:
    return threshold("precision", name)


def _uses_fp16(case: Case) -> bool | None:
    """Whether the run computes in fp16: since it scales its loss to and fro, or as it says."""
    scale, precision = case.log.get("train/loss_scale"), case.settings.precision
    if scale is not None and len(set(scale.values.tolist())) > 1:
        return True
    return None if precision is None else "16" in precision and "bf" not in precision.lower()


def overflow(case: Case) -> Sign | None:
    """A loss scale that sinks and updates that are skipped: the activations do not fit into fp16."""
    if _uses_fp16(case) is False:
        return None
    first, last = case.value("curve/first_loss_scale"), case.value("curve/last_loss_scale")
    skipped, late = case.value("curve/skipped_share") or 0.0, case.value("curve/late_skipped_share") or 0.0
    if late == 0.0 and case.log.get("train/skipped_steps") is None:
        late = skipped = case.value("curve/grad_norm_not_finite") or 0.0
    is_dead = last is not None and last <= _limit("dead_scale")
    sinks = first is not None and last is not None and last <= first / _limit("scale_fall") and late > 0
    text = (case.value("curve/crash") or "").lower()
    crashed = any(word in text for word in SCALE_WORDS)
    is_much = late >= _limit("late_skipped")
    if not (is_dead or is_much or (sinks and late >= _limit("some_skipped")) or crashed):
        return None
    if _uses_fp16(case) is None and not crashed:
        return None
    says = [f"the loss scale fell from {first:.3g} to {last:.3g}"] if sinks or (is_dead and first is not None) else []
    says += [f"{late:.1%} of the updates of the last half were skipped"] if late else []
    says += [f"the log ends with: {case.value('curve/crash')[:120]}"] if crashed else []
    return sign(
        OVERFLOW,
        "certain" if (is_dead and late > 0) or (is_much and sinks) or crashed else "likely",
        f"fp16 overflows: {', and '.join(says) or 'the loss scale is dead'}",
        hint="train in bf16, or in fp32; if fp16 it must be, lower the learning rate and clip gradients",
        proof="train the same steps in bf16: no update is skipped",
        evidence={"first_scale": first, "last_scale": last, "skipped_share": skipped, "late_skipped_share": late},
        severity="error" if is_dead or is_much or crashed else "warning",
        patch={"runtime.precision": "bf16"},
        alternatives={"learning rate too high": "the same rate in bf16"},
        steps=span(case.log.get("train/loss_scale"), case.log.get("train/skipped_steps")),
    )


def _lasts(case: Case) -> bool:
    """Whether losses or gradients are no numbers to the end of the log: in its last points, or in the last one before an
    error."""
    if any(case.value(f"curve/{name}_not_finite_at_end") for name in ("loss", "grad_norm")):
        return True
    columns = (case.log.series.get(name) for name in ("train/loss", "train/grad_norm"))
    is_bad = any(one is not None and len(one) and not math.isfinite(float(one.values[-1])) for one in columns)
    return is_bad and case.value("curve/crash") is not None


def bad_numbers(case: Case) -> Sign | None:
    """Losses that become no numbers and stay so: the weights are lost from there on."""
    start = case.value("curve/loss_not_finite_from")
    lasts = _lasts(case)
    if start is None:
        start = case.value("curve/grad_norm_not_finite_from")
    if start is None or not lasts or _uses_fp16(case):
        return None
    from_start = start <= _limit("at_once")
    why = "from the first steps on" if from_start else f"from step {start:,.0f} on"
    return sign(
        BAD_NUMBERS,
        "certain",
        f"the loss or its gradient is no finite number {why}, and stays so to the end: nothing is learned from there on",
        hint="go back to a checkpoint from before, measure the loss of the rows of that step alone, and watch the gradient "
        "norm; where it is so from the first step on, look for rows without any target, and for a mask that leaves nothing",
        proof="compute the loss of the rows of that step with the checkpoint before it",
        evidence={"first_step": start, "grad_norm_max": case.value("curve/grad_norm_max")},
        alternatives={
            "learning rate too high": "gradient norm and loss in the steps before",
            "everything masked": "data/target_share",
        },
        steps=(float(start), float(case.value("curve/last_step") or start)),
    )


def bad_rows(case: Case) -> Sign | None:
    """Single updates without a finite loss or gradient, with training sound before and after. Gradients alone that are no
    numbers can be overflows of an fp16 that the log does not tell: those of the first updates, by which a loss scale finds its
    size, do not count."""
    column, may_be_fp16 = "train/loss", False
    if not case.value("curve/loss_not_finite"):
        column, may_be_fp16 = "train/grad_norm", _uses_fp16(case) is None
    series = case.log.series.get(column)
    if series is None or not len(series) or _lasts(case) or _uses_fp16(case) or matching(case, ("divergence",)):
        return None
    bad = series.steps[~np.isfinite(series.values)]
    if may_be_fp16:
        bad = bad[bad >= series.steps[0] + _limit("first_updates")]
    if not len(bad):
        return None
    share, start = len(bad) / len(series), float(bad[0])
    return sign(
        BAD_ROWS,
        "possible" if may_be_fp16 else "likely",
        f"{share:.2%} of the updates have no finite loss or gradient, first at step {start:,.0f}, and training is sound around "
        "them: single rows do this, such as rows without any target",
        hint="look at the rows of that step: rows of which nothing is supervised divide 0 by 0",
        proof="measure the loss of the rows of that step one by one",
        evidence={"share": share, "first_step": start},
        severity="warning",
        alternatives={"everything masked": "data/target_share", **({OVERFLOW: "train/loss_scale"} if may_be_fp16 else {})},
        steps=(start, float(case.value("curve/last_step") or start)),
    )


CAUSES = (
    Cause(name=OVERFLOW, category="precision", find=overflow, rank=20, setting=True, needs=("train/loss_scale",),
          explains=frozenset({"not a number", "not learning", "divergence", "loss spikes", "slow learning", BAD_NUMBERS,
                              "plateau", "high level", "loss constant", "stopped by an error",
                              "tensors that do not learn", "adapter never updates", BAD_ROWS})),
    Cause(name=BAD_NUMBERS, category="precision", find=bad_numbers, rank=60, needs=("train/grad_norm",),
          explains=frozenset({"not a number", "stopped by an error", "tensors that do not learn",
                              "adapter never updates", BAD_ROWS})),
    Cause(name=BAD_ROWS, category="precision", find=bad_rows, rank=60, explains=frozenset({"not a number"})),
)  # fmt: skip
"""The causes in the arithmetic."""
