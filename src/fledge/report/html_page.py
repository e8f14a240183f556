"""One self-contained HTML page: its scripts inside, allowed by their digests, and nothing loaded from elsewhere."""

import base64
import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from fledge.localization import language
from fledge.run.text_files import write_text

HERE = Path(__file__).parent
LANGUAGE_SCRIPT = """
(function () {
  var root = document.documentElement, saved = null;
  try { saved = localStorage.getItem("fledge-language"); } catch (error) { /* a file may have no storage */ }
  var chosen = saved || (root.dataset.lang === "zh" ? "zh" : navigator.language || "en");
  root.dataset.lang = /^zh/i.test(chosen) ? "zh" : "en";
  root.lang = root.dataset.lang === "zh" ? "zh-CN" : "en";
})();
"""


def read_script(name: str) -> str:
    """A script of the page, with `\\n` line ends as a browser reads it, so its digest is that of the browser."""
    return (HERE / name).read_text(encoding="utf-8").replace("\r\n", "\n").replace("\r", "\n")


def digest(script: str) -> str:
    """The SHA-256 digest of a script in the form that a Content-Security-Policy takes: `sha256-<base64>`."""
    return "sha256-" + base64.b64encode(hashlib.sha256(script.encode("utf-8")).digest()).decode("ascii")


def policy(scripts: Sequence[str]) -> str:
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


def render_page(
    template: Path,
    values: Mapping[str, Any],
    figures: Mapping[str, Mapping[str, Any]],
    *,
    styles: Sequence[Path] = (),
    filters: Mapping[str, Callable[..., Any]] | None = None,
) -> str:
    """The HTML of a template, shown at first in the language of the process. All values are escaped.

    `figures`: specifications by the id of the element that the page's script draws each into. `styles`: style sheets behind
    that of all pages.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    scripts = {
        "language_script": LANGUAGE_SCRIPT,
        "chart_script": read_script("chart_scale.js") + read_script("chart.js"),
        "page_script": read_script("page.js"),
    }
    style = "".join(path.read_text(encoding="utf-8") for path in (HERE / "page.css", *styles))
    environment = Environment(
        loader=FileSystemLoader([template.parent, HERE]),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters.update(filters or {})
    return environment.get_template(template.name).render(
        **values,
        language=language(),
        policy=policy(list(scripts.values())),
        style=Markup(style),
        chart_json=Markup(script_json(figures)),
        **{name: Markup(script) for name, script in scripts.items()},
    )


def write_page(target: Path, html: str) -> None:
    """Write a page into a file, with a question mark for what UTF-8 cannot say."""
    write_text(target, html.encode("utf-8", errors="replace").decode("utf-8"))
