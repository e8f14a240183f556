"""Figures as data: a curve per series, or bars. The page's script draws them, and matplotlib writes them into files."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fledge.report.i18n import WORDS, Text
from fledge.report.series import Points, bucket_means, downsample, points

STEP = Text("step", "步")
NAMELESS = Text("", "")


@dataclass(frozen=True, kw_only=True)
class Series:
    """One curve. `role` names its colour in the style sheet: main, eval, good, bad, or c0 to c7. A `noisy` curve is shown raw
    and smoothed; `markers` show each point."""

    points: Points
    role: str = "main"
    name: Text = NAMELESS
    noisy: bool = False
    markers: bool = False

    def specification(self) -> dict[str, Any]:
        """The curve as JSON values: downsampled so that spikes stay, and with means of the stretches for smoothing."""
        shown = downsample(self.points)
        values: dict[str, Any] = {
            "name": self.name._asdict(),
            "role": self.role,
            "x": [six_figures(at) for at, _ in shown],
            "y": [six_figures(value) for _, value in shown],
        }
        if self.noisy and len(shown) < len(self.points):
            means = bucket_means(self.points)
            values["means"] = [[six_figures(at) for at, _ in means], [six_figures(value) for _, value in means]]
        return {**values, **{name: True for name in ("noisy", "markers") if getattr(self, name)}}


@dataclass(frozen=True, kw_only=True)
class Chart:
    """A figure of curves over steps, or over `x_title`. Empty `series` mean that nothing was recorded for it; `log` and
    `from_zero` describe the y axis."""

    name: str
    title: Text
    unit: Text
    series: tuple[Series, ...]
    log: bool = False
    from_zero: bool = False
    wide: bool = False
    x_title: Text = STEP

    @property
    def offers_log(self) -> bool:
        """Whether a log axis shows all values, and shows more of them: they are above zero and differ threefold."""
        values = [value for one in self.series for _, value in one.points]
        return bool(values) and min(values) > 0 and max(values) >= 3 * min(values)

    def specification(self) -> dict[str, Any]:
        """The figure as JSON values for the page's script."""
        return {
            "kind": "lines",
            "title": self.title._asdict(),
            "unit": self.unit._asdict(),
            "x_title": self.x_title._asdict(),
            "log": self.log,
            "from_zero": self.from_zero,
            "series": [one.specification() for one in self.series],
        }


def six_figures(value: float) -> float | int:
    """The value rounded to six significant figures, which keeps the page small and changes nothing on the screen."""
    short = float(f"{value:.6g}")
    return int(short) if short.is_integer() and abs(short) < 1e15 else short


def curve(found: Points, role: str = "main", name: Text = NAMELESS, *, markers: bool = False) -> tuple[Series, ...]:
    """A tuple of one curve as it is; empty without points."""
    return (Series(points=found, role=role, name=name, markers=markers),) if found else ()


def noisy(found: Points, role: str = "main", name: Text = NAMELESS) -> tuple[Series, ...]:
    """A tuple of one curve that the page also smooths; empty without points."""
    return (Series(points=found, role=role, name=name, noisy=True),) if found else ()


def training(found: Points) -> tuple[Series, ...]:
    """The curve of a figure of training."""
    return noisy(found, "main", WORDS["train"])


def validation(found: Points) -> tuple[Series, ...]:
    """The curve of a validation metric."""
    return curve(found, "eval", WORDS["validation"], markers=True)


def recorded(rows: Iterable[Mapping[str, object]], key: str) -> tuple[Series, ...]:
    """The only curve of a figure, without a name."""
    return curve(points(rows, key))


def if_recorded(*charts: Chart) -> list[Chart]:
    """Those charts that something was recorded for."""
    return [chart for chart in charts if chart.series]


def percent(found: Sequence[tuple[float, float]]) -> Points:
    """A curve of shares in percent."""
    return [(at, share * 100) for at, share in found]
