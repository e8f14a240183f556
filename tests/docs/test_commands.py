"""The commands in the documents run unchanged, on small data; docs/commands.md has every option."""

import io
import json
import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from fledge.cli import main
from fledge.pipeline import Pipeline
from fledge.run import Console
from tests.support import markdown, tiny_run

ROOT = markdown.ROOT
README, TUTORIAL, COMMANDS = ROOT / "README.md", ROOT / "docs" / "tutorial.md", ROOT / "docs" / "commands.md"
TRAIN = {"train", "plan", "sweep", "tune"}  # commands that train by a recipe, a probe too
SMALL = [  # laid over every training run of a document, so that it takes a moment
    "--model.hidden_size", "32", "--model.num_hidden_layers", "2", "--model.intermediate_size", "64", "--runtime.threads", "1",
    "--runtime.compile", "false", "--runtime.precision", "fp32", "--runtime.attention", "sdpa",
]  # fmt: skip
SHORT = ["--stages.pretrain.duration", "4 steps", "--stages.sft.duration", "3 steps"]
SLOW = {"quickstart", "--processes"}  # commands with these words are run by the slow tests
INTERRUPTED = "press Ctrl-C"


def fledge(words: list[str]) -> int:
    """Run the command in this process and return its exit code; `--help` exits by an exception."""
    try:
        return main(words)
    except SystemExit as leaving:
        return int(leaving.code or 0)


def of_fledge(command: markdown.Command) -> list[str] | None:
    """The arguments of `fledge …` or `.venv/bin/fledge …`; None for another program."""
    return list(command.words[1:]) if Path(command.words[0]).name == "fledge" else None


def lay_out(document: Path, folder: Path) -> None:
    """Write the files that a document shows, and small data under the names that it uses."""
    for block in [*markdown.blocks(README), *markdown.blocks(document)]:
        if block.file:
            (folder / block.file).write_text(block.text, encoding="utf-8")
    animals = ["fox", "frog", "crow", "swan", "bear", "mole", "toad", "heron"]
    texts = [
        f"The {one} met the {other}. It was day {day} of spring." for one in animals for other in animals for day in range(3)
    ]
    (folder / "corpus.txt").write_text("\n".join(texts), encoding="utf-8")
    with (folder / "chat.jsonl").open("w", encoding="utf-8") as file:
        for number, text in enumerate(texts[:80]):
            turns = [("user", f"What happened, number {number}?"), ("assistant", text)]
            file.write(json.dumps({"messages": [{"role": role, "content": content} for role, content in turns]}) + "\n")


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to run commands in; the standard input is restored after the test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stdin", sys.stdin)
    return tmp_path


@contextmanager
def interruption(stage: Path) -> Iterator[None]:
    """Sends SIGINT to this process once a stage has written its first step, and never after the block."""
    over = threading.Event()

    def watch() -> None:
        events = stage / "events.jsonl"
        while not over.wait(0.01):
            if events.exists() and '"kind": "step"' in events.read_text(encoding="utf-8"):
                os.kill(os.getpid(), signal.SIGINT)
                return

    thread = threading.Thread(target=watch)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def run_all(document: Path, workplace: Path, small: list[str], rows: int | None = None) -> None:
    """Run every command of fledge in a document in order, without the slow ones.

    `small` is added to training runs; data that a script of the document makes is cut to its first `rows` rows.
    """
    for command in markdown.commands(document):
        words = of_fledge(command)
        if words is None:
            if command.words[0] == "python":
                subprocess.run([sys.executable, *command.words[1:]], check=True, cwd=workplace)
                for name in ("corpus.txt", "chat.jsonl"):
                    lines = (workplace / name).read_text(encoding="utf-8").splitlines(keepends=True)
                    (workplace / name).write_text("".join(lines[:rows]), encoding="utf-8")
            continue
        if SLOW & set(words):
            continue
        sys.stdin = io.StringIO("hello\n/new\n/quit\n")
        location = f"{markdown.label(document)}:{command.line}: {command}"
        if words[0] in TRAIN and words[1:2] and words[1].endswith(".yaml"):
            words += small
        if INTERRUPTED in command.comment:
            with interruption(workplace / "runs" / "pip" / "pretrain"):
                assert fledge(words) == 130, location
            assert not (workplace / "runs" / "pip" / "pretrain" / "result.json").exists(), "the interruption came too late"
        else:
            assert fledge(words) == 0, location


def test_the_commands_of_the_readme_run(workplace: Path) -> None:
    lay_out(README, workplace)
    recipe = tiny_run.recipe(workplace / "world", workplace / "runs", name="quickstart")
    Pipeline(recipe, Console(quiet=True)).run()
    run_all(README, workplace, [*SMALL, *SHORT])
    assert (workplace / "look.html").exists() and (workplace / "runs" / "mine" / "report.html").exists()


@pytest.mark.slow
def test_the_commands_of_the_command_reference_run(workplace: Path) -> None:
    lay_out(COMMANDS, workplace)
    run_all(COMMANDS, workplace, [*SMALL, *SHORT])
    assert (workplace / "built" / "sft" / "manifest.json").exists()
    assert (workplace / "runs" / "from-built" / "sft" / "result.json").exists()


def test_the_commands_of_the_tutorial_run_and_the_interrupted_run_continues(workplace: Path) -> None:
    lay_out(TUTORIAL, workplace)
    lengths = ["--stages.pretrain.duration", "100 steps", "--stages.sft.duration", "3 steps"]
    run_all(TUTORIAL, workplace, [*SMALL, *lengths], rows=410)
    assert (workplace / "runs" / "pip" / "report.html").exists()


@pytest.mark.slow
def test_the_tutorial_followed_literally_gives_the_answers_that_it_shows(
    workplace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lay_out(TUTORIAL, workplace)
    run_all(TUTORIAL, workplace, [])
    capsys.readouterr()
    shown = TUTORIAL.read_text(encoding="utf-8")
    for question, answer in (
        ("Where does the heron live?", "The heron lives in the pond."),
        ("What colour is the swan?", "The swan is white."),
        ("青蛙是什么颜色的？", "青蛙是绿色的。"),
    ):
        assert question in shown and answer in shown
        assert fledge(["generate", "runs/pip", question]) == 0
        assert capsys.readouterr().out.strip() == answer


@pytest.mark.slow
def test_the_slow_commands_of_the_documents_run(workplace: Path) -> None:
    lay_out(COMMANDS, workplace)
    ran = 0
    for command in markdown.commands(COMMANDS):
        words = of_fledge(command)
        if words is None or not SLOW & set(words):
            continue
        words = ["0.05" if before == "--minutes" else word for before, word in zip(["", *words], words, strict=False)]
        if words[0] == "train":
            words += [*SMALL, *SHORT]
        result = subprocess.run(
            [sys.executable, "-m", "fledge.cli", *words], cwd=workplace, capture_output=True, text=True, check=False
        )
        assert result.returncode == 0, f"{command}\n{result.stderr}"
        ran += 1
    assert ran == 3


# -- commands that are only looked at --------------------------------------------------------------------------------------


HELP: dict[str, dict[str, set[str]]] = {}  # what `help_of` has found


def help_of(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, command: str) -> dict[str, set[str]]:
    """The options in the help of a command, each with its choices."""
    if command in HELP:
        return HELP[command]
    monkeypatch.setenv("COLUMNS", "400")
    capsys.readouterr()
    fledge([*command.split(), "--help"])
    text = capsys.readouterr().out.partition("options:")[2]
    options = {}
    for line in text.splitlines():
        if re.match(r"  (-h, )?--", line) and "--help" not in line:
            head = line.strip().partition("  ")[0]
            choices = re.search(r"\{([\w,-]+)\}", head)
            for option in re.findall(r"--[\w-]+", head):
                options[option] = set(choices[1].split(",")) if choices else set()
    HELP[command] = options
    return options


SECTIONS = sorted({row.headings[1] for row in markdown.tables(COMMANDS) if row.headings[-1].startswith("fledge ")})


@pytest.mark.parametrize("section", SECTIONS)
def test_the_command_reference_has_every_option_with_its_choices(
    section: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    written: dict[str, set[str]] = {}
    for row in markdown.tables(COMMANDS):
        if row.headings[1:] == (section,):
            for span in markdown.ticked(row.cells["option"]):
                option, _, value = span.partition(" ")
                written[option] = set(value.split("|")) if "|" in value else set()
    assert written == help_of(capsys, monkeypatch, section.removeprefix("fledge "))


def test_the_command_reference_has_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    titles = re.findall(r"^## fledge (.+)$", COMMANDS.read_text(encoding="utf-8"), re.MULTILINE)
    expected = set()
    for command in ("", "data", "prefer", "runs"):
        capsys.readouterr()
        fledge([*command.split(), "--help"])
        listed = re.findall(r"^    (\w+)\b", capsys.readouterr().out, re.MULTILINE)
        expected |= {f"{command} {name}".strip() for name in listed} - {"data", "prefer", "runs"}
    assert expected == set(titles)


@pytest.mark.parametrize("document", markdown.documents(), ids=markdown.label)
def test_every_command_line_of_a_document_names_commands_options_and_targets_that_exist(
    document: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    problems = []
    for command in markdown.commands(document):
        if (text := problem_of(command, capsys, monkeypatch)) is not None:
            problems.append(f"{command.line}: {command}: {text}")
    assert not problems, "\n".join(problems)


def problem_of(command: markdown.Command, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str | None:
    """The problem of a command line, or None; the command is not run."""
    program, words = Path(command.words[0]).name, list(command.words[1:])
    if program == "make":
        return _problem_of_make(words)
    if program in ("python", "python3"):
        return _problem_of_python(words)
    if program == "pip":
        return _problem_of_pip(words)
    if program == "torchrun":
        return _problem_of_fledge(words[words.index("fledge.cli") + 1 :], capsys, monkeypatch)
    if program == "fledge":
        return _problem_of_fledge(words, capsys, monkeypatch)
    return "no document of ours runs this program"


def _problem_of_fledge(words: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> str | None:
    from tests.support import recipe_keys

    own_parser = words[0] in ("data", "prefer", "runs") or words[:2] == ["doctor", "bench"]
    name = " ".join(words[:2]) if own_parser else words[0]
    options = help_of(capsys, monkeypatch, name)
    if not options and name not in ("report", "completion"):
        return f"there is no command {name}"
    takes_keys = words[0] in ("train", "plan", "data", "sweep", "tune")
    for word in words:
        key = re.sub(r"^--stages\.\w+", "--stages.*", word)[2:]
        if word.startswith("--") and word not in options and not (takes_keys and key in recipe_keys.all_keys()):
            return f"{name} has no option {word}"
    return None


def _problem_of_make(words: list[str]) -> str | None:
    text = (ROOT / "Makefile").read_text(encoding="utf-8")
    targets, variables = (
        set(re.findall(r"^(\w+):", text, re.MULTILINE)),
        set(re.findall(r"^(\w+) [?:]?= ?", text, re.MULTILINE)),
    )
    for word in words:
        name, equals, value = word.partition("=")
        if name not in (variables if equals else targets):
            return f"the Makefile has no {name}"
        missing = [path for path in value.split() if "/" in path and not (ROOT / path).exists()]
        if missing:
            return f"there is no {missing[0]}"
    return None


def _problem_of_python(words: list[str]) -> str | None:
    if words[:2] == ["-m", "venv"]:
        return None
    files = [word for word in words if word.endswith(".py")]
    missing = [file for file in files if "/" in file and not (ROOT / file).exists()]
    if missing:
        return f"there is no {missing[0]}"
    if words[0].startswith("benchmarks/"):
        text = (ROOT / words[0]).read_text(encoding="utf-8") + (ROOT / "benchmarks" / "measure.py").read_text(encoding="utf-8")
        unknown = [word for word in words if word.startswith("--") and f'"{word}"' not in text]
        return f"{words[0]} has no option {unknown[0]}" if unknown else None
    return None


def _problem_of_pip(words: list[str]) -> str | None:
    import tomllib

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = {name for word in words for group in re.findall(r"\[([\w,]+)\]", word) for name in group.split(",")}
    unknown = extras - set(project["optional-dependencies"])
    return f"there is no extra {sorted(unknown)[0]}" if unknown else None


def test_a_command_line_with_a_mistake_would_be_noticed(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    for line in (
        "fledge train mine.yaml --proceses 4", "fledge trian mine.yaml", "fledge train mine.yaml --stages.sft.optimizer.lr 1",
        "make tset", "make test PYTEST='tests/nowhere -k x'", ".venv/bin/python benchmarks/kill_resume.py --kill 3",
        ".venv/bin/pip install -e '.[parket]'", "fledge chat runs/mine --stages.sft.duration x", "curl example.org",
    ):  # fmt: skip
        import shlex

        assert problem_of(markdown.Command(tuple(shlex.split(line)), "", 0), capsys, monkeypatch), line
