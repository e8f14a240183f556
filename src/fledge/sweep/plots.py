"""The figures of a sweep as SVG files, by matplotlib: what mattered, and the result over each searched value."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from fledge.report.plots import COLOURS, draw_figure
from fledge.sweep.journal import TrialRecord
from fledge.sweep.proposals import Search
from fledge.sweep.space import yaml_text

STYLE = {
    "font.size": 8, "axes.titlesize": 9, "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.spines.top": False,
    "axes.spines.right": False, "axes.axisbelow": True, "svg.fonttype": "none", "svg.hashsalt": "fledge",
}  # fmt: skip


def has_matplotlib() -> bool:
    """Whether figures can be drawn."""
    from importlib.util import find_spec

    return find_spec("matplotlib") is not None


def draw(file: Path, paint: Callable[[Any], None]) -> Path:
    """Write one figure in the style of a search; `paint` draws on its axes."""
    return draw_figure(file, paint, STYLE)


def write_figures(
    folder: Path,
    search: Search,
    records: Sequence[TrialRecord],
    metric: str,
    shares: dict[str, float],
    log: Callable[[str], None],
) -> list[Path]:
    """Write `importance.svg`, if there is more than one key, and `trials-KEY.svg` of each key; returns the paths."""
    complete = [one for one in records if one.state == "complete"]
    if not complete:
        return []
    if not has_matplotlib():
        log("note: no figures are drawn: they need matplotlib; pip install 'fledge[plots]'")
        return []
    files = []
    if shares:
        files.append(draw(folder / "importance.svg", lambda axes: _bars(axes, shares)))
    for one in search.space:
        name = one.key.removeprefix("stages.").replace(".", "-")
        points = [(record.values[one.key], record.value) for record in complete]
        files.append(
            draw(folder / f"trials-{name}.svg", lambda axes, one=one, points=points: _points(axes, one, points, metric))
        )
    return files


def _bars(axes: Any, shares: dict[str, float]) -> None:
    names = [key.removeprefix("stages.") for key in shares][::-1]
    axes.barh(names, [100 * share for share in shares.values()][::-1], color=COLOURS["main"])
    axes.set_xlabel("%")
    axes.set_title("What made trials good")


def _points(axes: Any, parameter: Any, points: Sequence[tuple[Any, float | None]], metric: str) -> None:
    if parameter.choices:
        places = [parameter.choices.index(value) for value, _ in points]
        axes.set_xticks(range(len(parameter.choices)), [yaml_text(value).replace("$", r"\$") for value in parameter.choices])
    else:
        places = [value for value, _ in points]
        if parameter.log:
            axes.set_xscale("log")
    axes.plot(places, [value for _, value in points], "o", color=COLOURS["main"], markersize=3)
    axes.set_xlabel(parameter.key.removeprefix("stages."))
    axes.set_ylabel(metric)
