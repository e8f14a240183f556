"""A forecast as lines of text: long for `fledge plan` and `--dry-run`."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict

from rich.cells import cell_len

from fledge.findings import Finding
from fledge.forecast.forecast import RunForecast, StageForecast
from fledge.forecast.on_device import StageOnDevice
from fledge.forecast.target import Target
from fledge.localization import localized, localized_head
from fledge.plan import describe_plan
from fledge.plan.bands import Band
from fledge.plan.critic.planned_stage import counted
from fledge.plan.memory_measures import Limit
from fledge.plan.time import Range, time_text

GIB = 2**30
SHOWN_SHARE = 0.005  # of the memory of a step, below which a component is not named
FLOPS_UNITS = (("EFLOP", 1e18), ("PFLOP", 1e15), ("TFLOP", 1e12), ("GFLOP", 1e9), ("MFLOP", 1e6))
BAND_LINES = {
    "below": "{}: {}, below the usual {} to {} ({})",
    "inside": "{}: {}, inside the usual {} to {} ({})",
    "above": "{}: {}, above the usual {} to {} ({})",
}
"""By the position of a figure: its name, the figure, the ends of the range, the source of the range."""
LARGEST: dict[Limit, str] = {
    "memory": "largest micro-batch: {}; more rows do not fit",
    "rows": "largest micro-batch: {}, all rows that a device has of an update",
    "speed": "largest micro-batch: {}; more rows would fit, and would not be faster",
}
"""By the reason why it is no larger."""


def lines_of(forecast: RunForecast) -> list[str]:
    """All lines of a forecast: stages, then what a person looks for last, the devices side by side."""
    lines = [f"tokenizer: {forecast.vocab_size:,} tokens", *forecast.notes]
    for stage in forecast.stages:
        lines += ["", stage.name, *(f"  {line}" for line in stage_lines(stage, forecast.targets))]
    caveats = [caveat for target in forecast.targets if target.device and (caveat := target.device.caveat())]
    return [*lines, "", *device_lines(forecast), *caveats]


def stage_lines(stage: StageForecast, targets: list[Target]) -> Iterator[str]:
    """The lines of a stage."""
    plan, inputs = stage.inputs.plan, stage.inputs
    summary = inputs.train.summary()
    yield from stage.data
    yield f"{summary['target_tokens']:,} supervised tokens an epoch, padding {summary['padding_share']:.1%}"
    yield describe_plan(plan)
    yield from plan.notes
    yield size_line(stage)
    yield work_line(stage)
    yield from (band_line(band) for band in stage.bands)
    for target, one in zip(targets, stage.devices, strict=True):
        yield f"on {target.label} ({target.precision}):"
        yield from (f"  {line}" for line in memory_lines(one, stage.name))
        draws = inputs.stage.answers_per_example > 1 and one.time is not None and not one.time.is_measured
        drawing = " besides the drawing of answers" if draws else ""
        if one.time is None:
            yield f"  the time of training is not estimated: {target.problem}"
        else:
            yield f"  time: {time_text(one.time.total)} of training{drawing} ({localized(one.time.basis)})"
    for finding in stage.findings:
        yield from finding_lines(finding)


def size_line(stage: StageForecast) -> str:
    """Parameters by role, and the KV cache."""
    plan = stage.inputs.plan
    total, active, trained = millions(plan.parameters), millions(plan.active_parameters), trained_text(stage)
    if plan.active_parameters == plan.parameters:
        return f"size: {total} parameters, {trained} trained; {stage.kv_bytes:,} bytes of KV cache for a token"
    return (
        f"size: {total} parameters, {active} active for a token, {trained} trained; "
        f"{stage.kv_bytes:,} bytes of KV cache for a token"
    )


def trained_text(stage: StageForecast) -> str:
    """The parameters that are trained: `3.5M`; `at most 3.5M` where sizes do not tell which layers an adapter is on."""
    adapter = stage.inputs.stage.adapter
    exact = stage.inputs.trained if adapter is None else stage.inputs.cost.trained_by(adapter)
    return f"at most {millions(stage.inputs.trained)}" if exact is None else millions(exact)


def work_line(stage: StageForecast) -> str:
    """Operations by part, in shares."""
    work = stage.work
    parts = {
        "blocks": work.blocks,
        "attention": work.attention,
        "head": work.head,
        "recomputed": work.recomputed,
        "reference": work.reference,
    }
    shares = named({name: f"{value / work.flops:.0%}" for name, value in parts.items() if value > 0})
    return f"work: {flops_text(work.flops)} ({shares})"


def named(figures: Mapping[str, str]) -> str:
    """`blocks 81%, head 11%`: figures behind their names, which are words of their own in each language."""
    return ", ".join(f"{localized_head(name)} {figure}" for name, figure in figures.items())


def band_line(band: Band) -> str:
    """A figure beside its usual range."""
    return BAND_LINES[band.position].format(band.name, *map(number, (band.value, band.low, band.high)), band.source)


def memory_lines(one: StageOnDevice, name: str) -> Iterator[str]:
    """Memory of a stage at its worst moment by component, the other moments, and what fits or would make it fit."""
    moment, memory = one.worst
    parts = sorted(asdict(memory).items(), key=lambda item: -item[1])
    most = named({part.replace("_", " "): gib(size) for part, size in parts if size > SHOWN_SHARE * one.needed})
    is_sure = one.highest <= one.fit.available
    verdict = "it fits" if is_sure else "it fits if the peak is no higher" if one.fits else "it does not fit"
    worst = localized_head(moment)
    yield f"memory: about {gib(one.needed)} of {gib(one.fit.available)} GiB, {verdict}; most in a {worst}: {most}"
    yield f"  tensors {gib(memory.allocated)} GiB, with what the allocator holds the peak may reach {gib(one.highest)} GiB"
    others = named({other: gib(at.total) for other, at in one.moments.items() if other != moment})
    yield f"  other moments: {others}"
    if one.measured is not None:
        yield f"  the probe held {gib(one.measured)} GiB at most; the formula alone says {gib(memory.total)} GiB"
    if one.fit.largest is None:
        yield "  not even a micro-batch of one row fits"
    else:
        yield f"  {LARGEST[one.fit.limit].format(counted(one.fit.largest, 'row'))}"
    for measure in one.fit.measures:
        options, needs = as_options(measure.of_stage(name)), gib(measure.needs)
        costs = localized(measure.costs)
        fits = f"  → {options}: {needs} GiB, fits; {costs}"
        yield fits if measure.fits else f"  → {options}: {needs} GiB, is still too much; {costs}"


def as_options(patch: Mapping[str, object]) -> str:
    """A change of the recipe as options of a command."""
    return " ".join(f"--{key} {json.dumps(value, ensure_ascii=False)}" for key, value in patch.items())


def finding_lines(finding: Finding) -> Iterator[str]:
    """A finding with what to do, and the options that do it."""
    sure = "" if finding.confidence is None else f" ({finding.confidence})"
    yield f"{finding.severity}{sure}: {finding.where}: {localized(finding.message)}"
    if finding.hint:
        yield f"  → {localized(finding.hint)}"
    if finding.patch:
        yield f"  → {finding.overrides()}"


def device_lines(forecast: RunForecast) -> list[str]:
    """What the whole run takes on each device: memory of its largest stage, time, cost. Cells are translated before they are
    aligned."""
    rows = [tuple(map(localized_head, ("device", "memory", "time", "cost")))]
    for number_, target in enumerate(forecast.targets):
        largest = max((stage.devices[number_] for stage in forecast.stages), key=lambda one: one.needed)
        hours = forecast.hours(number_)
        cost = " · ".join(money.text() for money in forecast.cost(number_)) or "no price is known; give one with --price"
        needed, available = gib(largest.needed), gib(largest.fit.available)
        memory = f"{needed} of {available} GiB" if largest.fits else f"{needed} of {available} GiB, does not fit"
        time = "not known" if hours is None else time_text(Range(*(3600 * end for end in hours)))
        rows.append(tuple(map(localized, (target.label, memory, time, cost))))
    widths = [max(cell_len(row[column]) for row in rows) for column in range(3)]
    return ["  ".join([*map(_padded, row[:3], widths), row[3]]) for row in rows]


def _padded(cell: str, width: int) -> str:
    """A cell filled up to `width` columns of a terminal, where a Chinese character takes two."""
    return cell + " " * (width - cell_len(cell))


def gib(size: float) -> str:
    """Bytes in GiB: `1.62`, `0.04`, `24.0`."""
    value = size / GIB
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


def millions(count: int) -> str:
    """`3.5M`, `1.24B`."""
    return f"{count / 1e9:.2f}B" if count >= 1e9 else f"{count / 1e6:.1f}M"


def number(value: float) -> str:
    """A figure with three digits: `0.0004`, `1.7`, `20`, `65,536`."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:.3g}"


def flops_text(flops: float) -> str:
    """`53.1 TFLOP`."""
    unit, size = next(((unit, size) for unit, size in FLOPS_UNITS if flops >= size), FLOPS_UNITS[-1])
    return f"{flops / size:,.1f} {unit}"
