"""People rate answers in four dimensions: sheets that no spreadsheet runs, a blind order, undo and resume, means and κ."""

import csv
import io
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from fledge.cli import main
from fledge.errors import FledgeError
from fledge.evaluate.records import ItemResult, SetResult, write_set_result
from fledge.prefer.answers import read_answers
from fledge.prefer.quality import COLUMNS, DIMENSIONS, FORMULA, items_of, read_quality, safe_cell, write_sheet
from fledge.prefer.quality_person import rate
from fledge.prefer.quality_report import weighted_kappa
from fledge.run import Console
from tests.prefer.test_person import typing
from tests.support.preferences import asked, lines_of, write_answers

QUIET = Console(quiet=True)
PROMPTS = 14


def write_models(folder: Path) -> list[str]:
    """Answers of two models to the same prompts; one prompt gets the same answer from both."""
    paths = []
    for name, word in (("weak", "差"), ("strong", "好")):
        prompts = [asked(f"问题{number}？", "same" if number == 0 else f"{word}的回答 {number}") for number in range(PROMPTS)]
        file = write_answers(folder / f"{name}.jsonl", *prompts)
        header, *lines = file.read_text(encoding="utf-8").splitlines()
        named = json.loads(header)
        named["about"]["model"] = name
        file.write_text("\n".join([json.dumps(named), *lines]) + "\n", encoding="utf-8")
        paths.append(str(file))
    return paths


def rows_of(sheet: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(sheet.read_text(encoding="utf-8-sig"), newline="")))


def fill(
    sheet: Path, score: Callable[[dict[str, str]], tuple[int, ...]], encoding: str = "utf-8-sig", delimiter: str = ","
) -> None:
    """Fill in a sheet, and save it as a spreadsheet of some language would."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, delimiter=delimiter)
    writer.writerow(COLUMNS)
    for row in rows_of(sheet):
        writer.writerow([*[row[name] for name in COLUMNS[:3]], *score(row), ""])
    sheet.write_bytes(buffer.getvalue().encode(encoding))


def test_a_sheet_is_utf8_with_a_mark_blind_and_shuffled_for_each_rater(tmp_path: Path) -> None:
    answers = write_models(tmp_path)
    told = write_sheet(answers, tmp_path / "anna.csv", 0, "anna")
    write_sheet(answers, tmp_path / "ben.csv", 0, "ben")
    content = (tmp_path / "anna.csv").read_bytes()
    assert content.startswith(b"\xef\xbb\xbf") and b"\r\n" in content and "27 answers" in told[0]
    anna, ben = rows_of(tmp_path / "anna.csv"), rows_of(tmp_path / "ben.csv")
    assert len(anna) == 2 * PROMPTS - 1 and list(anna[0]) == list(COLUMNS)
    assert {row["item"] for row in anna} == {row["item"] for row in ben} and anna != ben
    assert not any(word in content.decode() for word in ("weak", "strong"))
    assert any("问题3？" in row["prompt"] and row["answer"] == "好的回答 3" for row in anna)
    with pytest.raises(FledgeError, match="may hold ratings"):
        write_sheet(answers, tmp_path / "anna.csv", 0, "anna")


@example("'", "=", "")
@given(st.text(max_size=40), st.sampled_from(FORMULA), st.text(alphabet=" ", max_size=3))
def test_no_cell_begins_like_a_formula_and_every_text_survives(text: str, sign: str, space: str) -> None:
    for value in (text, sign + text, space + sign + text):
        cell = safe_cell(value)
        assert not cell.lstrip(" ").startswith(FORMULA) and cell.removeprefix("'") == value.replace("\x00", "␀")


def test_formulas_in_answers_are_harmless_in_the_file(tmp_path: Path) -> None:
    file = write_answers(tmp_path / "a.jsonl", asked("=1+1", '=HYPERLINK("http://x","y")', "@SUM(A1)", "-2", "＝cmd"))
    write_sheet([str(file)], tmp_path / "s.csv", 0, "anna")
    assert sorted(row["answer"] for row in rows_of(tmp_path / "s.csv")) == sorted(
        ['\'=HYPERLINK("http://x","y")', "'@SUM(A1)", "'-2", "'＝cmd"]
    )


@pytest.mark.parametrize(("encoding", "delimiter"), [("utf-8-sig", ","), ("utf-8", ";"), ("gb18030", ","), ("utf-16", "\t")])
def test_a_filled_sheet_is_read_as_spreadsheets_save_it(tmp_path: Path, encoding: str, delimiter: str) -> None:
    answers = write_models(tmp_path)
    write_sheet(answers, tmp_path / "anna.csv", 0, "anna")
    fill(tmp_path / "anna.csv", lambda row: (5, 4, 3, 2), encoding, delimiter)
    found = read_quality(str(tmp_path / "anna.csv"))
    assert found.rater == "anna" and found.unrated == 0 and set(found.scores.values()) == {(5, 4, 3, 2)}
    assert set(found.scores) == {item.id for item in items_of(read_answers(answers), 0, "")}
    assert all(re.fullmatch("r[0-9a-f]{12}", name) for name in found.scores)  # no spreadsheet takes it for a number


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("abc,p,a,6,1,1,1,", r"s.csv:2: '6' for relevance: a score is a whole number from 1 to 5"),
        ("abc,p,a,1,,1,1,", r"s.csv:2: no accuracy"),
        ("abc,p,a,1,2.5,1,1,", r"'2.5' for accuracy"),
        ("abc,p,a,1,1,1,1,\nabc,p,a,1,1,1,1,", r"s.csv:3: item abc is there twice"),
    ],
)
def test_a_wrong_score_is_told_with_its_line(tmp_path: Path, line: str, expected: str) -> None:
    (tmp_path / "s.csv").write_text(",".join(COLUMNS) + "\n" + line + "\n", encoding="utf-8")
    with pytest.raises(FledgeError, match=expected):
        read_quality(str(tmp_path / "s.csv"))
    (tmp_path / "open.csv").write_text(",".join(COLUMNS) + '\nabc,"' + "p" * 200_000, encoding="utf-8")
    with pytest.raises(FledgeError, match=r"open.csv:2: damaged CSV: .*field"):
        read_quality(str(tmp_path / "open.csv"))
    (tmp_path / "other.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    with pytest.raises(FledgeError, match="it has no column item, relevance, accuracy, fluency, completeness"):
        read_quality(str(tmp_path / "other.csv"))


def test_rating_in_the_terminal_is_undone_resumed_and_read_again(tmp_path: Path) -> None:
    answers, out = write_models(tmp_path), tmp_path / "ben.jsonl"

    def go_on(*words: str) -> str:
        return rate(answers, out, rater="ben", seed=0, console=QUIET, ask=typing(*words))[0]

    assert "3 ratings; 24 answers are left" in go_on("5443", "nonsense", "6111", "?", "5 4 4 3", "u", "１１１１", "s", "q")
    assert [line.get("scores", line.get("skip", "undo")) for line in lines_of(out)[1:]] == [
        [5, 4, 4, 3], [5, 4, 4, 3], "undo", [1, 1, 1, 1], True,
    ]  # fmt: skip
    assert "27 ratings; all are rated" in go_on(*["3333"] * 24)
    found = read_quality(str(out))
    order = [item.id for item in items_of(read_answers(answers), 0, "ben")]
    assert list(found.scores) == [order[0], order[1], *order[3:]] and found.unrated == 1
    assert found.scores[order[1]] == (1, 1, 1, 1) and found.rater == "ben"


def test_weighted_kappa_of_worked_examples() -> None:
    assert weighted_kappa(np.diag([3.0, 2, 1, 0, 4])) == pytest.approx(1.0)
    assert weighted_kappa(np.full((5, 5), 2.0)) == pytest.approx(0.0)
    assert weighted_kappa(np.fliplr(np.diag([2.0, 2, 2, 2, 2]))) == pytest.approx(-1.0)
    assert np.isnan(weighted_kappa(np.diag([9.0, 0, 0, 0, 0])))


def test_weighted_kappa_is_that_of_scikit_learn() -> None:
    metrics = pytest.importorskip("sklearn.metrics")
    rng = np.random.default_rng(3)
    for _ in range(20):
        one = rng.integers(0, 5, 60)
        other = np.clip(one + rng.integers(-1, 3, 60), 0, 4)
        table = np.zeros((5, 5))
        np.add.at(table, (one, other), 1)
        expected = metrics.cohen_kappa_score(one, other, weights="quadratic", labels=range(5))
        assert weighted_kappa(table) == pytest.approx(expected, abs=1e-12)


def test_the_report_has_means_differences_and_agreement(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    answers = write_models(tmp_path)

    def score(harsh: int) -> Callable[[dict[str, str]], tuple[int, ...]]:
        def of(row: dict[str, str]) -> tuple[int, ...]:
            good = 5 if row["answer"].startswith("好") else 3 if row["answer"] == "same" else 2
            return (good, max(1, good - harsh), good, good)

        return of

    for rater, harsh in (("anna", 0), ("ben", 1)):
        assert main(["rate", "sheet", *answers, "--out", str(tmp_path / f"{rater}.csv"), "--rater", rater]) == 0
        fill(tmp_path / f"{rater}.csv", score(harsh))
    capsys.readouterr()
    sheets = [str(tmp_path / "anna.csv"), str(tmp_path / "ben.csv")]
    words = ["rate", "report", *sheets, "--answers", answers[0], "--answers", answers[1]]
    assert main([*words, "--json"]) == 0
    found: dict[str, list[dict[str, Any]]] = json.loads(capsys.readouterr().out)
    means = {(one["model"], one["dimension"]): one for one in found["means"]}
    assert means["strong", "relevance"]["mean"] == pytest.approx((13 * 5 + 3) / 14)
    assert means["weak", "accuracy"]["mean"] == pytest.approx((13 * 1.5 + 2.5) / 14)
    assert means["weak", "relevance"]["ratings"] == 2 * PROMPTS
    change = next(one for one in found["differences"] if one["dimension"] == "fluency")
    assert (change["first"], change["second"], change["prompts"]) == ("weak", "strong", PROMPTS)
    assert change["difference"] == pytest.approx(13 * 3 / 14) and change["interval"][0] > 0 and change["p_value"] < 0.01
    agreed = {one["dimension"]: one for one in found["agreement"]}
    assert agreed["fluency"]["kappa"] == pytest.approx(1) and agreed["fluency"]["equal"] == 1
    assert agreed["accuracy"]["equal"] == 0 and 0 < agreed["accuracy"]["kappa"] < 1 and agreed["accuracy"]["interval"]
    assert main(words) == 0
    printed = capsys.readouterr().out
    assert "weak → strong" in printed and "anna – ben" in printed and "weighted κ" in printed


def test_ratings_of_other_answers_and_two_files_of_one_rater_are_errors(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    answers = write_models(tmp_path)
    write_sheet(answers, tmp_path / "anna.csv", 0, "anna")
    fill(tmp_path / "anna.csv", lambda row: (1, 2, 3, 4))
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "anna.csv").write_bytes((tmp_path / "anna.csv").read_bytes())
    sheet = str(tmp_path / "anna.csv")
    assert main(["rate", "report", sheet, "--answers", answers[0]]) == 2
    assert "13 rated answers are in none of the files of answers" in capsys.readouterr().err
    both = [value for path in answers for value in ("--answers", path)]
    assert main(["rate", "report", sheet, str(tmp_path / "x" / "anna.csv"), *both]) == 2
    assert "two files have the same rater, 'anna'" in capsys.readouterr().err
    assert DIMENSIONS == ("relevance", "accuracy", "fluency", "completeness")


def test_answers_of_evaluation_sets_are_rated_and_reported_by_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, word in (("weak", "差"), ("strong", "好")):
        items = tuple(
            ItemResult(id=f"{number}", prompt=f"问题{number}？", given="same" if number == 0 else f"{word} {number}")
            for number in range(PROMPTS)
        )
        write_set_result(tmp_path / name, SetResult(name="world", kind="answers", fingerprint="1", metrics={}, items=items))
    files = [str(tmp_path / "weak" / "world.json"), str(tmp_path / "strong" / "world.items.jsonl")]
    sheet = tmp_path / "anna.csv"
    assert main(["rate", "sheet", *files, "--out", str(sheet)]) == 0
    fill(sheet, lambda row: (5, 5, 5, 5) if "好" in row["answer"] else (2, 2, 2, 2))
    assert len(rows_of(sheet)) == 2 * PROMPTS - 1
    capsys.readouterr()
    assert main(["rate", "report", str(sheet), "--answers", files[0], "--answers", files[1], "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    means = {Path(one["model"]).name: one["mean"] for one in told["means"] if one["dimension"] == "accuracy"}
    assert means["strong"] > 4.5 and means["weak"] == 2


def test_a_set_without_answers_and_a_result_named_twice_are_errors(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, answer in (("pairs", None), ("world", "yes")):
        items = (ItemResult(id="1", prompt="a", given=answer),)
        write_set_result(tmp_path, SetResult(name=name, kind=name, fingerprint="1", metrics={}, items=items))
    out = ["--out", str(tmp_path / "sheet.csv")]
    assert main(["rate", "sheet", str(tmp_path / "pairs.json"), *out]) == 2
    assert "no answers that people could rate: it is a set of kind pairs" in capsys.readouterr().err
    assert main(["rate", "sheet", str(tmp_path / "world.json"), str(tmp_path / "world.items.jsonl"), *out]) == 2
    assert "named twice" in capsys.readouterr().err


def test_answers_to_one_last_turn_in_different_conversations_are_rated_apart(tmp_path: Path) -> None:
    items = tuple(ItemResult(id=f"{n}", prompt="Why?", context=f"user: {n}", given=f"because {n}") for n in range(2))
    write_set_result(tmp_path, SetResult(name="talk", kind="answers", fingerprint="1", metrics={}, items=items))
    write_sheet([str(tmp_path / "talk.json")], tmp_path / "sheet.csv", 0, "anna")
    rows = rows_of(tmp_path / "sheet.csv")
    assert {row["answer"][-1] for row in rows} == {"0", "1"}
    assert all(f"user: {row['answer'][-1]}" in row["prompt"] and "user: Why?" in row["prompt"] for row in rows)
