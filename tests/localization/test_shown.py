"""What a person sees in Chinese: the choice of the language, help, errors, progress, tables, pages; data is never changed."""

import io
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table
from rich.text import Text

from fledge import localization
from fledge.cli import main
from fledge.cli.localized_help import take_language, width, wrapped
from fledge.localization import choice, choose_language, localized, localized_message, set_language
from fledge.localization.catalogue import Catalogue
from fledge.run.console import Console
from fledge.run.terminal import Terminal, Verbatim

ENGLISH = re.compile(r"(?:\b[A-Za-z]{2,}\b[ ,]+){3,}[A-Za-z]{2,}")
QUOTED = re.compile(r"`[^`]*`|'[^']*'|\"[^\"]*\"|--\S+|\S*/\S*|\S+=\S+|\{[^{}]*\}|\[[^\[\]]*\]|fledge [a-z].*|pip install.*")


@pytest.fixture
def chinese(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv(choice.VARIABLE, "zh")
    yield


def english_lines(text: str) -> list[str]:
    """The lines with a sentence of English, apart from names, paths, commands and quotes."""
    return [line for line in text.splitlines() if ENGLISH.search(QUOTED.sub("", line))]


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"LANG": "zh_CN.UTF-8"}, "zh"),
        ({"LANG": "zh_TW.UTF-8"}, "zh"),
        ({"LANG": "C.UTF-8"}, "en"),
        ({"LANG": "de_DE.UTF-8"}, "en"),
        ({}, "en"),
        ({"LANG": "zh_CN.UTF-8", "LC_ALL": "en_US.UTF-8"}, "en"),
        ({"LANG": "en_US.UTF-8", "LC_MESSAGES": "zh_CN.UTF-8"}, "zh"),
        ({"LANG": "zh_CN.UTF-8", "LC_ALL": ""}, "zh"),
        ({"LANG": "zh_CN.UTF-8", "FLEDGE_LANGUAGE": "en"}, "en"),
        ({"FLEDGE_LANGUAGE": "zh"}, "zh"),
    ],
)
def test_the_environment_chooses_the_language(environment: dict[str, str], expected: str) -> None:
    assert choose_language(environment) == expected


def test_the_option_may_stand_anywhere_and_has_to_be_a_language() -> None:
    assert take_language(["--language", "zh", "train", "r.yaml"]) == (["train", "r.yaml"], "zh")
    assert take_language(["train", "r.yaml", "--language=en"]) == (["train", "r.yaml"], "en")
    assert take_language(["generate", "m", "--", "--language"]) == (["generate", "m", "--", "--language"], None)
    for wrong in (["--language", "fr"], ["--language"]):
        with pytest.raises(ValueError, match="is one of en, zh"):
            take_language(wrong)


def test_a_process_keeps_its_language_for_those_that_it_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(choice.VARIABLE, "en")
    set_language("zh")
    assert localization.language() == "zh" and os.environ[choice.VARIABLE] == "zh"


@given(st.text("abc 中文，。（）x", max_size=80), st.integers(8, 40))
def test_wrapped_lines_lose_no_character_and_are_not_too_wide(text: str, columns: int) -> None:
    lines = wrapped(text, columns)
    assert "".join("".join(lines).split()) == "".join(text.split())
    assert all(width(line) <= columns or " " not in line for line in lines) or max(map(width, lines)) <= columns + 8


@pytest.mark.parametrize(
    "line", ["", "train", "data check", "prefer rank", "generate", "runs prune", "eval", "plan", "sweep", "tune"]
)
def test_help_is_chinese_by_the_locale(line: str) -> None:
    environment = {**os.environ, "LANG": "zh_CN.UTF-8", "LC_ALL": "", "LC_MESSAGES": "", "PYTHONUTF8": "1", "COLUMNS": "80"}
    environment.pop(choice.VARIABLE, None)
    run = [sys.executable, "-m", "fledge.cli", *line.split(), "--help"]
    shown = subprocess.run(run, env=environment, capture_output=True, text=True, check=True, timeout=60).stdout
    assert "用法：" in shown and "选项" in shown
    assert english_lines(shown) == []
    assert max(map(width, shown.splitlines())) <= 100


@pytest.mark.usefixtures("chinese")
def test_errors_are_chinese_with_cause_place_and_hint(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    recipe = tmp_path / "r.yaml"
    recipe.write_text(
        "nmae: x\nstages: {sft: {data: {train: a.jsonl}, learning_rate: 1, duration: 3 parsecs}}\n", encoding="utf-8"
    )
    assert main(["train", str(recipe)]) == 2
    shown = capsys.readouterr().err
    assert "r.yaml:1" in shown and "nmae" in shown and "3 parsecs" in shown and re.search("[一-龥]{4}", shown)
    assert english_lines(shown) == []
    assert main(["chat", str(tmp_path / "nothing")]) == 2
    assert english_lines(capsys.readouterr().err) == []


@pytest.mark.usefixtures("chinese")
def test_a_whole_first_contact_is_chinese(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [{"question": f"{n}号是谁？", "answer": f"{n}号是{'甲乙丙丁'[n % 4]}。"} for n in range(60)]
    Path("qa.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
    assert main(["init", "qa.jsonl", "--out", "my.yaml", "--minutes", "0.05"]) == 0
    recipe = Path("my.yaml").read_text(encoding="utf-8")
    assert [line for line in re.findall(r"#.*", recipe) if english_lines(line)] == []
    tiny = ["--stages.sft.duration", "4 steps", "--runtime.compile", "false", "--runtime.attention", "sdpa"]
    tiny += ["--runtime.precision", "fp32", "--stages.sft.evaluation.every_steps", "2"]
    for command in (
        ["data", "check", "my.yaml"], ["data", "stats", "my.yaml", "--page", "look.html"], ["data", "account", "my.yaml"],
        ["train", "my.yaml", "--dry-run"], ["plan", "my.yaml", "--device", "2xT4", "--here"], ["train", "my.yaml", *tiny],
        ["runs", "list", "runs"], ["runs", "show", "runs/my"], ["runs", "verdict", "runs/my"],
    ):  # fmt: skip
        assert main(command) in (0, 2, 10, 11)
    printed = capsys.readouterr()
    assert english_lines(printed.out + printed.err) == []
    page = Path("look.html").read_text(encoding="utf-8")
    assert '<html lang="zh-CN" data-lang="zh">' in page
    shown = re.sub(
        r'<span class="en" lang="en">.*?</span>|<script.*?</script>|<style.*?</style>|<[^>]*>', "\n", page, flags=re.S
    )
    assert english_lines(shown) == []


@pytest.mark.usefixtures("chinese")
def test_data_is_printed_as_it_is() -> None:
    message = "this path is a loop of symbolic links"
    assert localized(message) != message
    file = io.StringIO()
    terminal = Terminal(file=file, width=100)
    terminal.print(Verbatim(message))
    terminal.print(message)
    table = Table("rows", "text")
    table.add_row("data", Verbatim(message))
    terminal.print(table)
    assert file.getvalue().count(message) == 3 and "行" in file.getvalue()
    assert "data" in file.getvalue()  # a single word of a cell may be a name
    assert localized_message("data") == "data"
    terminal.print(Text(message))
    assert file.getvalue().count(message) == 3


@pytest.mark.usefixtures("chinese")
def test_names_in_quotes_and_lines_of_recipes_stay_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    assert "'rows and steps'" in localized("there is no task 'rows and steps'")
    for line in ("    duration: 3 epochs", "    data: {train: rows.jsonl}", "seed: 3"):
        assert localized(line) == line
    Console(live=False).log("note: 3 rows, 2 used")
    assert capsys.readouterr().err.startswith("注意：3 行")


@given(st.text(max_size=120))
def test_any_text_can_be_shown(text: str) -> None:
    assert isinstance(CHINESE.text(text), str)


CHINESE = Catalogue("zh")
