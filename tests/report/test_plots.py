"""The figures of a run as files: each format, both languages, and no boxes in place of Chinese."""

import re
from pathlib import Path

import pytest

from fledge.errors import FledgeError
from fledge.report.plots import write_plots
from tests.support.hostile_text import infect
from tests.support.report_run import write_run

pytest.importorskip("matplotlib")
from matplotlib import font_manager


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_run(tmp_path / "quickstart", ("sft",), steps=40)


@pytest.mark.parametrize(("file_format", "beginning"), [("png", b"\x89PNG"), ("pdf", b"%PDF"), ("svg", b"<?xml")])
def test_every_recorded_figure_is_a_file_and_writing_again_gives_the_same_bytes(
    run: Path, tmp_path: Path, file_format: str, beginning: bytes
) -> None:
    files = write_plots(run, tmp_path / "plots", file_format)
    assert {f"sft-{name}.{file_format}" for name in ("loss", "learning-rate", "gradient-norm", "speed", "prompts")} <= {
        file.name for file in files
    }
    assert all(file.read_bytes().startswith(beginning) for file in files)
    again = write_plots(run, tmp_path / "again", file_format)
    assert [file.read_bytes() for file in again] == [file.read_bytes() for file in files]


def test_text_in_an_svg_stays_text_with_titles_and_units(run: Path, tmp_path: Path) -> None:
    write_plots(run, tmp_path, "svg")
    loss = (tmp_path / "sft-loss.svg").read_text(encoding="utf-8")
    for words in ("Loss", "nats/token", "step", "train", "validation"):
        assert f">{words}</text>" in loss, words


def test_chinese_labels_are_drawn_or_refused_but_never_boxes(
    run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        font_manager.fontManager, "ttflist", [font for font in font_manager.fontManager.ttflist if "DejaVu" in font.name]
    )
    with pytest.raises(FledgeError, match="no font of this machine has the Chinese characters") as caught:
        write_plots(run, tmp_path / "zh", "svg", "zh")
    assert caught.value.hint and "fonts-noto-cjk" in caught.value.hint and not (tmp_path / "zh").exists()
    assert write_plots(run, tmp_path / "en", "svg", "en")


def test_chinese_labels_use_a_font_that_has_them(run: Path, tmp_path: Path) -> None:
    try:
        write_plots(run, tmp_path, "svg", "zh")
    except FledgeError as error:
        pytest.skip(error.what)
    loss = (tmp_path / "sft-loss.svg").read_text(encoding="utf-8")
    assert ">损失</text>" in loss and re.search("font-family: [^;]*(Noto|Han|WenQuanYi|PingFang|YaHei|Hei|Song|Sun)", loss)


def test_text_from_data_is_text_in_a_plot(tmp_path: Path) -> None:
    root = write_run(tmp_path / "infected", ("sft",), steps=16)
    infect(root, "</text><script>window.pwned=1</script> $\\frac{1$ $x$")
    write_plots(root, tmp_path / "plots", "svg")
    phases = (tmp_path / "plots" / "sft-phases.svg").read_text(encoding="utf-8")
    assert "<script" not in phases and "&lt;script&gt;window.pwned=1" in phases


def test_a_run_without_figures_and_unknown_words_are_errors(tmp_path: Path) -> None:
    (tmp_path / "recipe.yaml").write_text("name: x\n")
    with pytest.raises(FledgeError, match="nothing was recorded"):
        write_plots(tmp_path, tmp_path / "plots")
    for words in ({"file_format": "gif"}, {"language": "fr"}):
        with pytest.raises(FledgeError, match=r"is no (format|language) of plots"):
            write_plots(tmp_path, tmp_path / "plots", **words)
