"""Answers depend on the seed, the prompt and the place alone; a killed call goes on and ends with equal bytes."""

import json
from pathlib import Path
from typing import Any

import pytest

from fledge.api.model import load
from fledge.cli import main
from fledge.errors import FledgeError
from fledge.prefer import sampling
from fledge.prefer.answers import read_answers
from fledge.prefer.journal import JournalWriter
from fledge.prefer.sampling import SampleSettings, _summary, sample
from fledge.run import Console
from tests.support.killing import Killed
from tests.support.preferences import lines_of
from tests.support.small_model import write_model
from tests.support.sources import jsonl

QUESTIONS = ["What is a cat?", "What is a dog?", "Dogs?", "A cat?", "Animals?"]
SETTINGS = SampleSettings(n=3, temperatures=(0.0, 0.8, 1.5), max_new_tokens=6, seed=3)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model directory with its tokenizer."""
    return write_model(tmp_path_factory.mktemp("model"))


def prompts(folder: Path, questions: list[str] = QUESTIONS) -> Path:
    """A file of prompts."""
    return jsonl(folder / "prompts.jsonl", [{"prompt": question} for question in questions])


def draw(model: Path, file: Path, out: Path, settings: SampleSettings = SETTINGS, **more: Any) -> list[str]:
    """Sample without a console."""
    return sample(str(model), str(file), str(out), settings, console=Console(quiet=True), **more)


def test_the_answer_at_temperature_0_is_that_of_chat_and_every_draw_is_written(model: Path, tmp_path: Path) -> None:
    draw(model, prompts(tmp_path), tmp_path / "a.jsonl")
    found = read_answers([str(tmp_path / "a.jsonl")])
    for question, asked in zip(QUESTIONS, found.prompts.values(), strict=True):
        greedy = load(model).chat(question, max_new_tokens=6).strip()
        drawn = {each.place: answer.text for answer in asked.answers for each in answer.draws}
        assert drawn[0] == greedy and sorted(drawn) == [0, 1, 2]
        temperatures = {each.place: each.temperature for answer in asked.answers for each in answer.draws}
        assert temperatures == {0: 0.0, 1: 0.8, 2: 1.5}
    assert sum(len(asked.answers) for asked in found.prompts.values()) > len(QUESTIONS)


def test_answers_do_not_depend_on_other_prompts_but_on_the_seed(model: Path, tmp_path: Path) -> None:
    draw(model, prompts(tmp_path), tmp_path / "all.jsonl")
    draw(model, prompts(tmp_path, QUESTIONS[:1:-1]), tmp_path / "some.jsonl")
    whole, some = (lines_of(tmp_path / name)[1:] for name in ("all.jsonl", "some.jsonl"))
    by_id = {line["id"]: line["answers"] for line in whole}
    assert len(some) == 3 and all(line["answers"] == by_id[line["id"]] for line in some)
    draw(model, prompts(tmp_path), tmp_path / "other.jsonl", SampleSettings(**{**SETTINGS.as_dict(), "seed": 4}))
    assert [line["answers"] for line in lines_of(tmp_path / "other.jsonl")[1:]] != [line["answers"] for line in whole]


@pytest.mark.parametrize("torn", [0, 9])
def test_a_call_that_is_killed_goes_on_and_ends_with_equal_bytes(
    model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torn: int
) -> None:
    monkeypatch.setattr(sampling, "CHUNK_ANSWERS", 6)  # two prompts at a time
    draw(model, prompts(tmp_path), tmp_path / "whole.jsonl")
    write, written = JournalWriter.append, 0

    def dying(self: JournalWriter, lines: list[Any]) -> None:
        nonlocal written
        written += 1
        if written == 2:
            write(self, lines[:1])  # a chunk is cut in the middle, here behind a line
            raise Killed
        write(self, lines)

    out = tmp_path / "killed.jsonl"
    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(JournalWriter, "append", dying)
        draw(model, prompts(tmp_path), out)
    out.write_bytes(out.read_bytes()[: len(out.read_bytes()) - torn])
    assert len(out.read_bytes().splitlines()) == 4
    summary = draw(model, prompts(tmp_path), out)
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes() and "5 prompts × 3 answers" in summary[0]
    assert draw(model, prompts(tmp_path), out) == summary  # a finished file stays as it is
    assert out.read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_what_is_not_asked_is_counted_and_told(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = [
        {"prompt": "What is a cat?", "response": "An animal."}, {"prompt": "What is a cat?", "response": "An animal."},
        {"prompt": "What is a cat?", "response": "A pet."}, {"prompt": "dog " * 200}, {"prompt": "dog " * 20}, {"x": 1},
        {"prompt": "Dogs?", "colour": "red"}, {"prompt": "A cat?"},
    ]  # fmt: skip
    words = ["prefer", "sample", str(model), str(jsonl(tmp_path / "p.jsonl", rows)), "--out", str(tmp_path / "a.jsonl")]
    assert main([*words, "--n", "2", "--temperatures", "1", "--max-new-tokens", "70", "--limit", "4"]) == 0
    told = capsys.readouterr()
    for text in (
        "1 × the prompt of an earlier row, first at", "1 × the prompt of an earlier row, with another reference", "p.jsonl:3",
        "1 × no known column", "1 × beyond the first 4 prompts (--limit)", "1 × too long: the model has 100 positions",
        "columns that nothing reads: colour (1 rows)", "1 × leaves less room for an answer than max_new_tokens",
    ):  # fmt: skip
        assert text in told.err, text
    assert "3 prompts × 2 answers" in told.out and "1 prompts have a reference answer" in told.out
    assert lines_of(tmp_path / "a.jsonl")[1]["reference"] == "An animal."


def test_rows_without_an_answer_references_that_are_numbers_and_answers_among_the_prompts(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder := tmp_path / "prompts").mkdir()
    (folder / "notes.md").write_text("no rows", encoding="utf-8")
    jsonl(folder / "p.jsonl", [
        {"instruction": "2+2?", "input": "", "output": ""}, {"prompt": "3?", "reference": 3},
        {"prompt": "4?", "response": " \n"}, {"prompt": "5?", "reference": True},
    ])  # fmt: skip
    words = ["prefer", "sample", str(model), "--n", "2", "--temperatures", "1", "--max-new-tokens", "3"]
    for path, out in (
        (folder, folder / "a.jsonl"),
        (f"{folder}/*.jsonl", folder / "b.jsonl"),
        (f"{tmp_path}/**/*.jsonl", folder / "c.jsonl"),
    ):
        assert main([*words, str(path), "--out", str(out)]) == 2 and not out.exists()
        assert "would be read as prompts" in capsys.readouterr().err
    assert main([*words, str(folder), "--out", str(tmp_path / "a.jsonl")]) == 0
    told = capsys.readouterr()
    assert "not read: notes.md" in told.err and "columns that nothing reads: reference (1 rows)" in told.err
    _, first, second, third, fourth = lines_of(tmp_path / "a.jsonl")
    assert first["messages"] == [{"role": "user", "content": "2+2?"}] and third["messages"][0]["content"] == "4?"
    assert second["reference"] == "3" and not any("reference" in one for one in (first, third, fourth))


def test_the_share_of_the_reference_counts_prompts_that_have_one() -> None:
    draws = [{"place": 0, "temperature": 0.5}]
    right = {"text": "4", "finish_reason": "stop", "draws": draws}
    told = _summary(
        "a", [{"reference": " 4", "answers": [right]}, {"answers": [right]}], SampleSettings(n=1, temperatures=(0.5,))
    )
    assert "of prompts that have one: 100.0% at 0.5" in told[-1]


def test_settings_that_cannot_be_or_were_others_are_refused(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, out = prompts(tmp_path), tmp_path / "a.jsonl"
    words = ["prefer", "sample", str(model), str(file), "--out", str(out), "--max-new-tokens", "3"]
    assert main([*words, "--n", "2"]) == 0
    before = out.read_bytes()
    for more, message in (
        (["--n", "3"], "sampling n (2 instead of 3)"), (["--n", "2", "--limit", "3"], "prompts count (5 instead of 3)"),
        (["--n", "0"], "--n: must be 1 or more"), (["--temperatures", "-1"], "--temperatures: must be 0 or more"),
        (["--temperatures", "0"], "4 of 4 answers would be drawn at temperature 0"), (["--top-p", "0"], "--top-p"),
        (["--limit", "0"], "--limit"),
    ):  # fmt: skip
        assert main([*words, *more]) == 2 and message in capsys.readouterr().err, more
    assert out.read_bytes() == before
    for missing, message in (
        ([str(tmp_path / "none"), str(file)], "no such run or model"),
        ([str(model), "none.jsonl"], "no file"),
    ):
        assert main(["prefer", "sample", *missing, "--out", str(tmp_path / "b.jsonl")]) == 2
        assert message in capsys.readouterr().err and not (tmp_path / "b.jsonl").exists()
    (tmp_path / "empty.jsonl").write_text('{"x": 1}\n', encoding="utf-8")
    with pytest.raises(FledgeError, match="there is no prompt in it: 1 × no known column"):
        draw(model, tmp_path / "empty.jsonl", tmp_path / "b.jsonl")


def test_the_header_tells_the_model_and_how_its_answers_were_drawn(model: Path, tmp_path: Path) -> None:
    draw(model, prompts(tmp_path), tmp_path / "a.jsonl", system="Be short.")
    header, first, *_ = lines_of(tmp_path / "a.jsonl")
    assert header["sampling"] == json.loads(json.dumps(SETTINGS.as_dict())) and header["about"]["model"] == str(model)
    assert len(header["model"]["weights"]) == 16 and header["prompts"]["count"] == 5
    assert first["messages"][0] == {"role": "system", "content": "Be short."}
