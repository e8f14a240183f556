"""Text from data cannot control the terminal, whatever prints it."""

import ast
import io
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.table import Table

from fledge.entrypoint import to_stderr
from fledge.escaping import PICTURES, escaped, escaped_json, escaped_line
from fledge.run import Console
from fledge.run.terminal import Terminal
from tests.support import markdown

HOSTILE = "a\x1b]0;title\x07b\x9b31mc\rd\u202ee\u2066f\x7fg\b"
SHOWN = "a␛]0;title␇b\\u009b31mc␍d\\u202ee\\u2066f␡g␈"
SOURCE = markdown.ROOT / "src" / "fledge"
PROTOCOL = ("data/build/worker.py", "doctor_bench/worker.py")  # print for a process, not for a person


@given(st.text(st.characters()))
def test_escaped_text_holds_no_control_character(text: str) -> None:
    shown = escaped(text)
    assert not set(map(ord, shown)) & (set(PICTURES) - {10, 9})
    assert escaped(shown) == shown
    assert not set(map(ord, escaped_line(text))) & set(PICTURES)
    shown.encode("utf-8")


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_escaped_json_has_the_same_value(text: str) -> None:
    document = escaped_json(json.dumps({text: text}, ensure_ascii=False))
    assert json.loads(document) == {text: text}
    assert not set(map(ord, document)) & set(PICTURES)


def test_ordinary_text_stays_as_it_is() -> None:
    text = "你好，世界\n\tline “two” – שלום مرحبا\u200f 👩\u200d🚀"
    assert escaped(text) == text


def test_console_and_errors_show_control_characters_as_pictures(capsys: pytest.CaptureFixture[str]) -> None:
    console = Console(live=False)
    console.log(HOSTILE, style="yellow")
    console.title(HOSTILE)
    with console.progress(HOSTILE, 1) as progress:
        progress.update(1, HOSTILE)
    table = Table(HOSTILE)
    table.add_row(HOSTILE)
    console.show(table)
    to_stderr(HOSTILE)
    printed = capsys.readouterr().err
    assert printed.count(SHOWN) >= 4
    assert not set(map(ord, printed)) & (set(PICTURES) - {10})


def test_a_live_progress_bar_shows_no_control_character_of_its_texts() -> None:
    file = io.StringIO()
    console = Console(live=True)
    console._rich = Terminal(file=file, force_terminal=True, width=200, soft_wrap=True)
    with console.progress(HOSTILE, 2) as progress:
        progress.update(2, HOSTILE)
    assert SHOWN in file.getvalue()
    assert "\x1b]0;" not in file.getvalue() and "\x9b" not in file.getvalue() and "\u202e" not in file.getvalue()


def test_markup_and_emoji_codes_in_data_are_shown_as_they_are() -> None:
    file = io.StringIO()
    Terminal(file=file, width=80).print("[red]a[/red] [link=http://x]b[/link] :smile:")
    assert file.getvalue() == "[red]a[/red] [link=http://x]b[/link] :smile:\n"


def unescaped_prints(tree: ast.Module) -> list[str]:
    """Calls of print whose text is neither a constant nor escaped, and imports of rich's own console."""
    problems = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print" and node.args:
            text = node.args[0]
            if not isinstance(text, ast.Constant) and not ast.unparse(text).startswith(("escaped", "shown(")):
                problems.append(f"line {node.lineno}: {ast.unparse(node)}")
        is_import = isinstance(node, ast.ImportFrom) and node.module == "rich.console"
        if is_import and "Console" in [name.name for name in node.names]:
            problems.append(f"line {node.lineno}: rich's Console")
    return problems


def test_everything_that_is_printed_is_escaped() -> None:
    files = {file.relative_to(SOURCE).as_posix(): file for file in sorted(SOURCE.rglob("*.py"))}
    problems = [
        f"{name}, {problem}"
        for name, file in files.items()
        if name not in (*PROTOCOL, "run/terminal.py")
        for problem in unescaped_prints(ast.parse(Path(file).read_text(encoding="utf-8")))
    ]
    assert not problems, "\n".join(problems)


def test_the_check_finds_a_text_that_is_not_escaped() -> None:
    assert unescaped_prints(ast.parse("print(answer)")) and unescaped_prints(ast.parse("from rich.console import Console"))
    assert not unescaped_prints(ast.parse("print(); print('done'); print(escaped(answer)); print(shown(answer))"))
