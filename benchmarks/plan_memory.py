"""How right the plan of memory is: predicted against measured peaks of training steps, each in a fresh process.

A point (`memory_points.py`) is a model, a batch and a way to compute; its peak is the highest resident size of a process that
takes three updates with logged details. Points with equal settings but for the rows of a micro-batch are a family. Each is
predicted twice: by the formula alone, and after one probe, which is the point of its family with the fewest rows. With
`--again` each is measured a second time, and the first time is its probe: `fledge plan --probe` has the rows of the recipe.
`worst_low` is how far the worst prediction lies below its measurement: a plan that is too low ends in a killed process, one
that is too high wastes memory. `above_highest`: the share of peaks above the highest that the plan names.

With `--tensors` each point but the compiled ones is measured once more under the profiler of torch, which sees each tensor made
and freed: the most bytes that tensors had together, against what the formula says of tensors alone. That does not depend on
the C library's allocator, and is what a GPU's allocator counts as allocated.

Constants of the formula were chosen with half of the families (by a hash of their settings); but errors of the others of the
default seed were seen when causes were looked for. Families of another `--seed` were never looked at. Repeated measurements of
one point may differ: where the allocator gives memory back depends on the moment at which threads run.
`--from FILE` predicts the points of an earlier `--out` again, without measuring; what was measured so far is in its
measured.jsonl, and a run with the same `--out` goes on from there.
"""

import json
import os
import statistics
import subprocess
import sys
from dataclasses import asdict, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

from measure import options, report
from memory_points import DPO, MIB, UPDATES, Point, grid, quick_grid

BANDS = (0.03, 0.05, 0.08)


# -- measuring, in a process of its own ------------------------------------------------------------------------------------


def resident(name: str) -> int:
    """Bytes: `VmHWM` is the most that this process has had resident since it began, or since `forget_peak`; `VmRSS` what it
    has now."""
    path = Path("/proc/self/status")
    if not path.exists():
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    line = next(line for line in path.read_text().splitlines() if line.startswith(f"{name}:"))
    return int(line.split()[1]) * 1024


def measure_here(point: Point) -> dict[str, Any]:
    """Do in this process what the point says; the resident sizes before and after."""
    from fledge.run.code_cache import set_code_cache

    set_code_cache()  # as every command does before torch is loaded
    import torch
    from training import Training

    import fledge.pipeline  # noqa: F401 - a run has it in memory
    from fledge.autotune.autotune import ComputeConfig
    from fledge.checkpoint.state import to_cpu_copy
    from fledge.model.adapters import adapter_weights
    from fledge.objective import DPOObjective
    from fledge.optim.build import optimizer_tensors
    from fledge.optim.ema import EMA

    torch.manual_seed(0)
    recipe, data = point.recipe(), point.data()
    stage = recipe.stages["stage"]
    model = build(point, recipe)
    compute = ComputeConfig(
        device="cpu", precision=point.precision, attention=point.attention, compile=point.compile, threads=1,
        eager_attention=point.attention if point.compile else None,
    )  # fmt: skip
    objective = None
    if point.kind in DPO:
        objective = DPOObjective(loss_type="sigmoid", beta=0.1, reference=reference(point, recipe, model, data, compute))
    before = resident("VmRSS")
    training = Training(recipe, "stage", data, model, compute, objective=objective)
    ema = EMA(model, stage.ema, 100) if point.ema else None
    steps: list[int] = []
    held: list[Any] = []
    for step in range(UPDATES):
        if point.moment == "reference":
            batch, _ = training.loader.batch(step)
            training.train_step.objective.evaluate(model, batch.batches[0])
        else:
            batch, seconds = training.loader.batch(step)
            training.train_step(batch, 1e-4, seconds, log_details=True)
            if ema is not None:
                ema.update(model, step)
        if point.moment == "saving":  # the copy is written while training goes on
            held.clear()
            held += [to_cpu_copy(model.state_dict() if model.adapter is None else adapter_weights(model)),
                       to_cpu_copy(optimizer_tensors(model, list(training.train_step.optimizers))),
                       {} if ema is None else to_cpu_copy(ema.tensors())]  # fmt: skip
            if ema is not None:
                with ema.swapped_in(model):
                    held.append(to_cpu_copy(model.state_dict()))
        steps.append(resident("VmHWM"))
    training.loader.close()
    return {"peak": resident("VmHWM"), "loaded": before, "after_steps": steps}


def tensors_here(point: Point) -> dict[str, Any]:
    """Do in this process what the point says; the most bytes that tensors had at one moment."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        measure_here(point)
    events = profiler.profiler.kineto_results.events()
    changes = sorted((event.start_ns(), event.nbytes()) for event in events if event.name() == "[memory]")
    return {"tensors": max(accumulate(size for _, size in changes))}


def build(point: Point, recipe: Any) -> Any:
    """The model of the point, with its adapter."""
    from training import fresh

    from fledge.model.adapters import attach_adapter
    from fledge.model.frozen_weights import quantize_matrices
    from fledge.model.protocol import Adapter

    stage, model = recipe.stages["stage"], fresh(recipe, point.vocabulary)
    if stage.quantization is not None:
        quantize_matrices(model, stage.quantization)
    if stage.adapter is not None:
        attach_adapter(model, Adapter(stage.adapter, Path("base"), None), seed=0)
    model.activation_checkpoint_every = recipe.runtime.activation_checkpoint_every
    return model


def reference(point: Point, recipe: Any, model: Any, data: Any, compute: Any) -> Any:
    """The reference of a preference loss, as stages have it."""
    import torch

    from fledge.model.adapter_reference import AdapterReference
    from fledge.model.adapters import adapter_weights

    if point.kind == "dpo_table":
        return torch.zeros(data.examples.count, 2)
    if point.kind == "lora_dpo":
        return AdapterReference(model, {name: tensor.clone() for name, tensor in adapter_weights(model).items()})
    return compute.place(build(point, recipe).eval().requires_grad_(False))


def alone(point: Point, *options: str) -> dict[str, Any]:
    """The measurement of a point in a fresh process."""
    command = [sys.executable, __file__, "--one", json.dumps(asdict(point)), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    if done.returncode:
        raise SystemExit(f"{point}: the process ended with {done.returncode}:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


# -- predicting ------------------------------------------------------------------------------------------------------------

MOMENTS = {"training": "training step", "reference": "reference", "saving": "saving"}


def plan_inputs(point: Point) -> tuple[Any, Any]:
    """The inputs of the estimate, and the runtime section."""
    from fledge.model.cost import ModelCost
    from fledge.plan.memory import memory_inputs

    recipe = point.recipe()
    cost = ModelCost(recipe.model, point.vocabulary)
    inputs = memory_inputs(recipe.stages["stage"], cost, point.data(), "cpu")
    return replace(inputs, updates=UPDATES, precomputes_reference=point.moment == "reference"), recipe.runtime


def predicted(point: Point) -> dict[str, float]:
    """Bytes by component at the moment of the point, and `total`; `tensors`: at the moment of a step with the most of them,
    which need not be that of the highest peak."""
    from fledge.plan.memory import memory_of_stage, moments_of_step

    inputs, runtime = plan_inputs(point)
    memory = memory_of_stage(inputs, runtime, point.rows)[MOMENTS[point.moment]]
    moments = moments_of_step(inputs, runtime, point.rows).values() if point.moment == "training" else [memory]
    return {**asdict(memory), "total": memory.total, "tensors": max(one.allocated for one in moments)}


def after_probe(point: Point, probe: Point, measured: float) -> float:
    """Bytes, corrected by the peak of another point of the family."""
    from fledge.plan.memory_probe import MemoryProbe

    inputs, runtime = plan_inputs(point)
    gap, total = measured - predicted(probe)["total"], predicted(point)["total"]
    if point.moment != "training":
        return total + gap  # a probe of this moment: its gap stays
    return total + MemoryProbe(inputs, runtime, probe.rows, gap).correction(inputs, runtime, point.rows)


def with_predictions(results: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The measured points with `predicted` bytes by component, `error`, `probed_error` where a probe has fewer rows, and
    `repeated_error` where they were measured again; errors are (predicted − measured) ÷ measured."""
    families: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        families.setdefault(Point(**result["point"]).family, []).append(result)
    done = []
    for members in families.values():
        members.sort(key=lambda result: result["point"]["rows"])
        first = members[0]
        for member in members:
            point, values = Point(**member["point"]), predicted(Point(**member["point"]))
            entry = {**member, "held_out": point.is_held_out, "predicted": values}
            entry["error"] = values["total"] / member["peak"] - 1
            if "tensors" in member:
                entry["tensors_error"] = values["tensors"] / member["tensors"] - 1
            if "again" in member:
                entry["repeated_error"] = member["peak"] / member["again"] - 1
            if point.rows > first["point"]["rows"]:
                corrected = after_probe(point, Point(**first["point"]), first["peak"])
                entry["probed_error"] = corrected / member["peak"] - 1
            done.append(entry)
    return done


def errors_of(results: list[dict[str, Any]], key: str) -> dict[str, Any]:
    """The distribution of the errors under a key, in percent of what was measured."""
    from fledge.plan.memory_components import SPREAD

    errors = [result[key] for result in results if key in result]
    if len(errors) < 2:
        return {"points": len(errors)}
    sizes = sorted(abs(error) for error in errors)
    low, middle, high = statistics.quantiles(sizes, n=4, method="inclusive")
    return {
        "points": len(errors),
        "median_abs": round(100 * middle, 2),
        "quartiles_abs": [round(100 * low, 2), round(100 * high, 2)],
        "worst_low": round(100 * min(0.0, *errors), 2),
        "worst_high": round(100 * max(0.0, *errors), 2),
        "within": {f"{band:.0%}": round(sum(size <= band for size in sizes) / len(sizes), 2) for band in BANDS},
        "above_highest": round(sum((1 + SPREAD) * (1 + error) < 1 for error in errors) / len(errors), 3),
    }


def summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    """Errors of the formula alone and after one probe, of all points, of those that it was made with, and of the others."""
    groups = {
        "all": results,
        "fitted": [result for result in results if not result["held_out"]],
        "held_out": [result for result in results if result["held_out"]],
    }
    keys = {"formula": "error", "after_probe": "probed_error", "after_probe_of_these_rows": "repeated_error",
            "tensors": "tensors_error"}  # fmt: skip
    return {name: {label: errors_of(group, key) for label, key in keys.items()} for name, group in groups.items()}


def write_out(folder: Path, results: list[dict[str, Any]]) -> None:
    """points.jsonl, a table and a plot of predicted against measured peaks."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "points.jsonl").write_text("".join(json.dumps(result) + "\n" for result in results))
    lines = ["| measured MiB | formula | after a probe | held out | point |", "|---|---|---|---|---|"]
    plain = asdict(Point())
    for result in sorted(results, key=lambda result: result["error"]):
        settings = ", ".join(f"{name} {value}" for name, value in result["point"].items() if value != plain[name])
        probed = f"{result['probed_error']:+.1%}" if "probed_error" in result else ""
        lines.append(
            f"| {result['peak'] / MIB:,.0f} | {result['error']:+.1%} | {probed} | {'yes' if result['held_out'] else ''} "
            f"| {settings} |"
        )
    (folder / "table.md").write_text("\n".join(lines) + "\n")
    plot(folder / "plan_memory.png", results)


def plot(file: Path, results: list[dict[str, Any]]) -> None:
    """Predicted against measured peaks, with the line on which they are equal and 8 % around it."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(6, 6))
    ends = [0.9 * min(result["peak"] for result in results) / MIB, 1.1 * max(result["peak"] for result in results) / MIB]
    axes.plot(ends, ends, color="black", linewidth=1)
    axes.fill_between(ends, [0.92 * end for end in ends], [1.08 * end for end in ends], alpha=0.15, label="within 8 %")
    for held_out, label in ((False, "formula made with these"), (True, "held out")):
        chosen = [result for result in results if result["held_out"] is held_out]
        axes.scatter([result["peak"] / MIB for result in chosen],
                     [result["predicted"]["total"] / MIB for result in chosen], s=14, label=label)  # fmt: skip
    axes.set(xscale="log", yscale="log", xlabel="measured peak, MiB", ylabel="predicted by the formula, MiB")
    axes.legend()
    figure.savefig(file, dpi=120, bbox_inches="tight")
    plt.close(figure)


def measure_all(points: list[Point], folder: Path | None, name: str = "measured.jsonl", *options: str) -> list[dict[str, Any]]:
    """The measurements of points, one process after another. With a folder each is kept in its file of that name, and those
    that are there already are not repeated. `options`: of the command that measures one."""
    kept = None if folder is None else folder / name
    done = {}
    if kept is not None:
        kept.parent.mkdir(parents=True, exist_ok=True)
        kept.touch()
        done = {str(Point(**one["point"])): one for one in map(json.loads, kept.read_text().splitlines())}
    results = []
    for number, point in enumerate(points, 1):
        result = done.get(str(point)) or {"point": asdict(point), **alone(point, *options)}
        results.append(result)
        if kept is not None and str(point) not in done:
            with kept.open("a") as file:
                file.write(json.dumps(result) + "\n")
        size = result.get("peak", result.get("tensors"))
        print(f"{number}/{len(points)}: {size / MIB:,.0f} MiB, {point}", flush=True)
    return results


def main() -> None:
    """Measure and print the results as one line of JSON."""
    parser = options(__doc__ or "")
    parser.add_argument(
        "--out", type=Path, help="folder for points.jsonl, table.md and plan_memory.png; goes on where it ended"
    )
    parser.add_argument("--from", dest="source", type=Path, help="predict the points of this points.jsonl, without measuring")
    parser.add_argument("--seed", type=int, default=20, help="draws the random families (default 20)")
    parser.add_argument("--again", action="store_true", help="measure each point a second time (needs --out)")
    parser.add_argument(
        "--tensors",
        action="store_true",
        help="measure the bytes of tensors too (needs --out); with --one, in place of the peak",
    )
    parser.add_argument("--one", help="measure one point, given as JSON, in this process")
    chosen = parser.parse_args()
    if chosen.one:
        measure = tensors_here if chosen.tensors else measure_here
        return report(measure(Point(**json.loads(chosen.one))))
    if (chosen.again or chosen.tensors) and chosen.out is None:
        parser.error("--again and --tensors need --out")
    if chosen.source is not None:
        measured = [json.loads(line) for line in chosen.source.read_text().splitlines()]
    else:
        points = quick_grid() if chosen.quick else grid(chosen.seed)
        measured = measure_all(points, chosen.out)
        if chosen.again:
            again = measure_all(points, chosen.out, "again.jsonl")
            measured = [{**one, "again": other["peak"]} for one, other in zip(measured, again, strict=True)]
        if chosen.tensors:
            plain = [point for point in points if not point.compile]  # compiled code has buffers of its own
            sizes = {str(one["point"]): one for one in measure_all(plain, chosen.out, "tensors.jsonl", "--tensors")}
            measured = [{**one, **sizes.get(str(one["point"]), {})} for one in measured]
    results = with_predictions(measured)
    if chosen.out is not None:
        write_out(chosen.out, results)
    report({**summary(results), "quick": chosen.quick})


if __name__ == "__main__":
    main()
