"""A real browser for tests: Chromium, driven by playwright. Tests are skipped with a reason where it is missing."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@dataclass
class Opened:
    """An open page, and what it did: requests beside its own file, and errors that the browser told."""

    page: Any
    requests: list[str] = field(default_factory=list)
    errors: list[str] = field(default_factory=list)


@contextmanager
def opened(file: Path, **context: Any) -> Iterator[Opened]:
    """Open a file as a page. `context`: options of the browser, such as `viewport`, `locale` or `color_scheme`."""
    api = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    program = next((found for name in NAMES if (found := shutil.which(name))), None)
    if program is None:
        pytest.skip("no Chromium on this machine: apt-get install chromium")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=["--no-sandbox"])
        try:
            page = browser.new_context(**{"viewport": {"width": 1200, "height": 900}, **context}).new_page()
            found = Opened(page)
            page.on("request", lambda request: found.requests.append(request.url))
            page.on("console", lambda message: found.errors.append(message.text) if message.type == "error" else None)
            page.on("pageerror", lambda error: found.errors.append(str(error)))
            page.on("dialog", lambda dialog: (found.errors.append("a dialog"), dialog.dismiss()))
            page.goto(file.resolve().as_uri())
            found.requests = [url for url in found.requests if url != file.resolve().as_uri() and not url.startswith("data:")]
            yield found
        finally:
            browser.close()
