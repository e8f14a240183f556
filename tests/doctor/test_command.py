"""`fledge doctor` as a person runs it."""

import json
from pathlib import Path

import pytest

from fledge.cli.doctor_arguments import bench_arguments
from tests.support import report_run
from tests.support.command import assert_error, fledge

KEYS = {"healthy", "logs", "findings", "unexplained", "missing", "figures", "left_out", "guesses", "seconds"}


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A log in CSV whose loss grows without end."""
    file = tmp_path_factory.mktemp("log") / "loss.csv"
    rows = [f"{step},{2 + (step / 60) ** 2 if step > 60 else 4 - step / 30:.4f},0.01" for step in range(1, 301)]
    file.write_text("step,my_loss,lr\n" + "\n".join(rows) + "\n", encoding="utf-8")
    return file


def test_text_and_json_say_the_same(log: Path, tmp_path: Path) -> None:
    columns = ("--columns", "train/loss=my_loss")
    text = fledge("doctor", log, *columns, "--depth", "curves", "--strict")
    assert text.returncode == 2, text.stderr
    assert "examined in" in text.stdout and "train/loss" in text.stdout
    done = fledge("doctor", log, *columns, "--depth", "curves", "--json", "--schemes", "--plots", tmp_path)
    assert done.returncode == 0, done.stderr
    tree = json.loads(done.stdout)
    assert set(tree) >= KEYS and {"schemes", "plots"} <= set(tree)
    assert not tree["healthy"] and tree["logs"][0]["series"]["train/loss"] == 300
    said = [*tree["findings"], *tree["unexplained"]]
    assert said and all(one["message"] and one["evidence"] is not None for one in said)
    assert all(one["message"].split()[0] in text.stdout for one in said)
    assert tree["plots"] and all(Path(file).read_bytes()[:4] == b"\x89PNG" for file in tree["plots"])


def test_a_run_of_three_stages_ends_with_a_line_for_each(tmp_path: Path) -> None:
    run = report_run.write_run(tmp_path / "run", steps=120)
    done = fledge("doctor", run, "--depth", "curves")
    assert done.returncode == 0, done.stderr
    assert [line.split(":")[0] for line in done.stdout.splitlines()[-4:-1]] == ["pretrain", "sft", "dpo"]
    one = fledge("doctor", run / "sft", "--depth", "curves", "--json")
    assert [entry["stage"] for entry in json.loads(one.stdout)["logs"]] == ["sft"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("no/such/run",), "there is no such file or folder"),
        (("LOG", "--minutes", "3"), "add --prove"),
        (("LOG", "--columns", "my_loss"), "is no NAME=VALUE"),
        (("LOG", "--data", "rows.jsonl"), "give both --data FILE and --tokenizer DIR"),
        (("LOG", "--given", "speed=3"), "'speed' is no setting"),
        (("LOG", "--given", "kind=chess"), "the doctor knows no kind 'chess'"),
        (("LOG", "--depth", "curves", "--prove"), "only runs of fledge can be tried again"),
        (("LOG", "--config", "no.yaml"), "no.yaml"),
        (("LOG", "--data", "no.jsonl", "--tokenizer", "."), "there is no such file or folder: no.jsonl"),
        (("LOG", "--tokenizer", "no", "--data", "."), "there is no such file or folder: no"),
        (("LOG", "--start", "no/model"), "there is no such file or folder: no/model"),
        (("LOG", "--start", "."), "no model lies beside this log"),
    ],
)
def test_wrong_words_are_errors(log: Path, words: tuple[str, ...], message: str) -> None:
    assert_error(fledge("doctor", *(str(log) if word == "LOG" else word for word in words)), message)


def test_files_that_a_run_of_fledge_has_itself_are_refused(tmp_path: Path) -> None:
    run = report_run.write_run(tmp_path / "run", steps=20)
    for words, option in ((("--start", run), "--start"), (("--data", run, "--tokenizer", run), "--data")):
        assert_error(fledge("doctor", run, *words), f"{option}: a run of fledge has its own data")


def test_what_was_found_is_told_though_the_pictures_cannot_be_written(log: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")
    done = fledge("doctor", log, "--columns", "train/loss=my_loss", "--depth", "curves", "--json", "--plots", tmp_path / "file")
    assert done.returncode == 2 and "cannot write" in done.stderr
    tree = json.loads(done.stdout)
    assert not tree["healthy"] and tree["plots"] == []


def test_the_bench_has_a_parser_of_its_own() -> None:
    assert bench_arguments(["doctor", "bench", "--quick"]) == ["--quick"]
    assert bench_arguments(["--debug", "doctor", "bench"]) == []
    assert bench_arguments(["doctor", "./bench"]) is None and bench_arguments(["doctor"]) is None
