"""The report in a real browser: it draws, answers to pointer and keys, asks for nothing, and runs nothing from data."""

from pathlib import Path

import pytest

from fledge.report import write_report
from tests.report.test_report import Page
from tests.support.browser import opened
from tests.support.hostile_text import ALL, VECTORS, infect
from tests.support.report_run import write_run


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(write_run(tmp_path_factory.mktemp("runs") / "quickstart"))


@pytest.fixture(scope="module")
def infected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = write_run(tmp_path_factory.mktemp("runs") / "infected", steps=40)
    infect(root, ALL)
    return write_report(root)


def test_every_figure_is_drawn_in_both_languages_without_a_request_or_an_error(report: Path) -> None:
    with opened(report, locale="en-US") as found:
        page = found.page
        figures = page.locator("figure .curve[id]")
        drawn = page.locator("figure .curve svg path.line")
        assert figures.count() > 15 and drawn.count() >= figures.count() - page.locator(".curve > .none").count()
        assert page.locator("#stage-0-loss > svg").get_attribute("aria-label").startswith("Loss (nats/token). train: ")
        assert page.locator("h2:visible").first.inner_text() == "Stages at a glance"
        page.get_by_role("button", name="中文").click()
        assert page.locator("h2:visible").first.inner_text() == "各阶段一览"
        assert page.locator("#stage-0-loss > svg").get_attribute("aria-label").startswith("损失 (奈特/词元). 训练: ")
        assert page.locator("span.en:visible").count() == 0
        assert "步" in page.locator("#stage-0-loss text").all_text_contents()
        assert found.requests == [] and found.errors == []


def test_a_chinese_browser_gets_the_chinese_page(report: Path) -> None:
    with opened(report, locale="zh-CN") as found:
        assert found.page.locator("html").get_attribute("lang") == "zh-CN"
        assert found.page.locator("h2:visible").first.inner_text() == "各阶段一览"


def test_pointer_keys_slider_axis_and_key_work(report: Path) -> None:
    with opened(report, locale="en-US") as found:
        page, loss = found.page, found.page.locator("#stage-0-loss")
        smoothed = loss.locator("path.main:not(.faint)")
        before = smoothed.get_attribute("d")
        page.locator("[data-smoothing]").focus()
        page.keyboard.press("End")
        assert smoothed.get_attribute("d") != before and page.locator("[data-smoothing-value]").inner_text() == "40 %"
        page.keyboard.press("Home")
        assert loss.locator("path.faint").count() == 0
        loss.locator("svg").first.focus()
        page.keyboard.press("End")
        assert "step 600" in loss.locator(".tip").inner_text() and "train" in loss.locator(".tip").inner_text()
        page.keyboard.press("ArrowLeft")
        assert "step 599" in loss.locator(".tip").inner_text()
        labels = loss.locator("text.tick").all_text_contents()
        figure = page.locator("figure", has=page.locator("#stage-0-loss"))
        figure.locator("[data-log]").click()
        assert loss.locator("text.tick").all_text_contents() != labels
        figure.locator("[data-series='0']").click()
        assert loss.locator("path.main").count() == 0 and loss.locator("path.eval").count() == 1
        figure.locator("[data-series='0']").click()
        box = loss.locator("svg").first.bounding_box()
        page.mouse.move(box["x"] + box["width"] * 0.3, box["y"] + 50)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] * 0.6, box["y"] + 60)
        page.mouse.up()
        assert "0" not in loss.locator("text.tick").all_text_contents()
        page.mouse.dblclick(box["x"] + box["width"] * 0.5, box["y"] + 60)
        assert "0" in loss.locator("text.tick").all_text_contents()
        assert found.errors == []


@pytest.mark.parametrize("width", [360, 800])
def test_a_narrow_screen_needs_no_sideways_scrolling(report: Path, width: int) -> None:
    with opened(report, viewport={"width": width, "height": 700}) as found:
        assert found.page.evaluate("document.documentElement.scrollWidth") <= width


def test_colours_follow_a_dark_screen(report: Path) -> None:
    def paint(scheme: str) -> str:
        with opened(report, color_scheme=scheme) as found:
            return found.page.evaluate("getComputedStyle(document.querySelector('#stage-0-loss path.main')).stroke")

    assert paint("dark") != paint("light")


def test_text_from_data_never_runs_and_never_asks_for_anything(infected: Path) -> None:
    with opened(infected, locale="en-US") as found:
        page = found.page
        page.locator("details").evaluate_all("all => all.forEach(one => { one.open = true; })")
        page.locator("#stage-0-phases svg").first.focus()
        page.keyboard.press("End")
        assert "window.pwned=1" in page.locator("#stage-0-phases .tip").inner_text()
        page.get_by_role("button", name="中文").click()
        page.wait_for_timeout(200)
        assert page.evaluate("window.pwned") is None
        assert found.requests == [] and found.errors == []
        assert page.locator("iframe, object, embed, base, form, svg [onbegin], [onerror], [onload]").count() == 0


def test_no_vector_adds_an_element_or_an_attribute(tmp_path: Path) -> None:
    def shape(text: str) -> list[tuple[str, tuple[str, ...]]]:
        root = write_run(tmp_path / "run", ("pretrain", "sft"), steps=16)
        infect(root, text)
        page = Page(write_report(root).read_text(encoding="utf-8"))
        for file in sorted(root.rglob("*"), reverse=True):
            file.rmdir() if file.is_dir() else file.unlink()
        root.rmdir()
        return [(tag, tuple(attributes)) for tag, attributes in page.tags]

    plain = shape("plain")
    for vector in VECTORS:
        assert shape(vector) == plain, vector
