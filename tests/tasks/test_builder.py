"""The files of a task: equal for equal arguments, never written over, with a true report."""

import json
from collections import Counter
from pathlib import Path

import pytest

from fledge.cli import main
from fledge.cli.arguments import TASKS as TASKS_OF_THE_COMMAND
from fledge.errors import FledgeError
from fledge.tasks import TASKS, make
from fledge.tasks.split import SPLITS


def read(folder: Path, split: str) -> list[dict]:
    """The rows of a file."""
    return [json.loads(line) for line in (folder / f"{split}.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("name", TASKS)
def test_equal_arguments_give_equal_files_and_another_seed_gives_others(name: str, tmp_path: Path) -> None:
    for folder, seed in (("a", 3), ("b", 3), ("c", 4)):
        make(name, tmp_path / folder, seed, 60)
    contents = [{file.name: file.read_bytes() for file in (tmp_path / folder).iterdir()} for folder in "abc"]
    assert contents[0] == contents[1] and not set(contents[0].items()) & set(contents[2].items())


@pytest.mark.parametrize("name", TASKS)
def test_the_report_counts_what_is_in_the_files(name: str, tmp_path: Path) -> None:
    report = make(name, tmp_path, 5, 200)
    assert report == json.loads((tmp_path / "report.json").read_text(encoding="utf-8"))
    assert report["rows"] == {"train": 200, "validation": 16, "test": 30}
    questions = []
    for split in SPLITS:
        rows = read(tmp_path, split)
        questions += [row["messages"][1]["content"] for row in rows]
        assert report["rows"][split] == len(rows)
        assert report["groups"][split] == Counter(row["group"] for row in rows)
        answers = [value for row in rows for value in json.loads(row["messages"][-1]["content"]).values()]
        assert report["answers"][split] == Counter(value or "null" for value in answers)
        assert report["rows_with_held_out_forms"][split] == 0
    assert len(set(questions)) == len(questions)


def test_more_rows_begin_with_the_rows_of_fewer(tmp_path: Path) -> None:
    make("vehicle", tmp_path / "few", 5, 40)
    make("vehicle", tmp_path / "many", 5, 90)
    assert read(tmp_path / "many", "train")[:40] == read(tmp_path / "few", "train")


def test_a_file_with_other_rows_is_not_written_over(tmp_path: Path) -> None:
    make("vehicle", tmp_path, 5, 40)
    before = (tmp_path / "test.jsonl").read_bytes()
    with pytest.raises(FledgeError, match="exists, with other rows"):
        make("vehicle", tmp_path, 6, 40)
    make("vehicle", tmp_path, 5, 40)
    assert (tmp_path / "test.jsonl").read_bytes() == before


def test_the_command_has_the_tasks_that_there_are_and_says_what_is_wrong(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert [*TASKS, "world"] == list(TASKS_OF_THE_COMMAND)
    out = ["--out", str(tmp_path / "x")]
    assert main(["data", "make", "vehicle", *out, "--rows", "40"]) == 0
    assert "test.jsonl: 6 rows: 2 names, 2 spellings, 2 combinations" in capsys.readouterr().out
    for wrong, message in ((["--rows", "3"], "--rows"), (["--rows", "40", "--stages.sft.kind", "sft"], "no recipe")):
        assert main(["data", "make", "vehicle", *out, *wrong]) == 2
        assert message in capsys.readouterr().err
