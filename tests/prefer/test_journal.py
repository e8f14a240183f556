"""Files that grow: what was written is read, whatever a kill cut off, and no other file is taken for one."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledge.errors import FledgeError
from fledge.prefer.journal import JournalWriter, read_journal

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**40), 2**40) | st.text(st.characters(codec="utf-8"), max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=6,
)
LINES = st.lists(st.dictionaries(st.text(max_size=4), VALUES, max_size=3), max_size=4)


def write(path: Path, lines: list[Any], log: list[str] | None = None, **header: Any) -> list[Any]:
    """Add lines to a file; returns all of its lines."""
    with JournalWriter.open(path, "answers", header, (log if log is not None else []).append) as writer:
        writer.append(lines)
        return list(writer.lines)


@given(LINES, LINES)
def test_lines_are_read_as_they_were_written_in_one_go_or_two(
    tmp_path_factory: pytest.TempPathFactory, first: list[Any], second: list[Any]
) -> None:
    folder = tmp_path_factory.mktemp("journal")
    assert write(folder / "two", first) == first and write(folder / "two", second) == first + second
    write(folder / "one", first + second)
    assert (folder / "one").read_bytes() == (folder / "two").read_bytes()
    assert read_journal(folder / "two", "answers").lines == first + second


def test_a_file_that_was_cut_anywhere_loses_at_most_the_last_line_and_goes_on_with_equal_bytes(tmp_path: Path) -> None:
    lines = [{"a": "猫\n"}, {"b": 1}, {"c": [1, 2]}]
    write(tmp_path / "whole", lines, x=1)
    content = (tmp_path / "whole").read_bytes()
    for cut in range(len(content) + 1):
        file, told = tmp_path / "cut", list[str]()
        file.write_bytes(content[:cut])
        with JournalWriter.open(file, "answers", {"x": 1}, told.append) as writer:
            assert writer.lines == lines[: len(writer.lines)]
            assert len(writer.lines) == max(0, content[:cut].count(b"\n") - 1)
            writer.append(lines[len(writer.lines) :])
        assert file.read_bytes() == content
        has_header = content[:cut].count(b"\n") > 0
        assert [f"{file}: its last line" in text for text in told] == [True] * (has_header and content[cut - 1 : cut] != b"\n")


def test_a_file_with_other_settings_is_not_gone_on_with_and_the_difference_is_named(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    write(file, [{"a": 1}], sampling={"n": 4, "seed": 0}, about={"model": "here"})
    before = file.read_bytes()
    write(file, [], sampling={"n": 4, "seed": 0}, about={"model": "elsewhere"})
    for settings, word in (
        ({"n": 8, "seed": 0}, "sampling n (4 instead of 8)"),
        ({"n": 4}, "sampling seed (0 instead of null)"),
    ):
        with pytest.raises(FledgeError) as caught:
            write(file, [], sampling=settings, about={})
        assert word in caught.value.text() and "--out" in caught.value.text()
    assert file.read_bytes() == before


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b'{"messages": []}\n', "a file of answers is needed here, and this is no such file"),
        (b'{"fledge": "ratings", "version": 1}\n', "this is a file of ratings"),
        (b'{"fledge": "answers", "version": 9}\n', "version 9, and this fledge reads version 1"),
        (b'{"fledge": "answers", "version": 1}\n{"a": \n{}\n', "a.jsonl:2: damaged"),
        (b'{"fledge": "answers", "version": 1}\n[1]\n', "a.jsonl:2: damaged: not a JSON object"),
        (b"", "this has no header"),
        (b"some text", "this has no header"),
    ],
)
def test_another_file_is_refused_in_words_and_left_as_it_is(tmp_path: Path, content: bytes, problem: str) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(content)
    with pytest.raises(FledgeError) as caught:
        read_journal(file, "answers")
    assert problem in caught.value.text()
    if content:
        with pytest.raises(FledgeError):
            write(file, [{}])
        assert file.read_bytes() == content


def test_a_file_that_is_missing_or_written_by_another_process_is_told(tmp_path: Path) -> None:
    with pytest.raises(FledgeError, match="does not exist"):
        read_journal(tmp_path / "none.jsonl", "answers")
    with JournalWriter.open(tmp_path / "a.jsonl", "answers", {}, print), pytest.raises(FledgeError, match="another process"):
        write(tmp_path / "a.jsonl", [])


def test_each_line_is_on_the_disk_when_append_returns(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    with JournalWriter.open(file, "answers", {}, print) as writer:
        for number in range(3):
            writer.append([{"n": number}])
            assert json.loads(file.read_bytes().splitlines()[-1]) == {"n": number}
        writer.keep(1)
        writer.append([{"n": 9}])
    assert read_journal(file, "answers").lines == [{"n": 0}, {"n": 9}]
