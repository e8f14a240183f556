"""Answers are read as they were written, equal ones are put together, and a damaged or unfinished file is told."""

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledge.errors import FledgeError
from fledge.prefer.answers import ANSWERS, Draw, as_line, merged, read_answers
from fledge.prefer.journal import JournalWriter
from fledge.run import silent
from tests.support.preferences import answer, answers_header, asked, write_answers

TEXTS = st.text(st.characters(codec="utf-8"), max_size=10).map(str.strip)
QUESTIONS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=10).filter(lambda text: text.strip())


@given(st.dictionaries(QUESTIONS, st.tuples(st.lists(TEXTS, min_size=1, max_size=4), st.none() | QUESTIONS), max_size=3))
def test_answers_are_read_as_they_were_written(
    tmp_path_factory: pytest.TempPathFactory, questions: dict[str, tuple[list[str], str | None]]
) -> None:
    prompts = [asked(question, *texts, reference=reference) for question, (texts, reference) in questions.items()]
    file = write_answers(tmp_path_factory.mktemp("answers") / "a.jsonl", *prompts)
    assert list(read_answers([str(file)]).prompts.values()) == prompts


def test_equal_answers_are_one_with_all_draws_and_the_ended_one_counts() -> None:
    cut, ended = answer("x", 0, "length"), answer("x", 1)
    (one,) = merged([cut, ended])
    assert one.finish_reason == "stop" and [draw.place for draw in one.draws] == [0, 1]
    assert [each.text for each in merged([answer("b"), answer("a"), answer("b")])] == ["b", "a"]


def test_answers_of_several_files_to_one_prompt_are_put_together(tmp_path: Path) -> None:
    one = write_answers(tmp_path / "one.jsonl", asked("q", "a", "b"))
    other = write_answers(tmp_path / "other.jsonl", asked("q", "b", "c"), asked("r", "d"))
    found = read_answers([str(one), str(other)])
    texts = [[each.text for each in prompt.answers] for prompt in found.prompts.values()]
    assert texts == [["a", "b", "c"], ["d"]] and len(found.hashes) == 2
    first = next(iter(found.prompts.values()))
    assert [len(each.draws) for each in first.answers] == [1, 2, 1] and isinstance(first.answers[0].draws[0], Draw)
    with pytest.raises(FledgeError, match="named twice"):
        read_answers([str(one), str(tmp_path / "." / "one.jsonl")])


def test_a_reference_that_one_of_the_files_has_is_kept(tmp_path: Path) -> None:
    one = write_answers(tmp_path / "one.jsonl", asked("q", "a"))
    other = write_answers(tmp_path / "other.jsonl", asked("q", "b", reference="b"))
    for paths in ((one, other), (other, one)):
        (found,) = read_answers([str(path) for path in paths]).prompts.values()
        assert found.prompt.reference == "b" and len(found.answers) == 2


def test_a_file_whose_sampling_was_interrupted_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    with JournalWriter.open(file, ANSWERS, answers_header(2), silent) as writer:
        writer.append([as_line(asked("q", "a"))])
    with pytest.raises(FledgeError, match="answers to 1 of 2 prompts"):
        read_answers([str(file)])


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"text":"good"', '"text":"better"'),
        ('"content":"q"', '"content":"r"'),
        ('"tokens"', '"ids"'),
        ('"messages"', '"turns"'),
    ],
)
def test_an_edited_file_is_damaged_at_a_line(tmp_path: Path, old: str, new: str) -> None:
    file = write_answers(tmp_path / "a.jsonl", asked("p", "x"), asked("q", "good"))
    text = file.read_text(encoding="utf-8")
    assert text.count(old) in (1, 2)
    *head, last = text.splitlines()
    file.write_text("\n".join([*head, last.replace(old, new)]) + "\n", encoding="utf-8")
    assert json.loads(last.replace(old, new))
    with pytest.raises(FledgeError, match=r"a\.jsonl:3: damaged"):
        read_answers([str(file)])
