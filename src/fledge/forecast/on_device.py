"""One stage on one device: memory by component, the largest micro-batch, and time."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from fledge.errors import FledgeError
from fledge.forecast.probe import ProbedStage, probed_seconds
from fledge.forecast.target import Target
from fledge.plan.device_batch import DeviceBatch
from fledge.plan.memory import (
    Memory,
    MemoryInputs,
    is_micro_batch_open,
    largest_micro_batch,
    memory_inputs,
    memory_of_stage,
)
from fledge.plan.memory_components import highest_peak
from fledge.plan.memory_measures import Fit, Plan, what_would_fit
from fledge.plan.memory_probe import MemoryProbe
from fledge.plan.stage_forecast import StageInputs, estimated_time, measured_time
from fledge.plan.time import StageTime
from fledge.prediction import usual_speed_of, usual_time
from fledge.recipe.schema import RuntimeConfig

DRIFT = 0.08  # share by which the speed of a machine drifts between a probe and a run: chosen from benchmarks/plan_time.py


@dataclass(frozen=True, kw_only=True)
class StageOnDevice:
    """A stage on a device. `share`: what each of several devices computes of an update. `moments`: memory of a training step,
    an evaluation, saving and so on, by formula; `fit`: what fits into memory, and what would make it fit; `measured`: bytes
    that a probe held at most, which `fit` goes by. `kind`: of the device. `time`: None where its speed is not known."""

    share: DeviceBatch
    moments: dict[str, Memory]
    fit: Fit
    kind: str
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
    def highest(self) -> float:
        """Bytes that a peak may reach."""
        return highest_peak(self.needed, self.worst[1], self.kind, is_measured=self.measured is not None)

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
                "highest": self.highest,
                "tensors": self.worst[1].allocated,
                "available": self.fit.available,
                "measured": self.measured,
                "moments": moments,
            },
            "fits": self.fits,
            "micro_batch_size": self.share.micro,
            "micro_batches": self.share.micro_batches,
            "largest_micro_batch": self.fit.largest,
            "measures": [asdict(measure) for measure in self.fit.measures],
            "time": None if self.time is None else self.time.as_dict(),
        }


def stage_on_device(inputs: StageInputs, target: Target, probed: ProbedStage | None) -> StageOnDevice:
    """A stage on a device; `probed`: its probe, if the device is this machine and one was made."""
    count, is_sharded = target.count, inputs.runtime.parallelism == "fsdp"
    needs = memory_inputs(inputs.stage, inputs.cost, inputs.train, target.kind, inputs.reward_models, ranks=count,
                          sharded=is_sharded, from_weights=not inputs.starts_fresh)  # fmt: skip
    runtime = inputs.runtime.model_copy(update={"precision": target.precision})
    share = _share(inputs, needs, runtime, target)
    needs = replace(needs, accumulates=share.micro_batches > 1)
    measured = None if probed is None else probed.peak_memory
    plan = Plan(
        inputs=needs,
        runtime=runtime,
        micro=share.micro,
        rows=inputs.horizon.global_batch_rows,
        count=count,
        has_tokens_per_step=inputs.batch is not None and inputs.batch.tokens_per_step is not None,
    )
    if measured is not None:
        plan = replace(plan, probe=MemoryProbe(needs, runtime, share.micro, measured - plan.needs))
    return StageOnDevice(
        share=share,
        moments=memory_of_stage(needs, runtime, share.micro),
        fit=what_would_fit(plan, target.memory),
        kind=target.kind,
        time=_estimated(inputs, target, share) if probed is None else _probed(inputs, probed),
        measured=measured,
    )


def _share(inputs: StageInputs, needs: MemoryInputs, runtime: RuntimeConfig, target: Target) -> DeviceBatch:
    """The rows that a device has of each update, and how many at a time: as many as fit, where the recipe leaves that open.
    Raises FledgeError if an update has fewer rows than there are devices."""
    rows, micro, batch = inputs.horizon.global_batch_rows, inputs.horizon.micro_batch_size, inputs.batch
    if rows < target.count:
        raise FledgeError(f"{target.count} processes cannot share the {rows} rows of an update", where="batch",
                          hint=f"plan for at most {rows} × {target.name}, or set a larger batch")  # fmt: skip
    is_chosen = target.is_here and inputs.is_for_this_machine
    if batch is not None and not is_chosen and is_micro_batch_open(batch, inputs.cost.config, target.kind):
        largest = largest_micro_batch(rows, needs, runtime, target.memory) or 1
        micro = largest if batch.tokens_per_step is not None else max(micro, largest)
    return DeviceBatch.of(rows, micro, target.count)


def _estimated(inputs: StageInputs, target: Target, share: DeviceBatch) -> StageTime | None:
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
    return estimated_time(inputs, target.hardware, target.precision, basis, share)


def _probed(inputs: StageInputs, probed: ProbedStage) -> StageTime:
    horizon = inputs.horizon
    full = horizon.steps * horizon.gradient_accumulation_steps
    micro_batches = inputs.micro_batches / full
    whole = probed_seconds(
        probed, micro_batches=micro_batches, updates=horizon.steps, evaluations=inputs.evaluations, saves=inputs.saves
    )
    evaluating = inputs.evaluations * probed.evaluation
    return measured_time(whole - evaluating, evaluating, DRIFT, f"measured: {probed.steps} steps of each stage on this machine")
