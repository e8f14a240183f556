"""Text that would become markup or run as a script where a page forgets to escape it. Each sets `window.pwned` if it runs."""

import json
from pathlib import Path

from tests.support.report_run import HOSTILE

VECTORS = (
    "<script>window.pwned=1</script>",
    "</script><script>window.pwned=1</script>",
    "<img src=x onerror=window.pwned=1>",
    '"><svg onload=window.pwned=1>',
    "'><body onload=window.pwned=1>",
    '" autofocus tabindex=1 onfocus="window.pwned=1',
    "</title><script>window.pwned=1</script>",
    "</style><script>window.pwned=1</script>",
    "</textarea></noscript><script>window.pwned=1</script>",
    "<!--><script>window.pwned=1</script-->",
    "<a href='javascript:window.pwned=1'>press</a>",
    "<iframe srcdoc='<script>parent.pwned=1</script>'></iframe>",
    "<svg><animate onbegin=window.pwned=1 attributeName=x dur=1s></svg>",
    "<math><mtext><table><mglyph><style><img src=x onerror=window.pwned=1>",
    "<link rel=stylesheet href=//example.invalid/x.css><base href=//example.invalid/>",
    "<meta http-equiv=refresh content='0;url=//example.invalid/'>",
    "]]><script>window.pwned=1</script>",
    "{{ 7*7 }}{% raw %}${window.pwned=1}`",
    "&lt;script&gt;window.pwned=1&lt;/script&gt;",
    "\u2028window.pwned=1//\u2029\\u003cscript\\u003e",
)
ALL = " ".join(VECTORS)


def infect(root: Path, text: str) -> None:
    """Put a text wherever the sample run has its own hostile text, and into names that become keys of figures."""
    for file in root.rglob("*"):
        if file.suffix in (".json", ".jsonl", ".yaml"):
            content = file.read_text(encoding="utf-8")
            new = (
                text.replace("\n", " ").replace("\u2028", " ").replace("\u2029", " ")
                if file.suffix == ".yaml"
                else json.dumps(text)[1:-1]
            )
            old = HOSTILE if file.suffix == ".yaml" else json.dumps(HOSTILE)[1:-1]
            file.write_text(content.replace(old, new), encoding="utf-8")
    for events in root.glob("*/events.jsonl"):
        phases = {"kind": "system", "step": 1, "system/phases": {f"data {text}": 0.1, "forward": 0.2}}
        with events.open("a", encoding="utf-8") as file:
            file.write(json.dumps(phases) + "\n" + json.dumps({**phases, "step": 2}) + "\n")
    summary = root / "summary.json"
    summary.write_text(json.dumps({**json.loads(summary.read_text(encoding="utf-8")), "name": f"run {text}"}), encoding="utf-8")
