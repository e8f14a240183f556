"""Malformed files and rows: each is a dropped row with location and reason, or one error that names the file."""

import gzip
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from fledge.data.parsing.columns import RowError
from fledge.data.reading.formats import ROW_LIMIT
from fledge.data.reading.records import files_of, read, row_location, spans_of
from fledge.errors import FledgeError
from fledge.recipe.schema import Source
from tests.support.malformed.binary_files import COMPRESSED, GROUPS, LONG, PARQUET
from tests.support.malformed.case import GOOD, KEY, LINE, Case, as_csv, as_parquet
from tests.support.malformed.json_files import JSON, JSONL, SHAPES
from tests.support.malformed.text_files import CSV, TEXT
from tests.support.parsing import parse_row


def outcome(file: Path, source: Source, kind: str) -> tuple[int, dict[str, str]]:
    """The number of usable rows, and the reasons of the others by location, read as a stage reads. A small target gives many
    ranges."""
    good, bad = 0, {}
    for span in spans_of(files_of(source, KEY), source, 64):
        for record in read(span, source):
            location = row_location(span.file, record.number).removeprefix(str(file))
            assert location not in bad or source.documents == "file"
            if record.broken:
                assert len(record.broken) < 40
                bad[location] = record.broken
                continue
            try:
                parse_row(record.value, source, kind)
                good += 1
            except RowError as error:
                bad[location] = error.reason
    return good, bad


NAMES = [
    Case(name="a document", file="a.docx", content=LINE, error="this is a document of a word processor"),
    Case(name="a file of an unknown format", file="a.what", content=LINE, error="its extension is not one of"),
    Case(name="a file without an ending", file="rows", content=LINE, error="its extension is not one of"),
    Case(
        name="a compressed file of no format", file="rows.gz", content=gzip.compress(LINE), error="its extension is not one of"
    ),
    Case(name="a hidden name that looks like an ending", file=".jsonl", content=LINE, error="its extension is not one of"),
]
CASES = [*JSONL, *JSON, *CSV, *TEXT, *COMPRESSED, *PARQUET, *SHAPES, *NAMES]


def test_there_are_many_cases_with_unique_names() -> None:
    assert len(CASES) >= 100
    assert max(Counter(case.name for case in CASES).values()) == 1


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_malformed_row_is_reported_with_location_and_reason_and_others_stay(tmp_path: Path, case: Case) -> None:
    file = tmp_path / case.file
    file.write_bytes(case.content)
    source = Source(path=str(file), **case.source)
    if case.error:
        with pytest.raises(FledgeError) as caught:
            outcome(file, source, case.kind)
        assert case.error in str(caught.value)
        assert str(file) in str(caught.value) or KEY in str(caught.value)
        return
    good, bad = outcome(file, source, case.kind)
    assert good == case.good
    assert bad.keys() == case.bad.keys()
    assert all(expected in (None, bad[location]) for location, expected in case.bad.items())


@pytest.mark.parametrize("path", ["nowhere.jsonl", "*.nothing", "~nobody-at-all/a.jsonl", "a\0b.jsonl", "x" * 5000, ""])
def test_missing_path_is_an_error_with_its_recipe_key(tmp_path: Path, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FledgeError, match=KEY):
        files_of(Source(path=path), KEY)


@pytest.mark.parametrize("make", [lambda path: path.mkdir(), lambda path: path.symlink_to("gone")], ids=["folder", "link"])
def test_folder_or_dead_link_named_like_a_data_file_is_ignored(tmp_path: Path, make: Callable[[Path], None]) -> None:
    make(tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl").write_bytes(LINE)
    assert files_of(Source(path=str(tmp_path)), KEY) == [tmp_path / "b.jsonl"]


def test_file_that_was_removed_or_shortened_is_an_error_with_its_name(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b"\n".join([LINE] * 9))
    source = Source(path=str(file))
    first, *_, last = spans_of([file], source, 100)
    file.write_bytes(LINE)
    with pytest.raises(FledgeError, match=r"a\.jsonl: the file has become shorter"):
        list(read(last, source))
    file.unlink()
    with pytest.raises(FledgeError, match=r"a\.jsonl: cannot read it: No such file"):
        list(read(first, source))


def test_row_above_the_size_limit_is_dropped(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    with file.open("wb") as rows:
        rows.write(LINE + b'\n{"text": "')
        rows.writelines(b"x" * (1 << 20) for _ in range((ROW_LIMIT >> 20) + 1))
        rows.write(b'"}\n' + LINE)
    reason = f"row larger than {ROW_LIMIT >> 20} MiB"
    assert outcome(file, Source(path=str(file)), "pretrain") == (2, {":2": reason})
    array = tmp_path / "b.json"
    array.write_bytes(b"[" + file.read_bytes().replace(b"}\n", b"},\n") + b"]")
    assert outcome(array, Source(path=str(array)), "pretrain") == (2, {"#1": reason})
    text = file.rename(tmp_path / "c.txt")
    assert outcome(text, Source(path=str(text)), "pretrain") == (2, {":2": reason})
    assert outcome(text, Source(path=str(text), documents="paragraph"), "pretrain") == (0, {":1": reason})
    assert outcome(text, Source(path=str(text), documents="file"), "pretrain") == (0, {"": reason})


VALID_FILES = {
    "a.jsonl": b"\n".join([LINE] * 9),
    "a.json": json.dumps({"n": 1, "rows": [GOOD] * 9}, indent=1).encode(),
    "b.json": json.dumps([GOOD] * 9).encode(),
    "a.csv": as_csv('"x ""y""\nz",w'),
    "a.tsv": b"text\tprompt\na\tb\nc\td",
    "a.txt": "春眠不觉晓\n\n处处闻啼鸟\n".encode(),
    "b.txt": "春眠不觉晓\n处处闻啼鸟\n".encode("utf-16"),
    "c.txt": ("春眠不觉晓，处处闻啼鸟\n" * 9).encode("gb18030"),
    "a.jsonl.gz": gzip.compress(LONG),
    "a.json.zst": zstandard.compress(json.dumps([GOOD] * 9).encode()),
    "a.parquet": GROUPS,
    "b.parquet": as_parquet([GOOD] * 9),
}


@given(st.data())
def test_random_damage_gives_only_rows_and_user_errors(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    name = data.draw(st.sampled_from(sorted(VALID_FILES)))
    content = VALID_FILES[name]
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(content)))
        cut = data.draw(st.integers(0, 8))
        content = content[:at] + data.draw(st.binary(max_size=8)) + content[at + cut :]
    file = tmp_path_factory.getbasetemp() / f"damaged-{name}"
    file.write_bytes(content)
    source = Source(path=str(file), documents=data.draw(st.sampled_from(["line", "paragraph", "file"])))
    try:
        good, bad = outcome(file, source, "pretrain")
    except FledgeError as error:
        assert str(file) in str(error)
    else:
        assert good + len(bad) >= 0
