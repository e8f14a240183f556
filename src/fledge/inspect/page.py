"""The statistics as one self-contained HTML page with plots."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fledge.data.analysis.lengths import Lengths
from fledge.data.analysis.statistics import SourceStatistics, StageStatistics
from fledge.data.formats import FORMATS
from fledge.inspect.inspection import StageInspection
from fledge.inspect.tables import MARKS, percent
from fledge.report.page import HERE as REPORT
from fledge.report.page import inline, plotly_script, policy, script_json
from fledge.tokenizer import Tokenizer

HERE = Path(__file__).parent
NAME_LENGTH = 32  # characters of a source's name in a plot
LANGUAGES_SHOWN = 6


@dataclass(frozen=True)
class Plot:
    """One figure. `kind` is histogram (traces of bins on a log axis, `mark` a vertical line) or bars (one bar a source)."""

    name: str
    title: str
    unit: str
    kind: str
    traces: tuple[dict[str, Any], ...]
    mark: int | None = None
    stacked: bool = False
    height: int = 260  # pixels

    def specification(self) -> dict[str, Any]:
        """What the page's script draws."""
        return {"kind": self.kind, "traces": self.traces, "mark": self.mark, "stacked": self.stacked, "unit": self.unit}


def plots(statistics: StageStatistics) -> list[Plot]:
    """The figures of a stage."""
    trained = [source for source in statistics.sources if source.training is not None]
    names = _names(statistics.sources)
    shares = [f"{kind}_share" for kind in ("row", "token")]
    mixture = tuple(
        {"name": name, "labels": names[: len(trained)], "values": [100 * getattr(entry, key) for entry in statistics.mixture]}
        for name, key in zip(("of rows", "of tokens"), shares, strict=True)
    )
    supervised = [100 * source.training.target_token_fraction for source in trained if source.training is not None]
    height = 90 + 40 * len(statistics.sources)
    made = [
        Plot("characters", "Length in characters", "% of rows", "histogram", _histograms(statistics, names, "characters")),
        Plot("tokens", "Length in tokens", "% of rows, before any cut", "histogram", _histograms(statistics, names, "tokens"),
             mark=statistics.context),
        Plot("mixture", "Mixture", "% of an epoch", "bars", mixture if len(trained) > 1 else (), height=height),
        Plot("languages", "Languages", "% of rows", "bars", _languages(statistics, names), stacked=True, height=height),
    ]  # fmt: skip
    if FORMATS[statistics.kind].has_loss_weights:  # otherwise every token is supervised
        trace = {"name": "supervised", "labels": names[: len(trained)], "values": supervised}
        made.append(Plot("supervised", "Supervised", "% of tokens", "bars", (trace,), height=height))
    return [plot for plot in made if plot.traces]


def _names(sources: Sequence[SourceStatistics]) -> list[str]:
    """Names for the plots: short, and different from each other."""
    names: list[str] = []
    for source in sources:
        name = source.name if len(source.name) <= NAME_LENGTH else f"{source.name[: NAME_LENGTH - 1]}…"
        number = 2
        while name in names:
            name, number = f"{name.removesuffix(f' ({number - 1})')} ({number})", number + 1
        names.append(name)
    return names


def _histograms(statistics: StageStatistics, names: Sequence[str], what: str) -> tuple[dict[str, Any], ...]:
    """Outlines of the histograms: x is the beginning of each bin (a log axis has no zero), y its share of the rows."""
    traces = []
    for name, source in zip(names, statistics.sources, strict=True):
        lengths: Lengths | None = getattr(source, what)
        if lengths is not None:
            edges = [max(1, start) for start, _, _ in lengths.histogram] + [lengths.histogram[-1][1]]
            shares = [round(100 * count / lengths.count, 3) for _, _, count in lengths.histogram] + [0.0]
            traces.append({"name": name, "x": edges, "y": shares})
    return tuple(traces)


def _languages(statistics: StageStatistics, names: Sequence[str]) -> tuple[dict[str, Any], ...]:
    """A trace for each of the most frequent languages, and one for the others."""
    totals: dict[str, int] = {}
    for source in statistics.sources:
        for language, count in source.languages.items():
            totals[language] = totals.get(language, 0) + count
    ordered = sorted(totals, key=lambda language: (-totals[language], language))
    shown = ordered if len(ordered) <= LANGUAGES_SHOWN else ordered[: LANGUAGES_SHOWN - 1]
    groups = [(language, [language]) for language in shown]
    groups += [("others", ordered[len(shown) :])] if len(ordered) > len(shown) else []
    return tuple({"name": name, "labels": list(names), "values": list(_group(statistics, group))} for name, group in groups)


def _group(statistics: StageStatistics, languages: Sequence[str]) -> Iterator[float]:
    for source in statistics.sources:
        total = sum(source.languages.values())
        yield 100 * sum(source.languages.get(language, 0) for language in languages) / total if total else 0.0


def render(title: str, looked: Sequence[StageInspection], tokenizer: Tokenizer) -> str:
    """The page: nothing is fetched, all text is escaped, and no script but its own may run."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    figures = [plots(one.statistics) for one in looked]
    drawn = {f"plot-{place}-{plot.name}": plot.specification() for place, group in enumerate(figures) for plot in group}
    scripts = [plotly_script(), inline((HERE / "page.js").read_text(encoding="utf-8"))]
    style = (REPORT / "page.css").read_text(encoding="utf-8") + (HERE / "page.css").read_text(encoding="utf-8")
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(percent=percent, whole=lambda number: "–" if number is None else f"{number:,.0f}")
    return environment.get_template("page.html.j2").render(
        title=title,
        tokenizer={"vocab_size": tokenizer.vocab_size, "template": tokenizer.template.name},
        looked=looked,
        figures=figures,
        marks={level: mark for level, (mark, _) in MARKS.items()},
        policy=policy(scripts),
        style=Markup(style),
        plot_json=Markup(script_json(drawn)),
        plotly_script=Markup(scripts[0]),
        page_script=Markup(scripts[1]),
    )
