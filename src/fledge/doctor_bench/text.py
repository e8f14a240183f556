"""The results of the bench as lines for the terminal."""

from collections.abc import Iterator, Mapping
from typing import Any

from fledge.doctor_bench.score import Rate

FIGURES = {
    "recall": "faults that are told",
    "false_alarms": "healthy runs with an alarm",
    "top1": "root cause right",
    "precision": "right, of the causes that are named",
    "top3": "root cause among the first three",
    "abstention": "no cause named",
    "alarms_without_effect": "alarms about faults without effect",
}
MOST = 60  # misses on the terminal


def _rate(values: Mapping[str, Any]) -> str:
    return Rate(values["hits"], values["count"]).text()


def _short(values: Mapping[str, Any]) -> str:
    names = {"told": "recall", "right": "top1", "false alarms": "false_alarms"}
    return "; ".join(f"{label} {_rate(values[name])}" for label, name in names.items())


def lines_of(results: Mapping[str, Any]) -> Iterator[str]:
    """The lines for the terminal."""
    counts = results["counts"]
    yield (
        f"{counts['faulty']} runs with {counts['fault_classes']} faults, {counts['healthy']} healthy runs "
        f"({100 * counts['healthy_share']:.0f} %), thresholds {results['thresholds'][:16]}"
    )
    for title, part in (("all depths", "full"), ("curves and plan alone", "curves")):
        yield f"{title}:"
        for name, label in FIGURES.items():
            yield f"  {label}: {_rate(results[part][name])}"
        yield f"  category F1: {results[part]['category_f1']}"
    steps = results["full"]["steps"]
    if steps:
        early = f"before the first {100 * steps['before_first']:.0f} %, within 20 {100 * steps['within_20']:.0f} %"
        yield f"steps to an alarm: median {steps['median']:g}; {early}"
    yield "silent faults of the pipeline:"
    for name, values in results["silent"].items():
        yield f"  {name}: {_rate(values)}"
    for title in ("groups", "shapes"):
        for name, values in results[title].items():
            yield f"{name}: {_short(values)}"
    yield "baselines on the same logs:"
    for name, values in results["baselines"].items():
        yield f"  {name}: {_short(values)}"
    yield f"seconds: {results['cost']}"
    yield f"{len(results['without_effect'])} faults without a measurable effect"
    yield f"{len(results['misses'])} misses:"
    for miss in results["misses"][:MOST]:
        found = "; ".join(f"{cause} ({sure})" for cause, sure, _ in miss["found"][:4])
        symptoms = ", ".join(miss["symptoms"])
        yield f"  {miss['case']}: {miss['said']} | {found} | {symptoms}"
    for key, reason in results["failures"].items():
        yield f"  failed: {key}: {reason}"
