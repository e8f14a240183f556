"""Checks of the computation against the device."""

from collections.abc import Iterator

from fledge.findings import Finding
from fledge.plan.critic.planned_stage import PlannedStage

BF16_CAPABILITY = (8, 0)  # of GPUs with bf16 units; bf16 on older ones is an error


def precision(planned: PlannedStage) -> Iterator[Finding]:
    """A dtype that the device does not need, or has no units for."""
    yield from _fp16_without_need(planned)
    yield from _bf16_on_a_cpu_without_it(planned)


def _bf16_on_a_cpu_without_it(planned: PlannedStage) -> Iterator[Finding]:
    """bf16 on a CPU that converts each product to fp32 and back."""
    if planned.recipe.runtime.precision != "bf16" or planned.cpu_has_bf16 is not False:
        return
    yield planned.finding(
        "runtime.precision",
        "this CPU does not multiply bf16 (it has neither AVX-512 BF16 nor AMX): each product is converted to fp32 and back, "
        "which takes several times as long and more memory than is planned",
        "set runtime.precision to auto, which measures both",
        sure="certain",
        evidence={"precision": "bf16", "cpu_has_bf16": False},
        patch={"runtime.precision": "auto"},
    )


def _fp16_without_need(planned: PlannedStage) -> Iterator[Finding]:
    """fp16, whose numbers overflow above 65,504, where bf16 is as fast; or on a CPU, where it is not meant."""
    runtime, units = planned.recipe.runtime, planned.capability
    if runtime.precision != "fp16" or (runtime.device == "cuda" and units is None):
        return
    if units is not None and units < BF16_CAPABILITY:
        return
    why = "a CPU computes in fp32 or bf16"
    if units is not None:
        why = f"this GPU has bf16 units (compute capability {units[0]}.{units[1]}), which are as fast"
    yield planned.finding(
        "runtime.precision",
        f"fp16 overflows above 65,504, so updates are skipped and the loss is scaled; {why}",
        "set runtime.precision to auto",
        sure="likely",
        evidence={"precision": "fp16", "compute_capability": None if units is None else f"{units[0]}.{units[1]}"},
        patch={"runtime.precision": "auto"},
    )
