"""The evidence of each finding as a picture, by matplotlib."""

import re
from pathlib import Path
from typing import TYPE_CHECKING

from fledge.diagnosis import Diagnosis
from fledge.doctor.evidence_series import evidence_series
from fledge.doctor.examination import Examination
from fledge.doctor.sparkline import LOG_RANGE
from fledge.errors import FledgeError
from fledge.report.plots import COLOURS, draw_figure, plain
from fledge.report.series import smooth
from fledge.training_log import Series

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE = (5.6, 3.2)  # inches
LEAST_SMOOTHED = 20  # points, from which a curve is shown faint with its moving average
MOST_SERIES = 3
MOST_CHARACTERS = 40  # of a stage in the name of a file, which has 255 bytes at most
STYLE = {
    "font.size": 8, "axes.titlesize": 9, "axes.titleweight": "bold", "axes.titlelocation": "left", "axes.spines.top": False,
    "axes.grid": True, "axes.grid.axis": "y", "grid.linewidth": 0.4, "grid.color": "#dddddd", "legend.frameon": False,
    "legend.fontsize": 7.5, "savefig.dpi": 160,
}  # fmt: skip
ROLES = ("main", "eval", "good")


def write_plots(examinations: list[Examination], folder: Path) -> list[Path]:
    """Write a PNG for each finding that the log shows, as `<stage>-<number>-<cause>.png`; returns the paths. Where nothing is
    wrong, the losses of each stage. The name of a stage, such as the folder of a run of TensorBoard, loses what file names do
    not have, and gets a number where two would be equal. Raises FledgeError if matplotlib is missing, or the folder cannot be
    written."""
    names = _file_names([one.stage or "log" for one in examinations])
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return [file for name, one in zip(names, examinations, strict=True) for file in _of_stage(one, folder, name)]
    except OSError as error:
        raise FledgeError(f"cannot write: {error.strerror}", where=str(folder)) from None


def _file_names(stages: list[str]) -> list[str]:
    """A name for the files of each stage, each one another."""
    names: list[str] = []
    for stage in stages:
        plain_name = re.sub(r"[^\w-]+", "-", stage).strip("-")[:MOST_CHARACTERS] or "log"
        others = (f"{plain_name}-{number}" for number in range(2, len(stages) + 2))
        names.append(next(name for name in (plain_name, *others) if name.lower() not in {one.lower() for one in names}))
    return names


def _of_stage(examination: Examination, folder: Path, file_name: str) -> list[Path]:
    files, stage = [], examination.stage or "log"
    for place, found in enumerate(examination.diagnoses.found, 1):
        shown = evidence_series(found, examination.case, MOST_SERIES)
        if shown:
            name = re.sub(r"[^a-z0-9]+", "-", found.cause.lower()).strip("-")
            files.append(_draw(folder / f"{file_name}-{place}-{name}.png", f"{stage}: {found.cause}", shown, found))
    if files:
        return files
    losses = [(name, examination.case.log.series.get(name)) for name in ("train/loss", "eval/loss")]
    shown = [(name, series) for name, series in losses if series is not None and len(series.finite) >= 2]
    return [_draw(folder / f"{file_name}-loss.png", f"{stage}: losses", shown, None)] if shown else []


def _draw(file: Path, title: str, shown: list[tuple[str, Series]], found: Diagnosis | None) -> Path:
    """The first figure on the left axis with others of its scale, another one on the right; the steps of the evidence
    shaded."""

    def paint(axes: "Axes") -> None:
        family = shown[0][0].split("/")[-1]
        left = [one for one in shown if one[0].split("/")[-1] == family]
        others = [one for one in shown if one not in left][:1]
        lines = [line for place, one in enumerate(left) for line in _curve(axes, *one, ROLES[place % len(ROLES)])]
        axes.set_ylabel(plain(", ".join(name for name, _ in left)))
        axes.set_xlabel("step")
        if others:
            right = axes.twinx()
            lines += _curve(right, *others[0], "good")
            right.set_ylabel(plain(others[0][0]))
            right.grid(False)
        if found is not None and (steps := found.sign.steps) is not None and steps[0] < steps[1]:
            axes.axvspan(steps[0], steps[1], color=COLOURS["bad"], alpha=0.08, linewidth=0)
        axes.set_title(plain(title))
        if len(lines) > 1:
            axes.legend(handles=lines)

    return draw_figure(file, paint, STYLE, SIZE)


def _curve(axes: "Axes", name: str, series: Series, role: str) -> list:
    finite = series.finite
    points = list(zip(finite.steps.tolist(), finite.values.tolist(), strict=True))
    colour = COLOURS[role]
    if finite.values.min() > 0 and finite.values.max() / finite.values.min() > LOG_RANGE:
        axes.set_yscale("log")
    if len(points) >= LEAST_SMOOTHED:
        axes.plot(finite.steps, finite.values, color=colour, alpha=0.3, linewidth=0.5)
        points = smooth(points)
    steps, values = zip(*points, strict=True)
    marker = "o" if len(points) < LEAST_SMOOTHED else None
    return axes.plot(steps, values, color=colour, linewidth=1.2, marker=marker, markersize=2.5, label=plain(name))
