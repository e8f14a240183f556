"""The figures of a run as files for a paper: SVG, PNG or PDF, by matplotlib."""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fledge.errors import FledgeError, missing_extra
from fledge.report.charts import stage_charts
from fledge.report.figures import Chart, Series
from fledge.report.i18n import Text
from fledge.report.read_run import read_run
from fledge.report.series import smooth

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FORMATS = ("svg", "png", "pdf")
LANGUAGES = ("en", "zh")
SIZE, WIDE = (3.4, 2.3), (5.2, 3.0)  # inches: a column of a paper, and more than one
DOTS = 300  # dots per inch of a PNG
CHINESE_FONTS = (
    "Noto Sans CJK SC", "Noto Sans SC", "Source Han Sans SC", "Source Han Sans CN", "WenQuanYi Micro Hei", "WenQuanYi Zen Hei",
    "PingFang SC", "Hiragino Sans GB", "Microsoft YaHei", "SimHei", "Heiti SC", "Noto Serif CJK SC", "SimSun",
    "Noto Sans CJK JP",
)  # fmt: skip
COLOURS = {
    "main": "#2f5d8c", "eval": "#b8541f", "good": "#2f7d57", "bad": "#a8433d", "c0": "#2f5d8c", "c1": "#b8541f",
    "c2": "#2f7d57", "c3": "#8a4f8f", "c4": "#8f7716", "c5": "#2f808a", "c6": "#a8433d", "c7": "#69707c",
}  # fmt: skip
"""The colours of roles, as the style sheet of the page has them on paper."""


def write_plots(run_directory: Path, folder: Path, file_format: str = "svg", language: str = "en") -> list[Path]:
    """Write each recorded figure of a run into a folder, as `<stage>-<figure>.<format>`; returns the paths.

    Raises FledgeError if matplotlib is missing, if the directory is no run, if nothing was recorded, and if `language` is zh
    and no font of this machine has Chinese characters.
    """
    if file_format not in FORMATS:
        raise FledgeError(f"'{file_format}' is no format of plots", where="--format", hint=f"one of {', '.join(FORMATS)}")
    if language not in LANGUAGES:
        raise FledgeError(f"'{language}' is no language of plots", where="--language", hint="en or zh")
    run = read_run(run_directory)
    found = [(stage.name, chart) for stage in run.stages for chart in stage_charts(stage) if chart.series]
    if not found:
        raise FledgeError("nothing was recorded that could be drawn", where=str(run_directory))
    style = _style(_words(found, language), language)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        return [_write(chart, folder / f"{stage}-{chart.name}.{file_format}", language, style) for stage, chart in found]
    except OSError as error:
        raise FledgeError(f"cannot write: {error.strerror}", where=str(folder)) from None


def _words(found: Iterable[tuple[str, Chart]], language: str) -> str:
    """All text of the figures."""
    texts = [text for _, chart in found for text in (chart.title, chart.unit, chart.x_title, *(s.name for s in chart.series))]
    return "".join(_in(text, language) for text in texts)


def _in(text: Text, language: str) -> str:
    return text.zh if language == "zh" else text.en


def _style(words: str, language: str) -> dict[str, Any]:
    """The settings of matplotlib. Text in SVG stays text, and text in PDF stays searchable."""
    fonts = ["DejaVu Sans"]
    if not words.isascii():
        fonts = _fonts_for(words, language) + fonts
    return {
        "font.family": fonts, "font.size": 8, "axes.titlesize": 9, "axes.titleweight": "bold", "axes.titlelocation": "left",
        "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "axes.grid.axis": "y",
        "axes.linewidth": 0.6, "grid.linewidth": 0.4, "grid.color": "#dddddd", "axes.axisbelow": True,
        "lines.linewidth": 1.2, "legend.frameon": False, "legend.fontsize": 7.5, "figure.dpi": 100, "savefig.dpi": DOTS,
        "svg.fonttype": "none", "pdf.fonttype": 42, "svg.hashsalt": "fledge", "axes.unicode_minus": True,
    }  # fmt: skip


def _fonts_for(words: str, language: str) -> list[str]:
    """A font that has all characters of the text, if DejaVu Sans does not. FledgeError if Chinese is asked for and no font has
    it: matplotlib would draw boxes."""
    try:
        from matplotlib.font_manager import FontProperties, findfont, fontManager, get_font
    except ImportError:
        raise missing_extra("matplotlib", "plots", "--plots") from None

    def has_all(name: str) -> bool:
        known = get_font(findfont(FontProperties(family=name))).get_charmap()  # type: ignore[attr-defined]
        return all(ord(character) in known or character.isspace() for character in words)

    installed = {entry.name for entry in fontManager.ttflist}
    if has_all("DejaVu Sans"):
        return []
    for name in CHINESE_FONTS:
        if name in installed and has_all(name):
            return [name]
    if language == "zh":
        raise FledgeError(
            "no font of this machine has the Chinese characters of the labels: they would be boxes",
            where="--language zh",
            hint="install one (Debian: apt-get install fonts-noto-cjk), or write --language en",
        )
    return []


def draw_figure(
    file: Path, paint: Callable[["Axes"], None], style: Mapping[str, Any], size: tuple[float, float] = SIZE
) -> Path:
    """Write one figure, whose bytes do not depend on the day; `paint` draws on its axes. `style`: settings of matplotlib;
    `size`: inches. Raises FledgeError if matplotlib is missing."""
    try:
        import matplotlib
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
    except ImportError:
        raise missing_extra("matplotlib", "plots", "--plots") from None

    with matplotlib.rc_context(style):  # type: ignore[arg-type]
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        paint(figure.subplots())
        metadata = {"Date": None} if file.suffix == ".svg" else {"CreationDate": None} if file.suffix == ".pdf" else None
        figure.savefig(file, metadata=metadata)
    return file


def _write(chart: Chart, file: Path, language: str, style: dict[str, Any]) -> Path:
    def paint(axes: "Axes") -> None:
        for series in chart.series:
            _draw(axes, series, language)
        _label(axes, chart, language)

    return draw_figure(file, paint, style, WIDE if chart.wide else SIZE)


def _draw(axes: "Axes", series: Series, language: str) -> None:
    """A curve; a noisy one faint, and its moving average over it."""
    steps, values = zip(*series.points, strict=True)
    colour, name = COLOURS[series.role], plain(_in(series.name, language)) or None
    line = "--" if series.role == "bad" else "-"
    if series.noisy and len(values) >= 5:
        axes.plot(steps, values, color=colour, alpha=0.3, linewidth=0.5)
        steps, values = zip(*smooth(list(series.points)), strict=True)
    marker = "o" if series.markers or len(values) < 2 else None
    axes.plot(steps, values, color=colour, linestyle=line, marker=marker, markersize=2.5, label=name)


def _label(axes: "Axes", chart: Chart, language: str) -> None:
    if chart.log:
        axes.set_yscale("log")
    elif chart.from_zero:
        axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]) if any(v < 0 for s in chart.series for _, v in s.points) else 0.0)
    axes.set_title(plain(_in(chart.title, language)))
    axes.set_xlabel(plain(_in(chart.x_title, language)))
    axes.set_ylabel(plain(_in(chart.unit, language)))
    if len(chart.series) > 3:
        axes.legend(loc="upper left", bbox_to_anchor=(1.02, 1))  # beside the curves
    elif len(chart.series) > 1:
        axes.legend()


def plain(text: str) -> str:
    """The text as matplotlib shows it literally: without formulas between dollar signs."""
    return text.replace("$", r"\$")
