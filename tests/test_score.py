"""`fledge score`: the file is read with every row accounted for, and what is printed and written is the model's own."""

import json
from pathlib import Path

import pytest

from fledge.api.model import load
from fledge.cli import main
from tests.support.small_model import write_model

QUESTIONS = ["What is a cat?", "What is a dog?", "Dogs?", "A cat?"]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory with its tokenizer."""
    return write_model(tmp_path_factory.mktemp("model"))


def write(file: Path, pairs: list[tuple[str, str]], **more: object) -> Path:
    """A file of conversations."""
    turns = [[{"role": "user", "content": question}, {"role": "assistant", "content": answer}] for question, answer in pairs]
    file.write_text("".join(json.dumps({"messages": one, **more}) + "\n" for one in turns), encoding="utf-8")
    return file


def test_answers_equal_to_the_model_s_own_are_right_and_others_are_in_the_error_file(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = {question: load(model).chat(question, max_new_tokens=6) for question in QUESTIONS}
    expected = {question: text if text.strip() else '{"a": "x"}' for question, text in own.items()}  # none may be empty
    wrong = [question for question, text in own.items() if not text.strip()]
    assert 0 < len(wrong) < len(QUESTIONS)
    file, errors = write(tmp_path / "test.jsonl", list(expected.items()), group="new"), tmp_path / "wrong.jsonl"
    words = ["score", str(file), str(model), "--max-new-tokens", "6", "--errors", str(errors), "--json"]
    assert main(words) == 0
    scores = json.loads(capsys.readouterr().out)["models"][str(model)]
    assert scores["rows"] == len(QUESTIONS) and scores["exact_match"]["value"] == 1 - len(wrong) / len(QUESTIONS)
    assert scores["valid_json"]["value"] == 0 and scores["mistakes"] == {"empty": len(wrong)}
    lines = [json.loads(line) for line in errors.read_text(encoding="utf-8").splitlines()]
    assert [(line["question"], line["given"], line["where"]) for line in lines] == [
        (question, own[question], f"{file}:{QUESTIONS.index(question) + 1}") for question in wrong
    ]
    assert main(words[:-1]) == 0
    assert "group new" in capsys.readouterr().out


def test_a_second_model_is_compared_with_the_first_on_the_same_rows(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tmp_path / "other"
    other.symlink_to(model)
    file = write(tmp_path / "test.jsonl", [(question, "x") for question in QUESTIONS])
    assert main(["score", str(file), str(model), str(other), "--max-new-tokens", "3", "--json"]) == 0
    difference = json.loads(capsys.readouterr().out)["models"][str(other)]["exact_match_difference"]
    assert (
        difference["to"] == str(model)
        and difference["value"] == 0
        and difference["interval"][0] < 0 < difference["interval"][1]
    )


def test_rows_that_cannot_be_scored_are_told_and_a_file_of_them_is_an_error(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = write(tmp_path / "test.jsonl", [("Dogs?", "x")])
    with file.open("a", encoding="utf-8") as lines:
        lines.write('{"messages": [{"role": "user", "content": "alone"}]}\nbroken\n')
    assert main(["score", str(file), str(model), "--max-new-tokens", "3"]) == 0
    output = capsys.readouterr()
    told = output.out + output.err
    assert "not scored: 1 ×" in told and f"{file}:2" in told and f"{file}:3" in told
    (tmp_path / "bad.jsonl").write_text("broken\n", encoding="utf-8")
    long = write(tmp_path / "long.jsonl", [("word " * 200, "x")])
    for words, message in (
        ([str(tmp_path / "bad.jsonl"), str(model)], "no row can be used"),
        ([str(tmp_path / "none.jsonl"), str(model)], "none.jsonl"),
        ([str(file), str(tmp_path / "nothing")], "no such run or model"),
        ([str(file), str(model), str(model)], "named twice"),
        ([str(long), str(model)], f"{long}:1"),
        ([str(file), str(model), "--max-new-tokens", "0"], "--max-new-tokens"),
    ):
        assert main(["score", *words]) == 2
        assert message in capsys.readouterr().err
