"""The report of a run as one self-contained HTML page."""

import base64
import hashlib
import json
from pathlib import Path

from fledge.errors import FledgeError
from fledge.report import formatting
from fledge.report.charts import stage_charts
from fledge.report.facts import facts
from fledge.report.i18n import WORDS, example_text
from fledge.report.read_run import number, read_run, text
from fledge.report.records import Run
from fledge.report.samples import sample_tables
from fledge.report.summary_sentences import summary_sentences, verdict_sentences
from fledge.report.summary_table import stage_rows
from fledge.run.text_files import write_text

HERE = Path(__file__).parent
MAX_ERRORS = 60
LANGUAGE_SCRIPT = """
(function () {
  var root = document.documentElement, saved = null;
  try { saved = localStorage.getItem("fledge-language"); } catch (error) { /* a file may have no storage */ }
  var chosen = saved || (navigator.language || "en");
  root.dataset.lang = /^zh/i.test(chosen) ? "zh" : "en";
  root.lang = root.dataset.lang === "zh" ? "zh-CN" : "en";
})();
"""


def write_report(run_directory: Path) -> Path:
    """Write `report.html` into the run directory and return its path.

    Raises FledgeError when plotly is missing or the directory is no run, and FileNotFoundError when there is no such directory.
    """
    root = Path(run_directory)
    html = render(read_run(root))
    target = root / "report.html"
    write_text(target, html.encode("utf-8", errors="replace").decode("utf-8"))
    return target


def plotly_script() -> str:
    """The source of plotly.js. Raises FledgeError when plotly is missing or cannot be placed inside a page."""
    try:
        from plotly.offline import get_plotlyjs
    except ImportError as error:
        raise FledgeError("the report needs the package 'plotly'", hint="pip install plotly") from error
    script = inline(get_plotlyjs())
    if "</script" in script.lower() or "<!--" in script:
        raise FledgeError(
            "the installed plotly.js cannot be placed inside a page: it contains an end of a script or a comment",
            hint="pip install plotly (another version)",
        )
    return script


def inline(script: str) -> str:
    """The script with `\n` line ends, as a browser reads it, so that its digest is the digest the browser computes."""
    return script.replace("\r\n", "\n").replace("\r", "\n")


def digest(script: str) -> str:
    """The SHA-256 digest of a script in the form that a Content-Security-Policy takes: `sha256-<base64>`."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")


def policy(scripts: list[str]) -> str:
    """The Content-Security-Policy of the page: only these inline scripts may run, and nothing may be fetched."""
    allowed = " ".join(f"'{digest(script)}'" for script in scripts)
    return (
        f"default-src 'none'; script-src {allowed}; style-src 'unsafe-inline'; img-src data:; "
        "base-uri 'none'; form-action 'none'"
    )


def script_json(value: object) -> str:
    """The value as JSON that is safe inside a script element, whatever text it contains."""
    spelled = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for mark in "<>&\u2028\u2029":
        spelled = spelled.replace(mark, f"\\u{ord(mark):04x}")
    return spelled


def render(run: Run) -> str:
    """The HTML of the report."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    charts = [stage_charts(stage) for stage in run.stages]
    figures = {
        f"stage-{index}-{chart.name}": chart.specification()
        for index, group in enumerate(charts)
        for chart in group
        if chart.traces
    }
    scripts = [LANGUAGE_SCRIPT, plotly_script(), inline((HERE / "page.js").read_text(encoding="utf-8"))]
    environment = Environment(
        loader=FileSystemLoader(HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters.update(
        whole=formatting.whole,
        compact=formatting.compact,
        percent=formatting.percent,
        size=formatting.size,
        duration=formatting.duration,
        number=number,
        text=text,
        example_text=example_text,
    )
    return environment.get_template("page.html.j2").render(
        run=run,
        w=WORDS,
        policy=policy(scripts),
        style=Markup((HERE / "page.css").read_text(encoding="utf-8")),
        language_script=Markup(scripts[0]),
        plotly_script=Markup(scripts[1]),
        page_script=Markup(scripts[2]),
        chart_json=Markup(script_json(figures)),
        charts=charts,
        sentences=summary_sentences(run),
        verdicts={stage.name: verdict_sentences(stage) for stage in run.stages},
        rows=stage_rows(run.stages),
        sample_tables=sample_tables(run.stages),
        worlds=[stage for stage in run.stages if stage.world],
        tasks=task_names(run),
        machine=facts(run.environment),
        tokenizer=facts(run.tokenizer),
        max_errors=MAX_ERRORS,
    )


def task_names(run: Run) -> list[str]:
    """The tasks of all scored question sets, each once, in order of first appearance."""
    return list(dict.fromkeys(name for stage in run.stages if stage.world for name in stage.world.tasks))
