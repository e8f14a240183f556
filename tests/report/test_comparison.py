"""The page that compares runs, and the sections of evaluation sets."""

import json
from pathlib import Path

import pytest

from fledge.cli import main
from fledge.errors import FledgeError
from fledge.evaluate.records import ItemResult, MetricValue, SetResult, write_set_result
from fledge.report import write_report
from fledge.report.comparison import write_comparison
from tests.report.test_report import Page
from tests.support.hostile_text import ALL, infect
from tests.support.report_run import HOSTILE, write_run


def write_set(run: Path, moment: str, right: int, fingerprint: str = "f") -> None:
    """Write a set of 40 items, of which the first `right` are right, into the stage sft of a run."""
    items = tuple(
        ItemResult(
            id=f"{number}", group="sums" if number % 2 else "names", prompt=f"{number}? {HOSTILE}", expected="x",
            given=f"{HOSTILE} {number}", values={"exact_match": float(number < right)},
            failures=() if number < right else (f"must hold x {HOSTILE}",),
        )
        for number in range(40)
    )  # fmt: skip
    share = right / 40
    value = MetricValue(value=share, interval=(share - 0.1, min(1.0, share + 0.1)), count=40, higher_is_better=True)
    result = SetResult(name="questions", kind="questions", fingerprint=fingerprint, metrics={"exact_match": value}, items=items)
    write_set_result(run / "sft" / "eval" / moment, result)


@pytest.fixture
def runs(tmp_path: Path) -> list[Path]:
    found = [write_run(tmp_path / name, ("pretrain", "sft"), steps=24) for name in ("one", "two")]
    for run, right in zip(found, (12, 36), strict=True):
        write_set(run, "before", 4)
        write_set(run, "after", right)
    recipe = found[1] / "recipe.yaml"
    recipe.write_text(recipe.read_text(encoding="utf-8") + "seed: 8\n", encoding="utf-8")
    return found


def page_of(file: Path) -> Page:
    return Page(file.read_text(encoding="utf-8"))


def test_sets_show_values_with_intervals_before_and_after_and_the_items_that_fail(runs: list[Path]) -> None:
    page = page_of(write_report(runs[1]))
    assert "10.0 % [0.0, 20.0]" in page.text and "90.0 % [80.0, 100.0]" in page.text
    assert "answers that break a rule" in page.text and f"must hold x {HOSTILE}" in page.text
    assert f"36? {HOSTILE}" in page.text and f"12? {HOSTILE}" not in page.text


def test_a_set_that_was_asked_otherwise_before_is_not_put_beside_the_value_after(runs: list[Path]) -> None:
    write_set(runs[0], "before", 4, fingerprint="another")
    page = page_of(write_report(runs[0]))
    assert "10.0 % [0.0, 20.0]" not in page.text and "30.0 % [20.0, 40.0]" in page.text


def test_a_damaged_result_of_a_set_is_told_and_the_page_is_written(runs: list[Path]) -> None:
    (runs[0] / "sft" / "eval" / "after" / "questions.json").write_text("{")
    page = page_of(write_report(runs[0]))
    assert "Could not be read:" in page.text and "sft/eval/after/questions.json" in page.text


def test_compared_runs_have_their_figures_curves_sets_samples_and_differences_on_one_page(
    runs: list[Path], tmp_path: Path
) -> None:
    page = page_of(write_comparison(runs, tmp_path / "page.html"))
    for expected in ("one", "two", "7.612 → 1.634 nats/token", "higher", "questions: one → two", "What the model writes"):
        assert expected in page.text, expected
    assert "seed" in page.text and "Nothing differs." in page.text  # the recipes differ, the machines do not
    drawn = json.loads(page.scripts[1])
    assert [one["name"]["en"] for one in drawn["stage-0-loss"]["series"]] == [
        "one · train", "one · validation", "two · train", "two · validation",
    ]  # fmt: skip
    assert {one["role"] for one in drawn["stage-0-loss"]["series"]} == {"c0", "c1"} and set(drawn) <= page.ids


def test_a_stage_that_one_run_lacks_is_shown_for_the_others(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / "a", ("pretrain",), steps=16), write_run(tmp_path / "b", ("pretrain", "sft"), steps=16)]
    page = page_of(write_comparison(runs, tmp_path / "page.html"))
    assert {"stage-0-loss", "stage-1-loss"} <= page.ids


def test_runs_of_one_name_are_told_apart(tmp_path: Path) -> None:
    runs = [write_run(tmp_path / folder / "same", ("sft",), steps=16) for folder in ("a", "b")]
    page = page_of(write_comparison(runs, tmp_path / "page.html"))
    assert f"same ({runs[0]})" in page.text and f"same ({runs[1]})" in page.text


def test_text_from_data_adds_nothing_to_the_page_that_compares(runs: list[Path], tmp_path: Path) -> None:
    plain = [(tag, tuple(names)) for tag, names in page_of(write_comparison(runs, tmp_path / "a.html")).tags]
    for run in runs:
        infect(run, ALL)
    for run, right in zip(runs, (12, 36), strict=True):
        write_set(run, "after", right)
    page = page_of(write_comparison(runs, tmp_path / "b.html"))
    assert {tag for tag, _ in page.tags} == {tag for tag, _ in plain}
    assert sum(tag == "script" for tag, _ in page.tags) == 4


def test_the_command_compares_several_runs_and_writes_plots(
    runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("matplotlib")
    assert main(["report", *map(str, runs), "--out", str(tmp_path / "c.html")]) == 0
    assert main(["report", str(runs[0]), "--plots", str(tmp_path / "plots"), "--format", "pdf"]) == 0
    assert (tmp_path / "c.html").exists() and (tmp_path / "plots" / "pretrain-loss.pdf").exists()
    for words, expected in (
        ((str(runs[0]), "--format", "pdf"), "it belongs to --plots"),
        ((*map(str, runs), "--plots", str(tmp_path / "x")), "plots are written for one run"),
        ((str(runs[0]), "--out", "x.html"), "the report of one run is its report.html"),
        ((str(runs[0]), str(tmp_path / "nowhere")), f"{tmp_path / 'nowhere'}: there is no such run"),
        ((*map(str, runs), "--out", str(tmp_path)), "this is a folder"),
        (tuple(map(str, runs)) * 5, "2 to 8 runs can be compared, not 10"),
    ):
        assert main(["report", *words]) == 2
        assert expected in capsys.readouterr().err, words


def test_a_comparison_of_one_run_is_refused(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(FledgeError, match="2 to 8 runs"):
        write_comparison(runs[:1], tmp_path / "page.html")
