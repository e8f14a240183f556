"""Several runs on one page: their figures side by side, their curves in one figure, the sets that two of them share, and what
differs in their recipes."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

from fledge.errors import FledgeError
from fledge.evaluate.comparison import MetricComparison, compare_sets
from fledge.evaluate.records import AFTER, SetResult
from fledge.recipe.diff import leaves
from fledge.report import formatting
from fledge.report.charts import stage_charts
from fledge.report.facts import facts
from fledge.report.figures import Chart, Series
from fledge.report.html_page import HERE, render_page, write_page
from fledge.report.i18n import WORDS, Text
from fledge.report.page import FILTERS
from fledge.report.read_run import parsed_recipe, read_run, text
from fledge.report.records import Problem, Run, Sample
from fledge.report.samples import by_prompt
from fledge.report.sets import metric_name, read_sets
from fledge.report.summary_table import Row, stage_rows

MAX_RUNS = 8  # colours of the style sheet
ONE_RUN_ONLY = ("phases",)  # figures with so many curves that several runs in one cannot be read
FOUND = {
    "higher": Text("higher", "更高"),
    "lower": Text("lower", "更低"),
    "no difference": Text("no difference", "无差异"),
    "too few to decide": Text("too few to decide", "样本太少，无法判断"),
}


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A metric of a set for two runs: means over common items, difference with its interval, and what follows from it."""

    label: Text
    first: str
    second: str
    difference: str
    found: Text
    better: bool | None
    count: int
    p_value: str


@dataclass(frozen=True, kw_only=True)
class PairOfRuns:
    """What two runs gave on the sets of a stage that both were asked."""

    first: str
    second: str
    set_name: str
    same_set: bool
    rows: tuple[Difference, ...]


@dataclass(frozen=True, kw_only=True)
class ComparedStage:
    """A stage that at least one of the runs has. `present`: names of the runs that have it, in the order of `rows`."""

    name: str
    present: tuple[str, ...]
    rows: tuple[Row, ...]
    charts: tuple[Chart, ...]
    pairs: tuple[PairOfRuns, ...]
    samples: tuple[tuple[str, tuple[Sample | None, ...]], ...]


def write_comparison(run_directories: Sequence[Path], target: Path) -> Path:
    """Write the page that compares runs, and return its path.

    Raises FledgeError for fewer than two runs, more than eight, and a directory that is no run; FileNotFoundError for one that
    is missing.
    """
    if not 2 <= len(run_directories) <= MAX_RUNS:
        raise FledgeError(f"2 to {MAX_RUNS} runs can be compared, not {len(run_directories)}", where="fledge report")
    paths = [Path(directory) for directory in run_directories]
    if target.is_dir():
        raise FledgeError("this is a folder", where=str(target), hint="name a file: --out comparison.html")
    html = render([read_run(path) for path in paths], paths)
    try:
        write_page(target, html)
    except OSError as error:
        raise FledgeError(f"cannot write: {error.strerror}", where=str(target)) from None
    return target


def render(runs: Sequence[Run], paths: Sequence[Path]) -> str:
    """The HTML of the page."""
    names, problems = _names(runs, paths), [problem for run in runs for problem in run.problems]
    sets = [_sets_after(run, path, problems) for run, path in zip(runs, paths, strict=True)]
    stages = [_compared(name, runs, names, sets) for name in dict.fromkeys(stage.name for run in runs for stage in run.stages)]
    figures = {
        f"stage-{index}-{chart.name}": chart.specification() for index, stage in enumerate(stages) for chart in stage.charts
    }
    values = {
        "w": WORDS,
        "names": names,
        "stages": stages,
        "recipe": _differing([parsed_recipe(run.recipe) for run in runs]),
        "machine": _differing([dict(facts(run.environment)) for run in runs]),
        "problems": problems,
        "seconds": [run.seconds for run in runs],
    }
    return render_page(HERE / "comparison.html.j2", values, figures, filters=FILTERS)


def _names(runs: Sequence[Run], paths: Sequence[Path]) -> list[str]:
    """Different names of the runs: their own, with their folder where two are equal."""
    own = [run.name for run in runs]
    full = [name if own.count(name) == 1 else f"{name} ({path})" for name, path in zip(own, paths, strict=True)]
    return [name if full.count(name) == 1 else f"{name} {number}" for number, name in enumerate(full, 1)]


def _sets_after(run: Run, path: Path, problems: list[Problem]) -> dict[str, dict[str, SetResult]]:
    """The results after each stage of a run, by stage and set."""
    return {stage.name: read_sets(path / stage.name / "eval" / AFTER, problems) for stage in run.stages}


def _compared(
    name: str, runs: Sequence[Run], names: Sequence[str], sets: Sequence[dict[str, dict[str, SetResult]]]
) -> ComparedStage:
    found = [
        (number, label, stage)
        for number, (label, run) in enumerate(zip(names, runs, strict=True))
        for stage in run.stages
        if stage.name == name
    ]
    pairs = [
        _pair(one[1], other[1], sets[one[0]][name][set_name], sets[other[0]][name][set_name])
        for one, other in combinations(found, 2)
        for set_name in sets[one[0]][name]
        if set_name in sets[other[0]][name]
    ]
    answers = [by_prompt(stage.after) for _, _, stage in found]
    prompts = list(dict.fromkeys(prompt for samples in answers for prompt in samples))
    return ComparedStage(
        name=name,
        present=tuple(label for _, label, _ in found),
        rows=tuple(stage_rows([stage for _, _, stage in found])),
        charts=tuple(_common_charts([(number, label, stage_charts(stage)) for number, label, stage in found])),
        pairs=tuple(pairs),
        samples=tuple((prompt, tuple(samples.get(prompt) for samples in answers)) for prompt in prompts),
    )


def _pair(first_name: str, second_name: str, first: SetResult, second: SetResult) -> PairOfRuns:
    comparison = compare_sets(first, second)
    rows = tuple(_difference(one) for one in comparison.metrics.values())
    return PairOfRuns(first=first_name, second=second_name, set_name=second.name, same_set=comparison.same_set, rows=rows)


def _difference(one: MetricComparison) -> Difference:
    label, (low, high) = metric_name(one.metric), one.interval
    figure = formatting.three_figures
    return Difference(
        label=Text(label.label, label.chinese),
        first=figure(one.first),
        second=figure(one.second),
        difference=f"{'+' if one.difference > 0 else ''}{figure(one.difference)} [{figure(low)}, {figure(high)}]",
        found=FOUND[one.found],
        better=one.better,
        count=one.count,
        p_value=figure(one.p_value),
    )


def _common_charts(found: Sequence[tuple[int, str, list[Chart]]]) -> list[Chart]:
    """A figure for each name, with the curves of all runs that recorded it, one colour a run."""
    charts: dict[str, Chart] = {}
    for number, label, own in found:
        for chart in own:
            if chart.name in ONE_RUN_ONLY or not chart.series:
                continue
            series = tuple(_of_run(one, number, label, len(chart.series)) for one in chart.series)
            known = charts.get(chart.name, replace(chart, series=()))
            charts[chart.name] = replace(known, series=(*known.series, *series))
    return list(charts.values())


def _of_run(series: Series, number: int, label: str, several: int) -> Series:
    name = Text(f"{label} · {series.name.en}", f"{label} · {series.name.zh}") if several > 1 else Text(label, label)
    return replace(series, role=f"c{number}", name=name)


def _differing(values: Sequence[dict[str, object]]) -> list[tuple[str, tuple[str, ...]]]:
    """The keys whose values are not equal in all runs, with the value of each."""
    flat = [dict(leaves(one)) for one in values]
    keys = dict.fromkeys(key for one in flat for key in one)
    rows = [(key, tuple(_shown(one[key]) if key in one else "–" for one in flat)) for key in keys]
    return [(key, shown) for key, shown in rows if len(set(shown)) > 1 and key not in ("name", "output")]


def _shown(value: object) -> str:
    return "null" if value is None else text(value)
