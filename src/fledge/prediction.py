"""What a stage is predicted to take, said before its first step, and what it took: prediction.json of the stage.

The prediction rests on the speed of this machine's earlier stages, else on its fastest matrix product.
"""

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fledge.autotune.compute_config import ComputeConfig, chosen_device, known_precision
from fledge.autotune.search import is_too_busy, machine_load
from fledge.data import PackedDataset
from fledge.distributed.context import DistributedContext
from fledge.model.cost import ModelCost
from fledge.plan.device_batch import DeviceBatch
from fledge.plan.history import MIN_UPDATES, PastStage, UsualSpeed, machine_name, past_stages, remember, usual_speed
from fledge.plan.memory import estimate, memory_inputs
from fledge.plan.stage_forecast import StageInputs, estimated_time, evaluation_work, measured_time, work_of
from fledge.plan.time import Hardware, Range, StageTime, time_text
from fledge.prepare import PreparedStage
from fledge.recipe.schema import RuntimeConfig, Stage
from fledge.run import StageDirectory, write_json
from fledge.run.environment import cores
from fledge.run.events import read_events
from fledge.run.file_shapes import StagePrediction
from fledge.run.text_files import read_json

HINT = "remove this file: the stage goes on without it"
OTHER_PHASES = ("evaluate", "save")  # of a `system` event, that are not training


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """The predicted seconds of the updates of a stage, of its evaluations of the loss, and the bytes of memory of a step."""

    training: Range
    evaluation: Range
    memory: float
    updates: int
    basis: str

    def line(self) -> str:
        """The prediction for the console."""
        time = time_text(self.training + self.evaluation)
        return f"about {time} of training, {self.memory / 2**30:.2f} GiB of memory ({self.basis})"


def stage_inputs(
    prepared: PreparedStage, cost: ModelCost, runtime: RuntimeConfig, *, starts_fresh: bool = False
) -> StageInputs:
    """The inputs of the forecast of a prepared stage. `starts_fresh`: from new weights; only what would make it fit into memory
    depends on it."""
    return StageInputs(
        stage=prepared.stage,
        plan=prepared.plan,
        horizon=prepared.horizon,
        train=prepared.data.train,
        validation=prepared.data.validation,
        cost=cost,
        runtime=runtime,
        trained=trained_parameters(prepared.stage, cost, prepared.data.train),
        starts_fresh=starts_fresh,
        reward_models=prepared.reward_models,
    )


def trained_parameters(stage: Stage, cost: ModelCost, train: PackedDataset) -> int:
    """The parameters that get a gradient: all, or those of the adapter (the most that it can have, where sizes do not tell)."""
    adapter = memory_inputs(stage, cost, train, "cpu").adapter
    return cost.parameters().total if adapter is None else adapter


def usual_speed_of(inputs: StageInputs, device: str, precision: str | None) -> UsualSpeed | None:
    """The speed of earlier stages like this one on this machine; None if there were none."""
    parameters = inputs.cost.parameters().total
    return usual_speed(
        past_stages(), machine=machine_name(device), kind=inputs.plan.kind, precision=precision, parameters=parameters,
        trained=inputs.trained,
    )  # fmt: skip


def usual_time(inputs: StageInputs, speed: UsualSpeed, precision: str) -> StageTime:
    """The time of a stage at the speed of earlier ones."""
    training = work_of(inputs, precision).flops / speed.flops_per_second
    evaluating = evaluation_work(inputs, precision).flops / speed.flops_per_second
    several = f"as {speed.count} stages before it on this machine"
    basis = "as the stage before it on this machine" if speed.count == 1 else several
    return measured_time(training, evaluating, speed.spread, basis)


def expected_seconds(inputs: StageInputs, flops: float) -> float:
    """Seconds of a stage on this machine, its start not counted: at the speed of earlier ones like it; else from matrix
    products, the fastest of which has `flops` FLOP/s."""
    device, precision = chosen_device(inputs.runtime), known_precision(inputs.runtime) or "fp32"
    speed = usual_speed_of(inputs, device, precision)
    if speed is None:
        return estimated_time(inputs, Hardware(flops=flops), precision, basis="").total.middle
    return usual_time(inputs, speed, precision).total.middle


def predict(inputs: StageInputs, compute: ComputeConfig, ranks: DistributedContext) -> Prediction | None:
    """The prediction of a stage that is about to train; None where the speed of the machine is not known."""
    speed = usual_speed_of(inputs, compute.device, compute.precision)
    if speed is not None and not ranks.is_distributed:
        time = usual_time(inputs, speed, compute.precision)
    elif compute.matmul_peak:
        hardware = Hardware(flops=compute.matmul_peak, count=ranks.world_size)
        basis = "from matrix products, nothing like it was trained here yet"
        time = estimated_time(inputs, hardware, compute.precision, basis, _share(inputs, ranks))
    else:
        return None
    is_sharded = inputs.runtime.parallelism == "fsdp"
    needs = memory_inputs(inputs.stage, inputs.cost, inputs.train, compute.device, inputs.reward_models, ranks=ranks.world_size,
                          sharded=is_sharded)  # fmt: skip
    runtime = inputs.runtime.model_copy(update={"precision": compute.precision, "compile": compute.compile})
    memory = estimate(needs, runtime, _share(inputs, ranks).micro)
    return Prediction(training=time.training, evaluation=time.evaluation, memory=memory, updates=inputs.plan.steps,
                      basis=time.basis)  # fmt: skip


def _share(inputs: StageInputs, ranks: DistributedContext) -> DeviceBatch:
    """What each rank computes of an update."""
    return DeviceBatch.of(inputs.horizon.global_batch_rows, inputs.horizon.micro_batch_size, ranks.world_size)


def write_prediction(directory: StageDirectory, prediction: Prediction | None) -> None:
    """Write what is predicted, once: a stage that goes on keeps the prediction of its beginning."""
    if prediction is not None and not directory.prediction.exists():
        write_json(directory.prediction, {"predicted": asdict(prediction), "measured": None})


def conclude_prediction(
    directory: StageDirectory,
    inputs: StageInputs,
    compute: ComputeConfig,
    ranks: DistributedContext,
    log: Callable[[str], None],
) -> None:
    """Write what a finished stage took beside its prediction, and remember its speed for later plans, if it was trained by one
    process: plans read it as the speed of one."""
    measured = measured_stage(directory)
    if directory.prediction.exists():
        stored = read_json(directory.prediction, StagePrediction, HINT)
        write_json(directory.prediction, {**stored, "measured": measured})
    if ranks.is_distributed or measured["updates"] < MIN_UPDATES or measured["training"] <= 0:
        return
    if compute.device == "cpu" and is_too_busy(machine_load(), cores()):
        log("note: the machine was busy with other things: the speed of this stage is not kept for later plans")
        return
    work = work_of(inputs, compute.precision)
    flops = (work.flops - work.precomputed) * measured["updates"] / inputs.plan.steps  # that was before the first update
    past = PastStage(
        machine=machine_name(compute.device),
        kind=inputs.plan.kind,
        precision=compute.precision,
        parameters=inputs.cost.parameters().total,
        trained=inputs.trained,
        flops_per_second=flops / measured["training"],
    )
    remember(past, log)


def system_events(directory: StageDirectory) -> list[dict[str, Any]]:
    """The `system` events of a stage, one for each update."""
    return [event for event in read_events(directory.events) if event["kind"] == "system"]


def phase_seconds(event: Mapping[str, Any], phase: str) -> float:
    """Seconds of a phase since the update before, of a `system` event."""
    return event["system/phases"].get(phase, 0.0)


def update_seconds(event: Mapping[str, Any]) -> float:
    """Seconds of the update of a `system` event, without the evaluation and the checkpoint before it."""
    return event["system/step_seconds"] - sum(phase_seconds(event, phase) for phase in OTHER_PHASES)


def measured_stage(directory: StageDirectory) -> dict[str, Any]:
    """The seconds of the updates and of the evaluations of a stage, its updates, and the most memory that its process held."""
    systems = system_events(directory)
    return {
        "training": round(sum(map(update_seconds, systems)), 3),
        "evaluation": round(sum(phase_seconds(event, "evaluate") for event in systems), 3),
        "memory": max((event["system/peak_memory_bytes"] for event in systems), default=0),
        "updates": len(systems),
    }
