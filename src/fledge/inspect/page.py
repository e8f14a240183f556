"""The statistics as one self-contained HTML page with plots."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup

from fledge.data.analysis.lengths import Lengths
from fledge.data.analysis.statistics import SourceStatistics, StageStatistics
from fledge.data.formats import FORMATS
from fledge.inspect.inspection import StageInspection
from fledge.inspect.tables import MARKS, percent
from fledge.localization import translated
from fledge.report.html_page import render_page
from fledge.report.i18n import WORDS as TEXTS
from fledge.tokenizer import Tokenizer

HERE = Path(__file__).parent
NAME_LENGTH = 32  # characters of a source's name in a plot
LANGUAGES_SHOWN = 6
COLOURS = 8  # of the style sheet


@dataclass(frozen=True, kw_only=True)
class Plot:
    """One figure. `kind` is steps (bins on a log axis, `mark` a vertical line) or bars (one bar for each source)."""

    name: str
    title: str
    unit: str
    kind: str
    series: tuple[dict[str, Any], ...]
    mark: int | None = None
    stacked: bool = False
    height: int = 260  # pixels

    def specification(self) -> dict[str, Any]:
        """The figure as JSON values for the page's script."""
        coloured = [
            {**one, "name": _words(one["name"]), "role": f"c{index % COLOURS}"} for index, one in enumerate(self.series)
        ]
        return {
            "kind": self.kind,
            "title": _words(self.title),
            "unit": _words(self.unit),
            "x_title": _words(self.name if self.kind == "steps" else ""),
            "x_log": True,
            "from_zero": True,
            "mark": None if self.mark is None else {"at": self.mark, "name": _words(f"context {self.mark:,}")},
            "stacked": self.stacked,
            "series": coloured,
        }


def _words(text: str) -> dict[str, str]:
    """A text of this page in both languages, as the script of all pages reads it."""
    return {"en": text, "zh": translated(text, "zh")}


def _both(text: str) -> Markup | str:
    """A text of this page in both languages; the page shows one of them."""
    chinese = translated(text, "zh")
    if chinese == text:
        return text
    return Markup('<span class="en" lang="en">{}</span><span class="zh" lang="zh-CN">{}</span>').format(text, chinese)


def plots(statistics: StageStatistics) -> list[Plot]:
    """The figures of a stage. Figures without series are left out."""
    names = _names(statistics.sources)
    height = 90 + 40 * len(statistics.sources)
    figures = [
        Plot(
            name="characters",
            title="Length in characters",
            unit="% of rows",
            kind="steps",
            series=_histograms(statistics, names, "characters"),
        ),
        Plot(
            name="tokens",
            title="Length in tokens",
            unit="% of rows, before any cut",
            kind="steps",
            series=_histograms(statistics, names, "tokens"),
            mark=statistics.context,
        ),
        Plot(
            name="mixture",
            title="Mixture",
            unit="% of an epoch",
            kind="bars",
            series=_mixture(statistics, names),
            height=height,
        ),
        Plot(
            name="languages",
            title="Languages",
            unit="% of rows",
            kind="bars",
            series=_languages(statistics, names),
            stacked=True,
            height=height,
        ),
    ]
    if FORMATS[statistics.kind].has_loss_weights:  # otherwise every token is supervised
        series = _supervised(statistics, names)
        figures.append(
            Plot(name="supervised", title="Supervised", unit="% of tokens", kind="bars", series=series, height=height)
        )
    return [plot for plot in figures if plot.series]


def _names(sources: Sequence[SourceStatistics]) -> list[str]:
    """Short and distinct names of the sources for the plots."""
    names: list[str] = []
    for source in sources:
        name = source.name if len(source.name) <= NAME_LENGTH else f"{source.name[: NAME_LENGTH - 1]}…"
        number = 2
        while name in names:
            name, number = f"{name.removesuffix(f' ({number - 1})')} ({number})", number + 1
        names.append(name)
    return names


def _histograms(statistics: StageStatistics, names: Sequence[str], quantity: str) -> tuple[dict[str, Any], ...]:
    """The outlines of the histograms: x is the beginning of each bin (a log axis has no zero), y its share of the rows in
    percent."""
    series = []
    for name, source in zip(names, statistics.sources, strict=True):
        lengths: Lengths | None = getattr(source, quantity)
        if lengths is not None:
            edges = [max(1, start) for start, _, _ in lengths.histogram] + [lengths.histogram[-1][1]]
            shares = [round(100 * count / lengths.count, 3) for _, _, count in lengths.histogram] + [0.0]
            series.append({"name": name, "x": edges, "y": shares})
    return tuple(series)


def _mixture(statistics: StageStatistics, names: Sequence[str]) -> tuple[dict[str, Any], ...]:
    """Two series: the share of each training source of the rows and of the tokens. Empty for a single source."""
    if len(statistics.mixture) < 2:
        return ()
    labels = list(names[: len(statistics.mixture)])
    row_shares = [100 * source.row_share for source in statistics.mixture]
    token_shares = [100 * source.token_share for source in statistics.mixture]
    return (
        {"name": "of rows", "labels": labels, "values": row_shares},
        {"name": "of tokens", "labels": labels, "values": token_shares},
    )


def _supervised(statistics: StageStatistics, names: Sequence[str]) -> tuple[dict[str, Any], ...]:
    """One series: the share of supervised tokens of each training source."""
    fractions = [source.training.target_token_fraction for source in statistics.sources if source.training is not None]
    labels = list(names[: len(fractions)])
    return ({"name": "supervised", "labels": labels, "values": [100 * fraction for fraction in fractions]},)


def _languages(statistics: StageStatistics, names: Sequence[str]) -> tuple[dict[str, Any], ...]:
    """A series for each of the most frequent languages, and one for all others."""
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


def render(title: str, inspections: Sequence[StageInspection], tokenizer: Tokenizer) -> str:
    """The HTML of the page: nothing is loaded from the network, all text is escaped, and only the page's own scripts may
    run."""
    figures = [plots(inspection.statistics) for inspection in inspections]
    specifications = {
        f"plot-{index}-{plot.name}": plot.specification() for index, group in enumerate(figures) for plot in group
    }
    values = {
        "title": title,
        "tokenizer": {"vocab_size": tokenizer.vocab_size, "template": tokenizer.template.name},
        "inspections": inspections,
        "figures": figures,
        "w": TEXTS,
        "marks": {level: mark for level, (mark, _) in MARKS.items()},
    }
    filters = {"both": _both, "percent": percent, "whole": lambda number: "–" if number is None else f"{number:,.0f}"}
    return render_page(HERE / "data_page.html.j2", values, specifications, styles=[HERE / "page.css"], filters=filters)
