"""Checks of the length of a stage: updates, batch, epochs, warm-up, and the work between two checkpoints."""

import math
from collections.abc import Iterator
from typing import Any

from fledge.findings import Finding
from fledge.plan.critic.planned_stage import LONG_WARMUP, USUAL_WARMUP, PlannedStage, counted
from fledge.plan.evaluation import evaluation_interval
from fledge.plan.horizon import LEAST_ROWS
from fledge.run.environment import cores

FEW_UPDATES = 10
EPOCHS = {  # that data bears, without and with a checkpoint that is chosen, or a stop, by validation data
    # Muennighoff et al. 2023: repeated tokens lose 1 − 1/e of their worth after about 16 epochs, nearly all after 40
    "pretrain": (16, 40),
    # 15 epochs of 1,000 rows, chosen by hand (Zhou et al. 2023, LIMA); small models need more, see decision 048 (8 epochs)
    "sft": (20, 60),
    # 1 epoch (alignment-handbook's zephyr-7b-dpo-qlora, Meng et al. 2024) to 3 (Tunstall et al. 2023)
    "preference": (5, 10),
    "kto": (5, 10),
    "reward": (5, 10),
}
FASTEST = {"cpu": 1e12, "cuda": 1e15}  # FLOP/s of a core with bf16 matrix units (measured: 2e12 on two), of an H100 in bf16
MOST_MFU = 0.5  # of that, in training: none measured was higher
MOST_LOST_SECONDS = 3600


def _sizes(planned: PlannedStage, wanted: int, most: int) -> list[int]:
    """Rows that an update may have, the best first: as wanted, else twice as many and so on up to the most."""
    least = max(wanted, LEAST_ROWS.get(planned.stage.kind, 1))
    return list(dict.fromkeys(min(most, least << doubled) for doubled in range(most.bit_length() + 1)))


def _more_updates(planned: PlannedStage, updates: int) -> dict[str, Any] | None:
    """A patch with which the stage has at least so many updates: of fewer rows, and for longer where that is not enough. None
    where updates of any size would read answers of one label only."""
    rows, most = planned.plan.epochs * len(planned.train), planned.plan.effective_batch_rows
    for size in _sizes(planned, int(rows // updates), most):
        is_longer = rows / size < updates or "step" in planned.stage.duration
        duration = f"{updates} steps" if is_longer else planned.stage.duration
        if planned.mixes_labels(duration, size):
            longer = planned.patch(duration=duration) if size < most else planned.of_steps(updates)
            return {**(planned.rows_of_update(size) if size < most else {}), **(longer if is_longer else {})}
    return None


def few_updates(planned: PlannedStage) -> Iterator[Finding]:
    """Fewer updates than a model can learn anything in."""
    steps, duration, rows = planned.plan.steps, planned.stage.duration, planned.plan.effective_batch_rows
    if steps >= FEW_UPDATES:
        return
    verb, noun = ("is" if duration.startswith("1 ") else "are"), ("update" if steps == 1 else "updates")
    makes = f"the stage has only {steps} {noun}" if "step" in duration else f"{duration} {verb} {steps} {noun}"
    yield planned.finding(
        "duration",
        f"{makes} of {counted(rows, 'row')}; an epoch has {counted(len(planned.train), 'packed row')}",
        "set a longer duration, or a smaller batch.micro_batch_size: what counts is the number of updates",
        sure="certain",
        evidence={"steps": steps, "rows_of_update": rows, "rows_of_epoch": len(planned.train)},
        patch=_more_updates(planned, 3 * FEW_UPDATES),
    )


def batch_above_data(planned: PlannedStage) -> Iterator[Finding]:
    """An update that reads rows twice."""
    rows, available = planned.plan.effective_batch_rows, len(planned.train)
    if rows > available:
        sizes = _sizes(planned, max(1, available // 8), available)
        fitting = next((one for one in sizes if planned.mixes_labels(planned.stage.duration, one)), None)
        size = fitting or sizes[0]
        yield planned.finding(
            "batch.micro_batch_size",
            f"an update reads {counted(rows, 'row')}, but an epoch has only {counted(available, 'packed row')}",
            f"set a batch of {size} (micro_batch_size × gradient_accumulation_steps), a smaller "
            "data.max_seq_len, or use more data",
            sure="certain",
            evidence={"rows_of_update": rows, "rows_of_epoch": available},
            patch=None if fitting is None else planned.rows_of_update(fitting),
        )


def many_epochs(planned: PlannedStage) -> Iterator[Finding]:
    """More readings of the same rows than data of this kind is known to bear."""
    limits, readings = EPOCHS.get(planned.stage.kind), planned.readings
    if limits is None or readings <= (limit := limits[planned.keeps_best]):
        return
    reason = "models then mostly learn the rows by heart, and no validation data chooses an earlier checkpoint"
    if planned.keeps_best:
        reason = "validation data can then only choose an earlier checkpoint"
    usual = limits[False] // 2
    epochs = max(1, math.floor(usual * planned.plan.epochs / readings))
    shorter = planned.patch(duration=f"{epochs} epochs")
    patch = planned.with_warmups(shorter, planned.plan.steps * epochs / planned.plan.epochs)
    yield planned.finding(
        "duration",
        f"each row is read {readings:,.3g} times, and rows of this kind bear about {limit}: {reason}",
        f"set duration to {usual} epochs, use more data, or set early_stopping.patience",
        sure="likely",
        evidence={"readings": readings, "limit": limit, "rows": planned.train.examples.count},
        patch=patch,
    )


def long_warmup(planned: PlannedStage) -> Iterator[Finding]:
    """A warm-up of more than half of the stage: usually one that was made for a longer run."""
    plan = planned.plan
    if plan.warmup_share > LONG_WARMUP:
        yield planned.finding(
            "schedule.warmup",
            f"the learning rate rises for {plan.warmup_steps:,} of {plan.steps:,} steps ({plan.warmup_share:.0%}): the "
            "schedule is made for a longer run",
            "write a fraction, such as 5%, or train longer",
            sure="certain",
            evidence={"warmup_steps": plan.warmup_steps, "steps": plan.steps},
            patch=planned.patch(schedule__warmup=USUAL_WARMUP),
        )


def lost_work(planned: PlannedStage) -> Iterator[Finding]:
    """More than an hour of training between two checkpoints, even if the device were as fast as any."""
    stage, plan = planned.stage, planned.plan
    every = min(plan.steps, stage.checkpoint.every_steps or evaluation_interval(stage, plan.steps))
    device, units = ("cuda", 1) if planned.capability is not None else ("cpu", cores())
    work = planned.cost.training_flops(round(planned.train.mean_context)) * plan.effective_batch_tokens
    seconds = work / (FASTEST[device] * units * MOST_MFU)  # of a step, at least
    if every * seconds <= MOST_LOST_SECONDS:
        return
    fewer = max(1, math.floor(MOST_LOST_SECONDS / 2 / seconds))
    yield planned.finding(
        "checkpoint.every_steps",
        f"checkpoints are {every:,} steps apart, which take at least {every * seconds / 3600:,.1f} hours here: so much is lost "
        "when the run is killed",
        f"set checkpoint.every_steps to {fewer:,} or less",
        sure="certain",
        evidence={"every_steps": every, "seconds_of_step": seconds, "flops_of_step": work},
        patch=planned.patch(checkpoint__every_steps=fewer),
    )
