"""The tables that `fledge runs` prints."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rich.table import Table
from rich.text import Text

from fledge.evaluate.comparison import MetricComparison, SetComparison
from fledge.localization import localized_head
from fledge.report import formatting
from fledge.run.terminal import Terminal, Verbatim, output_terminal
from fledge.runs.compare import FORGETTING, Comparison
from fledge.runs.listing import ListedRun
from fledge.runs.prune import PrunedStage

SHOWN_METRICS = (
    "loss", "perplexity", "bits_per_byte", "token_accuracy", "reward", "rewards/accuracies", "exact_match", "f1", "bleu",
)  # fmt: skip


def _table(columns: Iterable[str | Verbatim], title: str = "") -> Table:
    table = Table(title=Text(title) if title else None, title_justify="left", header_style="bold", box=None, pad_edge=False)
    for number, name in enumerate(columns):
        head = Text(name) if isinstance(name, str) else name
        table.add_column(head, justify="left" if number == 0 else "right", overflow="fold")
    return table


def print_list(runs: Sequence[ListedRun]) -> None:
    """Print runs, one a line."""
    table = _table(("run", "stages (steps)", "state", "size", "validation loss", "verdict"))
    for run in runs:
        stages = ", ".join(f"{name} {steps:,}/{'?' if of is None else f'{of:,}'}" for name, (steps, of) in run.stages.items())
        loss = "" if run.loss is None else formatting.loss(run.loss)
        state, verdict = map(localized_head, (run.state, run.verdict or ""))
        cells = (run.path, stages, state, formatting.size(run.bytes), loss, verdict)
        table.add_row(*map(Text, cells))
    output_terminal().print(table)


def print_pruned(stages: Sequence[PrunedStage], removed: bool) -> None:
    """Print what is not needed of stages, or was removed."""
    table = _table(("stage", "removed" if removed else "not needed", "size", "kept"))
    for one in stages:
        gone = f"nothing: {one.skipped}" if one.skipped else ", ".join(one.removed) or "nothing"
        table.add_row(*map(Text, (str(one.stage), gone, formatting.size(one.bytes), ", ".join(one.kept))))
    output_terminal().print(table)
    total = sum(one.bytes for one in stages)
    more = "" if removed or not total else "; nothing was removed: add --yes"
    output_terminal().print(Text(f"{formatting.size(total)} {'freed' if removed else 'would be freed'}{more}"), soft_wrap=True)


def print_shown(shown: Mapping[str, Any], verdicts: Mapping[str, Sequence[str]]) -> None:
    """Print what `show` found. `verdicts`: the lines of each stage's verdict."""
    out = output_terminal()
    for name, stage in shown["stages"].items():
        out.print(Text(f"\n{name}", style="bold"), soft_wrap=True)
        out.print(Text(_stage_line(stage)), soft_wrap=True)
        for metric in SHOWN_METRICS:
            if metric in stage["after"]:
                before = _number(stage["before"].get(metric))
                out.print(Text(f"  {metric}: {before} → {_number(stage['after'][metric])}"), soft_wrap=True)
        if stage["checkpoints"]:
            out.print(_checkpoint_table(stage["checkpoints"]))
        _print_sets(out, stage["sets"])
        for one in stage["findings"]:
            out.print(Text(f"  {one['severity']} at step {one['step']:,}: {one['message']}"), soft_wrap=True)
        for line in verdicts.get(name, ()):
            out.print(Text(line), soft_wrap=True)
    _print_sets(out, shown.get("sets", {}))


def _stage_line(stage: Mapping[str, Any]) -> str:
    parts = [str(stage["kind"] or "stage"), f"{stage['steps']:,} of {stage['planned_steps'] or '?'} steps"]
    for key, unit in (("parameters", "parameters"), ("trained_parameters", "of them trained"), ("tokens", "tokens planned")):
        if stage[key]:
            parts.append(f"{formatting.compact(stage[key])} {unit}")
    if stage["seconds"]:
        parts.append(formatting.duration(stage["seconds"]))
    if stage["stop"]:
        parts.append(f"ended early: {stage['stop']}")
    return "  " + ", ".join(parts) + ("" if stage["finished"] else ", not finished")


def _checkpoint_table(checkpoints: Sequence[Mapping[str, Any]]) -> Table:
    names = [name for name in SHOWN_METRICS if any(name in one["metrics"] for one in checkpoints)]
    table = _table(("  step", *names, "checkpoint"))
    for one in checkpoints:
        marks = [word for word, holds in (("kept", one["saved"]), ("best", one["best"]), ("goes on", one["goes_on"])) if holds]
        cells = [_number(one["metrics"].get(name)) for name in names]
        table.add_row(Text(f"  {one['step']:,}"), *map(Text, cells), Text(", ".join(marks)))
    return table


def _print_sets(out: Terminal, found: Mapping[str, Any]) -> None:
    if not found:
        return
    table = _table(("  set", "kind", "items", "metric", "before", "after", "95 % interval"))
    for name, one in found.items():
        for metric, value in one["after"].items():
            before = one["before"].get(metric, {}).get("value") if one["same_set"] else None
            interval = "" if value["interval"] is None else f"[{', '.join(map(_number, value['interval']))}]"
            numbers = (_number(before), _number(value["value"]), interval)
            table.add_row(*map(Text, (f"  {name}", one["kind"], f"{value['count']:,}", metric, *numbers)))
    out.print(table)


def print_comparison(found: Comparison) -> None:
    """Print a comparison: recipe, stages, sets with tests, forgetting, and what could not be compared."""
    out, names = output_terminal(), [subject.name for subject in found.subjects]
    _print_recipe(out, found, names)
    if found.stages:
        shown = [name for name in SHOWN_METRICS if any(name in row.now for row in found.stages)]
        table = _table(("stage", "run", "steps", *shown), "metrics on validation data, before → now")
        for row in sorted(found.stages, key=lambda row: row.stage):
            cells = [f"{_number(row.before.get(name))} → {_number(row.now.get(name))}" for name in shown]
            table.add_row(*map(Text, (row.stage, row.subject, "?" if row.steps is None else f"{row.steps:,}", *cells)))
        out.print(table)
    for pair in found.sets:
        where = f"{pair.stage}/{pair.comparison.name}" if pair.stage else pair.comparison.name
        _print_pair(out, f"\n{where} ({pair.comparison.kind}): {pair.first} → {pair.second}", pair.comparison)
    if found.forgetting:
        out.print(Text("\nforgetting: bits per byte of texts, before → after the stage", style="bold"))
        for one in found.forgetting:
            change = one.comparison.metrics.get(FORGETTING)
            text = "no value of each text is stored" if change is None else comparison_text(change)
            out.print(Text(f"  {one.subject} {one.stage}, {one.comparison.name}: {text}"), soft_wrap=True)
    for name, lacking in found.missing:
        out.print(
            Text(f"not compared: set {name}, which {', '.join(lacking)} lack{'s' if len(lacking) == 1 else ''}"), soft_wrap=True
        )
    if not found.sets:
        text = "no set was asked of both: give evaluation.sets, or compare the models with fledge eval"
        out.print(Text(text), soft_wrap=True)


def _print_recipe(out: Terminal, found: Comparison, names: Sequence[str]) -> None:
    if not found.recipe:
        return
    table = _table(("key", *map(Verbatim, names)), "what differs in the recipes")
    for key, values in found.recipe:
        table.add_row(*map(Text, (key, *map(str, values))))
    out.print(table)


def _print_pair(out: Terminal, title: str, comparison: SetComparison) -> None:
    out.print(Text(title, style="bold"), soft_wrap=True)
    if not comparison.same_set:
        out.print(Text("  the sets differ: only their common items are compared"), soft_wrap=True)
    if comparison.only_first or comparison.only_second:
        text = f"  left out: {comparison.only_first:,} items of the first alone, {comparison.only_second:,} of the second alone"
        out.print(Text(text), soft_wrap=True)
    for metric, count in comparison.unusable.items():
        out.print(Text(f"  left out of {metric}: {count:,} items without a number"), soft_wrap=True)
    if not comparison.metrics:
        out.print(Text("  no metric has values of common items"), soft_wrap=True)
        return
    table = _table(("  metric", "first", "second", "difference", "95 % interval", "p", "items", "found"))
    for one in comparison.metrics.values():
        low, high = one.interval
        p = f"{one.p_value:.2g}"
        cells = (
            f"  {one.metric}",
            _number(one.first),
            _number(one.second),
            f"{one.difference:+.3g}",
            f"[{low:+.3g}, {high:+.3g}]",
        )
        table.add_row(*map(Text, (*cells, p, f"{one.count:,}")), Text(found_text(one), style=_style(one)))
    out.print(table)


def comparison_text(one: MetricComparison) -> str:
    """A difference in one line."""
    low, high = one.interval
    return f"{_number(one.first)} → {_number(one.second)}, {one.difference:+.3g} [{low:+.3g}, {high:+.3g}]: {found_text(one)}"


def found_text(one: MetricComparison) -> str:
    """What a comparison has found, in words."""
    if one.better is not None:
        return f"{one.found}: {'better' if one.better else 'worse'}"
    if one.found != "too few to decide":
        return one.found
    shown = "none" if one.detectable is None else f"{one.detectable:.2g}"
    needed = "" if one.items_needed is None else f"; {one.relevant:.2g} needs {one.items_needed:,}"
    return f"too few to decide: shows {shown} or more{needed}"


def _style(one: MetricComparison) -> str:
    return {True: "green", False: "red", None: ""}[one.better]


def _number(value: Any) -> str:
    return "–" if not isinstance(value, int | float) else f"{value:.4g}"
