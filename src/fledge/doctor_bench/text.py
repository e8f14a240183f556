"""The results of the bench for people: lines for the terminal, and a page of the documentation."""

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


# -- the page -----------------------------------------------------------------------------------------------------------


def markdown_of(results: Mapping[str, Any]) -> str:
    """The tables of docs/doctor-bench.md."""
    return "\n".join(_markdown(results)) + "\n"


def _markdown(results: Mapping[str, Any]) -> Iterator[str]:
    counts = results["counts"]
    yield (
        f"{counts['faulty']} runs with {counts['fault_classes']} classes of faults and {counts['healthy']} healthy runs of "
        f"{counts['controls']} kinds. Thresholds: SHA-256 `{results['thresholds']}`"
        f"{', frozen before these results were read' if results['frozen'] else ''}."
    )
    yield ""
    yield "| figure | all depths | curves and plan alone |"
    yield "|---|---|---|"
    for name, label in FIGURES.items():
        yield f"| {label} | {_rate(results['full'][name])} | {_rate(results['curves'][name])} |"
    yield f"| macro F1 of the category | {results['full']['category_f1']} | {results['curves']['category_f1']} |"
    yield from _table("group", results["groups"])
    yield from _table("stage", results["shapes"])
    yield from _table("baseline", results["baselines"])
    yield ""
    yield "| silent faults of the pipeline | |"
    yield "|---|---|"
    for name, values in results["silent"].items():
        yield f"| {name} | {_rate(values)} |"
    yield ""
    yield "| fault | what the doctor named |"
    yield "|---|---|"
    for fault, said in results["confusion"].items():
        yield f"| {fault} | {', '.join(f'{cause} {count}' for cause, count in said.items())} |"
    yield ""
    yield "| missed case | said | right |"
    yield "|---|---|---|"
    for miss in results["misses"]:
        yield f"| {miss['case']} | {miss['said']} | {', '.join(miss['right']) or 'healthy'} |"
    yield ""
    yield "| fault without a measurable effect | change | p | pairs |"
    yield "|---|---|---|---|"
    for place, effect in results["without_effect"].items():
        yield f"| {place} | {effect['change']:.3g} | {effect['p_value']:.3g} | {effect['pairs']} |"


def _table(title: str, rows: Mapping[str, Any]) -> Iterator[str]:
    yield ""
    yield f"| {title} | told | false alarms | root cause right | right of those named | among three |"
    yield "|---|---|---|---|---|---|"
    for name, values in rows.items():
        cells = [_rate(values[key]) for key in ("recall", "false_alarms", "top1", "precision", "top3")]
        yield f"| {name} | {' | '.join(cells)} |"
