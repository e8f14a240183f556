"""The report of a run as one self-contained HTML page."""

from dataclasses import replace
from pathlib import Path

from fledge.report import formatting
from fledge.report.charts import stage_charts
from fledge.report.facts import facts
from fledge.report.html_page import HERE, render_page, write_page
from fledge.report.i18n import DECISIONS, GOES_ON, NATURAL_GROUPS, WORDS, example_text, word_of
from fledge.report.proofs import stage_proofs
from fledge.report.read_run import mappings, number, read_run, text
from fledge.report.reasons import read_reason
from fledge.report.records import Problem, Run
from fledge.report.samples import sample_tables
from fledge.report.sets import cut, stage_sets
from fledge.report.summary_sentences import summary_sentences, verdict_sentences
from fledge.report.summary_table import stage_rows

MAX_ERRORS = 60
FILTERS = {
    "whole": formatting.whole,
    "compact": formatting.compact,
    "percent": formatting.percent,
    "size": formatting.size,
    "duration": formatting.duration,
    "number": number,
    "text": text,
    "example_text": example_text,
    "cut": cut,
    "mappings": mappings,
    "decision": lambda value: word_of(DECISIONS, value),
    "natural_group": lambda name: word_of(NATURAL_GROUPS, name),
    "reason": read_reason,
    "goes_on": lambda value: word_of(GOES_ON, value),
}


def write_report(run_directory: Path) -> Path:
    """Write `report.html` into the run directory and return its path.

    Raises FledgeError when the directory is no run, and FileNotFoundError when there is no such directory.
    """
    root = Path(run_directory)
    html = render(root)
    target = root / "report.html"
    write_page(target, html)
    return target


def render(root: Path) -> str:
    """The HTML of the report of the run in a directory."""
    run, problems = read_run(root), list[Problem]()
    sets = {stage.name: stage_sets(root / stage.name, problems) for stage in run.stages}
    proofs = {stage.name: stage_proofs(root / stage.name, problems) for stage in run.stages}
    run = replace(run, problems=(*run.problems, *problems))
    charts = [stage_charts(stage) for stage in run.stages]
    figures = {
        f"stage-{index}-{chart.name}": chart.specification()
        for index, group in enumerate(charts)
        for chart in group
        if chart.series
    }
    values = {
        "run": run,
        "w": WORDS,
        "charts": charts,
        "sentences": summary_sentences(run),
        "verdicts": {stage.name: verdict_sentences(stage) for stage in run.stages},
        "rows": stage_rows(run.stages),
        "proofs": {name: found for name, found in proofs.items() if found},
        "sample_tables": sample_tables(run.stages),
        "worlds": [stage for stage in run.stages if stage.world],
        "naturals": [stage for stage in run.stages if stage.world and stage.world.natural],
        "tasks": task_names(run),
        "machine": facts(run.environment),
        "tokenizer": facts(run.tokenizer),
        "max_errors": MAX_ERRORS,
        "sets": {name: found for name, found in sets.items() if found},
    }
    return render_page(HERE / "page.html.j2", values, figures, filters=FILTERS)


def task_names(run: Run) -> list[str]:
    """The tasks of all scored question sets, each once, in order of first appearance."""
    return list(dict.fromkeys(name for stage in run.stages if stage.world for name in stage.world.tasks))
