"""One stage on one device: memory by component, the largest micro-batch, and time."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from fledge.forecast.probe import ProbedStage, probed_seconds
from fledge.forecast.target import Target
from fledge.plan.memory import Memory, memory_inputs, memory_of_stage
from fledge.plan.memory_measures import Fit, Plan, what_would_fit
from fledge.plan.memory_probe import MemoryProbe
from fledge.plan.stage_forecast import StageInputs, estimated_time, measured_time
from fledge.plan.time import StageTime
from fledge.prediction import usual_speed_of, usual_time

DRIFT = 0.08  # share by which the speed of a machine drifts between a probe and a run: chosen from benchmarks/plan_time.py


@dataclass(frozen=True, kw_only=True)
class StageOnDevice:
    """A stage on a device. `moments`: memory of a training step, an evaluation, saving and so on, by formula; `fit`: what fits
    into memory, and what would make it fit; `measured`: bytes that a probe held at most, which `fit` goes by. `time`: None
    where the speed of the device is not known."""

    moments: dict[str, Memory]
    fit: Fit
    time: StageTime | None
    measured: int | None = None

    @property
    def worst(self) -> tuple[str, Memory]:
        """The moment that needs the most, and its memory."""
        return max(self.moments.items(), key=lambda item: item[1].total)

    @property
    def needed(self) -> float:
        """Bytes of the stage."""
        return self.fit.needs

    @property
    def fits(self) -> bool:
        """Whether the stage fits into memory."""
        return self.fit.fits

    def as_dict(self) -> dict[str, Any]:
        """The values as JSON."""
        moments = {name: {**asdict(memory), "total": memory.total} for name, memory in self.moments.items()}
        return {
            "memory": {
                "needs": self.needed,
                "available": self.fit.available,
                "measured": self.measured,
                "moments": moments,
            },
            "fits": self.fits,
            "largest_micro_batch": self.fit.largest,
            "measures": [asdict(measure) for measure in self.fit.measures],
            "time": None if self.time is None else self.time.as_dict(),
        }


def stage_on_device(inputs: StageInputs, target: Target, probed: ProbedStage | None) -> StageOnDevice:
    """A stage on a device; `probed`: its probe, if the device is this machine and one was made."""
    count, is_sharded = target.count, inputs.runtime.parallelism == "fsdp"
    needs = memory_inputs(inputs.stage, inputs.cost, inputs.train, target.kind, ranks=count, sharded=is_sharded,
                          from_weights=not inputs.starts_fresh)  # fmt: skip
    runtime = inputs.runtime.model_copy(update={"precision": target.precision})
    micro, rows = inputs.horizon.micro_batch_size, inputs.horizon.global_batch_rows
    measured = None if probed is None else probed.peak_memory
    plan = Plan(needs, runtime, micro, rows)
    if measured is not None:
        plan = replace(plan, probe=MemoryProbe(needs, runtime, micro, measured - plan.needs))
    time = _estimated(inputs, target) if probed is None else _probed(inputs, probed)
    return StageOnDevice(
        moments=memory_of_stage(needs, runtime, micro), fit=what_would_fit(plan, target.memory), time=time, measured=measured
    )


def _estimated(inputs: StageInputs, target: Target) -> StageTime | None:
    if target.hardware is None:
        return None
    if target.is_here:
        written = inputs.runtime.precision
        speed = usual_speed_of(inputs, target.kind, None if written == "auto" else written)
        if speed is not None and target.count == 1:
            return usual_time(inputs, speed, target.precision)
        basis = f"matrix products of {target.hardware.flops / 1e9:,.0f} GFLOP/s, measured now; --probe measures the stages"
    else:
        peak, bandwidth = target.hardware.flops / 1e12, (target.hardware.bandwidth or 0.0) / 1e9
        basis = f"{peak:,.0f} TFLOP/s in {target.precision} and {bandwidth:,.0f} GB/s, by the data sheet of the {target.name}"
    return estimated_time(inputs, target.hardware, target.precision, basis)


def _probed(inputs: StageInputs, probed: ProbedStage) -> StageTime:
    horizon = inputs.horizon
    full = horizon.steps * horizon.gradient_accumulation_steps
    micro_batches = inputs.micro_batches / full
    whole = probed_seconds(
        probed, micro_batches=micro_batches, updates=horizon.steps, evaluations=inputs.evaluations, saves=inputs.saves
    )
    evaluating = inputs.evaluations * probed.evaluation
    return measured_time(whole - evaluating, evaluating, DRIFT, f"measured: {probed.steps} steps of each stage on this machine")
