"""The results of a sweep: a table, `sweep.json`, `sweep.md`, figures, and the best recipe."""

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
from rich.table import Table
from rich.text import Text

from fledge.errors import FledgeError
from fledge.evaluate.statistics import PairedTest
from fledge.run import Console, write_json, write_text
from fledge.run.terminal import output_terminal
from fledge.sweep.documents import Losses, compare_documents, stored_losses
from fledge.sweep.journal import TrialRecord, best_record
from fledge.sweep.metric import Metric
from fledge.sweep.plots import write_figures
from fledge.sweep.proposals import Search, importances
from fledge.sweep.pruning import end_of_seed
from fledge.sweep.recipes import TrialRecipes
from fledge.sweep.space import yaml_text
from fledge.sweep.trial import documents_file

STATES = {"complete": 0, "pruned": 1, "failed": 2}  # the order of the table


@dataclass(frozen=True, kw_only=True)
class Row:
    """A line of the table: a trial, how far its seeds spread (standard deviation), and how much higher its losses are than the
    best trial's on the same documents; None where that is not known."""

    record: TrialRecord
    spread: float | None
    behind: PairedTest | None


def trial_line(record: TrialRecord, metric: str) -> str:
    """A finished trial as one line of the console."""
    shown = ", ".join(f"{key.rpartition('.')[2]} {yaml_text(value)}" for key, value in record.values.items())
    if record.state == "failed":
        return f"trial {record.number}: {shown}: failed: {record.reason}"
    assert record.value is not None
    if record.state == "pruned":
        return f"trial {record.number}: {shown}: ended early at {metric} {record.value:.4f}: {record.reason}"
    return f"trial {record.number}: {shown}: {metric} {record.value:.4f}"


def table_rows(recipes: TrialRecipes, records: Sequence[TrialRecord], higher_is_better: bool) -> list[Row]:
    """The lines of the table, the best trial first; those that ended early and those that failed come last."""
    sign = -1.0 if higher_is_better else 1.0
    ordered = sorted(records, key=lambda one: (STATES[one.state], sign * (one.value or 0.0), one.number))
    best = best_record(records, higher_is_better)
    of_best = {} if best is None else _documents_of(recipes, best)
    rows = []
    for record in ordered:
        spread = statistics.stdev(record.seed_values) if len(record.seed_values) > 1 else None
        behind = None
        if best is not None and record.state == "complete" and record.number != best.number:
            behind = compare_documents(of_best, _documents_of(recipes, record))
        rows.append(Row(record=record, spread=spread, behind=behind))
    return rows


def _documents_of(recipes: TrialRecipes, record: TrialRecord) -> Losses:
    """The losses of all documents under the models of all seeds of a complete trial."""
    found: Losses = {}
    for seed in range(1, len(record.seed_values) + 1):
        file = documents_file(recipes, record.number, end_of_seed(seed))
        if file.exists():
            found |= {f"{seed}/{key}": loss for key, loss in stored_losses(file, dict).items()}
    return found


def _cells(row: Row, metric: Metric) -> list[str]:
    record = row.record
    value = "–" if record.value is None else f"{record.value:.4f}"
    spread = "" if row.spread is None else f"± {row.spread:.4f}"
    behind = ""
    if row.behind is not None:
        low, high = row.behind.interval
        behind = f"{row.behind.difference:+.4f} [{low:+.4f}, {high:+.4f}]"
    values = [yaml_text(value) for value in record.values.values()]
    return [str(record.number), *values, value, spread, behind, record.state]


def _headers(search: Search, metric: Metric) -> list[str]:
    keys = [one.key.removeprefix("stages.") for one in search.space]
    return ["trial", *keys, metric.name, "seeds ±", "behind the best, 95 %", "state"]


def write_results(
    recipes: TrialRecipes, search: Search, records: Sequence[TrialRecord], metric: Metric, console: Console
) -> None:
    """Write all results of a sweep, and print the table. Raises FledgeError if no trial was trained to its end."""
    best = best_record(records, search.higher_is_better)
    rows, shares = table_rows(recipes, records, search.higher_is_better), importances(search, [r.outcome() for r in records])
    folder = recipes.paths.folder
    write_json(folder / "sweep.json", _as_json(search, metric, rows, shares))
    cells = [_cells(row, metric) for row in rows]
    if best is not None:
        write_text(recipes.paths.best, recipes.best(best.values))
    figures = write_figures(folder, search, records, metric.name, shares, console.log)
    write_text(folder / "sweep.md", _markdown(_headers(search, metric), cells, rows, shares, [one.name for one in figures]))
    _print_table(_headers(search, metric), cells)
    for line in _sentences(rows, shares, search):
        console.log(line)
    if best is None:
        raise FledgeError("no trial was trained to its end", where=str(folder), hint="the table says why")
    console.log(f"best recipe: {recipes.paths.best}; all trials: {folder / 'sweep.md'}")


def _as_json(search: Search, metric: Metric, rows: Sequence[Row], shares: dict[str, float]) -> dict[str, Any]:
    trials = []
    for row in rows:
        values = asdict(row.record)
        values["spread"] = row.spread
        values["behind"] = None if row.behind is None else {
            "difference": row.behind.difference, "interval": row.behind.interval, "documents": row.behind.count
        }  # fmt: skip
        trials.append(values)
    return {
        "metric": metric.name,
        "higher_is_better": search.higher_is_better,
        "space": [one.describe() for one in search.space],
        "importance": shares,
        "trials": trials,
    }


def _sentences(rows: Sequence[Row], shares: dict[str, float], search: Search) -> list[str]:
    """What the table means: which trials cannot be told from the best one, which keys mattered, where a value lies at the end
    of its range."""
    if not rows or rows[0].record.state != "complete":
        return []
    lines, best = [], rows[0].record
    alike = [str(row.record.number) for row in rows if row.behind is not None and not row.behind.is_different]
    if alike:
        lines.append(f"trials that these documents cannot tell from the best one: {', '.join(alike)}")
    if shares:
        shown = ", ".join(f"{key.removeprefix('stages.')} {share:.0%}" for key, share in shares.items())
        lines.append(f"what made trials good: {shown}")
    for one in search.space:
        if one.choices:
            continue
        value = best.values[one.key]
        place = np.log(value / one.low) / np.log(one.high / one.low) if one.log else (value - one.low) / (one.high - one.low)
        if not AT_END <= place <= 1 - AT_END:
            lines.append(f"note: the best value of {one.key}, {value:g}, lies at the end of its range: search further there")
    return lines


AT_END = 0.05  # of a range


def _markdown(
    headers: Sequence[str], cells: Sequence[Sequence[str]], rows: Sequence[Row], shares: dict[str, float], figures: list[str]
) -> str:
    def line(values: Sequence[str]) -> str:
        return "| " + " | ".join(value.replace("|", "\\|") for value in values) + " |"

    lines = ["# Sweep", "", line(headers), line(["---"] * len(headers)), *map(line, cells), ""]
    reasons = [f"- trial {row.record.number}: {row.record.reason}" for row in rows if row.record.reason]
    if reasons:
        lines += ["Trials that ended early or failed:", "", *reasons, ""]
    if shares:
        lines += ["Importance (PED-ANOVA):", "", *(f"- {key}: {share:.1%}" for key, share in shares.items()), ""]
    return "\n".join([*lines, *(f"![{name}]({name})" for name in figures)]) + "\n"


def _print_table(headers: Sequence[str], cells: Sequence[Sequence[str]]) -> None:
    table = Table(header_style="bold", box=None, pad_edge=False)
    for name in headers:
        table.add_column(Text(name), justify="right", overflow="fold")
    for row in cells:
        table.add_row(*map(Text, row))
    output_terminal().print(table)
