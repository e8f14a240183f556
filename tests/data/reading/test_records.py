"""Every format, compression and encoding gives equal rows with their locations, in one range or several, in constant memory."""

import csv
import gzip
import io
import json
import subprocess
import sys
import tracemalloc
from decimal import Decimal
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
import zstandard
from hypothesis import example, given
from hypothesis import strategies as st

from fledge.data.reading.arrays import json_array
from fledge.data.reading.blocks import blocks_of
from fledge.data.reading.formats import Record, line_batches
from fledge.data.reading.hub import read_hub
from fledge.data.reading.records import FileRange, file_notices, files_of, ignored_files, read, row_location, spans_of
from fledge.data.reading.tables import csv_rows
from fledge.errors import FledgeError
from fledge.recipe.schema import Source
from tests.support.data_files import COMPRESS, CUTS, ROWS, encode_rows, pieces, records, values

ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)


@pytest.mark.parametrize("compression", COMPRESS)
@pytest.mark.parametrize("ending", [".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet"])
def test_every_format_and_compression_gives_equal_rows(tmp_path: Path, ending: str, compression: str) -> None:
    content = COMPRESS[compression](encode_rows(ending, ROWS))
    for name in (f"a.b{ending}{compression}", f"A{ending}{compression}".upper()):
        (tmp_path / name).write_bytes(content)
        assert values(tmp_path / name) == ROWS
    assert len(files_of(Source(path=str(tmp_path)), "key")) == 2


def test_rows_are_located_by_line_or_index(tmp_path: Path) -> None:
    for ending, first in ((".jsonl", ":1"), (".json", "#0"), (".parquet", "#0"), (".csv", ":2"), (".tsv", ":2")):
        file = tmp_path / f"a{ending}"
        file.write_bytes(encode_rows(ending, ROWS))
        assert row_location(str(file), records(file)[0].number) == f"{file}{first}"
    (tmp_path / "a.jsonl").write_bytes(b"\n\r\n" + encode_rows(".jsonl", ROWS[:1]) + b"\n \n" + encode_rows(".jsonl", ROWS[:1]))
    assert [record.number for record in records(tmp_path / "a.jsonl")] == [3, 5]
    assert [record.number for record in records(tmp_path / "a.csv")] == [2, 4, 6, 8, 10, 12, 14]
    assert row_location("a.JSONL.gz", 12) == "a.JSONL.gz:12"
    assert row_location("a.json.zst", 3) == "a.json.zst#3"
    assert row_location("a.txt", 0) == "a.txt"
    assert row_location("owner/dataset", 3) == "owner/dataset#3"


def test_source_determines_the_documents_of_a_text_file(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(b"\xef\xbb\xbfone\r\ntwo \n\n \nthree")
    expected = {
        "line": [(1, "one"), (2, "two "), (5, "three")],
        "paragraph": [(1, "one\r\ntwo "), (5, "three")],
        "file": [(0, "one\r\ntwo \n\n \nthree")],
    }
    for documents, expected_rows in expected.items():
        assert [(record.number, record.value["text"]) for record in records(file, documents=documents)] == expected_rows


@given(
    lines=st.lists(
        st.sampled_from([b'{"a": 1}', b"[2]", b"", b" ", b"{broken", b'"\xff"', "春眠".encode(), b"\r"]), max_size=30
    ),
    end=st.sampled_from([b"", b"\n", b"\r\n"]),
    target=st.integers(1, 200),
    ending=st.sampled_from([".jsonl", ".txt"]),
)
def test_ranges_of_a_file_of_lines_give_all_its_rows_once(
    tmp_path_factory: pytest.TempPathFactory, lines: list[bytes], end: bytes, target: int, ending: str
) -> None:
    file = tmp_path_factory.getbasetemp() / f"parts{ending}"
    file.write_bytes(b"\n".join(lines) + end)
    spans = spans_of([file], Source(path=str(file)), target)
    assert records(file, target) == records(file)
    if len(spans) > 1:
        assert [span.start for span in spans] == [0, *(span.stop for span in spans[:-1])]
        assert spans[-1].stop == file.stat().st_size
        assert all(json.loads(json.dumps(vars(span))) == vars(span) for span in spans)


def test_parquet_file_is_split_between_row_groups(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"text": [f"row {i}" for i in range(1000)]}), file, row_group_size=90)
    spans = spans_of([file], Source(path=str(file)), 1)
    assert [span.first for span in spans] == list(range(0, 1000, 90))
    assert len(spans_of([file], Source(path=str(file)), 1 << 30)) == 1
    assert [(record.number, record.value["text"]) for record in records(file, 1)] == [(i, f"row {i}") for i in range(1000)]
    assert [record.number for record in read(spans[3], Source(path=str(file)))] == list(range(270, 360))


def test_unsplittable_file_is_one_range_and_an_empty_file_none(tmp_path: Path) -> None:
    for ending, compression in ((".jsonl", ".gz"), (".json", ""), (".csv", ""), (".parquet", ".zst")):
        name = f"a{ending}{compression}"
        (tmp_path / name).write_bytes(COMPRESS[compression](encode_rows(ending, ROWS)))
        assert len(spans_of([tmp_path / name], Source(path=name), 1)) == 1
    (tmp_path / "u.jsonl").write_bytes(encode_rows(".jsonl", ROWS).decode().encode("utf-16"))
    assert len(spans_of([tmp_path / "u.jsonl"], Source(path="u"), 1)) == 1
    (tmp_path / "e.jsonl").write_bytes(b"")
    assert spans_of([tmp_path / "e.jsonl"], Source(path="e"), 1) == []


@given(content=st.lists(st.sampled_from([b"a", b"bc", b"\n", b"\r\n", b"\n\n"]), max_size=30).map(b"".join), cuts=CUTS)
def test_lines_do_not_depend_on_block_boundaries(content: bytes, cuts: list[int]) -> None:
    lines = [line for _, batch in line_batches(pieces(content, cuts)) for line in batch]
    assert lines == (content.removesuffix(b"\n").split(b"\n") if content else [])
    firsts = [(first, len(batch)) for first, batch in line_batches(pieces(content, cuts))]
    assert all(first + count == after for (first, count), (after, _) in pairwise(firsts))


@given(rows=st.lists(ANY_JSON, max_size=6), indent=st.sampled_from([None, 0, 3]), ascii_only=st.booleans(), cuts=CUTS)
@example(rows=['"', "\\", '\\"', "]", "}", ",", "[{", "\\\\"], indent=None, ascii_only=False, cuts=list(range(60)))
@example(rows=[{"]": "}"}, [], {}, ""], indent=0, ascii_only=True, cuts=list(range(60)))
def test_array_elements_do_not_depend_on_block_boundaries(
    rows: list[Any], indent: int | None, ascii_only: bool, cuts: list[int]
) -> None:
    content = json.dumps(rows, indent=indent, ensure_ascii=ascii_only).encode()
    result = list(json_array(pieces(content, cuts), Path("a.json"), "array", "utf-8"))
    assert result == [Record(index, value) for index, value in enumerate(rows)]


@given(rows=st.lists(st.dictionaries(st.text(), ANY_JSON, max_size=3), min_size=1, max_size=4), cuts=CUTS, other=ANY_JSON)
def test_only_list_of_objects_in_an_object_is_read_as_the_array(rows: list[dict], cuts: list[int], other: Any) -> None:
    content = json.dumps(
        {"version": 1, "tags": ["a", "[{", {"no": "row"}], "meta": {"n": [{}, {}], "o": other}, "data": rows, "end": []}
    ).encode()
    result = list(json_array(pieces(content, cuts), Path("a.json"), "object", "utf-8"))
    assert [record.value for record in result] == rows


def test_json_file_of_lines_or_with_an_inner_list_is_read_with_a_notice(tmp_path: Path) -> None:
    lines, wrapped, array = (tmp_path / f"{name}.json" for name in ("lines", "wrapped", "array"))
    lines.write_bytes(encode_rows(".jsonl", ROWS))
    wrapped.write_text(json.dumps({"version": "1.0", "data": ROWS}, indent=1), encoding="utf-8")
    array.write_bytes(encode_rows(".json", ROWS))
    assert values(lines) == values(wrapped) == values(array) == ROWS
    notices = [file_notices(file, Source(path="x")) for file in (lines, wrapped, array)]
    assert notices == [["one object per line: read like .jsonl"], ["rows are read from the list inside an object"], []]
    assert [record.number for record in records(lines)] == [record.number for record in records(array)]


def test_invalid_array_element_is_reported_with_its_line(tmp_path: Path) -> None:
    rows = [json.dumps({"text": "x", "n": [1, 2]}, indent=2) for _ in range(5)]
    rows[3] = '\n\n{"text":\n}'
    (tmp_path / "a.json").write_text("[\n" + ",\n".join(rows) + "\n]\n", encoding="utf-8")
    (broken,) = [record for record in records(tmp_path / "a.json") if record.broken]
    assert (broken.number, broken.detail.split(":")[0]) == (3, "line 25")


FIELDS = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\r\0"), max_size=8)


@given(
    rows=st.lists(st.tuples(FIELDS, FIELDS, FIELDS), max_size=6),
    delimiter=st.sampled_from(",;\t"),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
    end=st.sampled_from(["\n", "\r\n"]),
    cuts=CUTS,
)
def test_csv_rows_equal_the_rows_written(rows: list, delimiter: str, quoting: Any, end: str, cuts: list[int]) -> None:
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, quoting=quoting, lineterminator=end).writerows([("a", "b", "c"), *rows])
    result = list(csv_rows(pieces(text.getvalue().encode(), cuts), Path("a.csv"), "utf-8"))
    assert [record.value for record in result] == [dict(zip("abc", row, strict=True)) for row in rows]
    numbers = [2 + sum(field.count("\n") for row in rows[:i] for field in row) + i for i in range(len(rows))]
    assert [record.number for record in result] == numbers


def test_unnamed_csv_column_is_named_by_its_position(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(b"\xef\xbb\xbf,text\r\n0,x\r\n1,y\r\n")
    assert values(tmp_path / "a.csv") == [{"column 1": "0", "text": "x"}, {"column 1": "1", "text": "y"}]
    (tmp_path / "b.csv").write_bytes(b"text\n\nx\n")
    assert values(tmp_path / "b.csv") == [{"text": "x"}]


@pytest.mark.parametrize("size", [0, 1, 100, 3 << 20])
@pytest.mark.parametrize("compress", [gzip.compress, zstandard.compress])
def test_compressed_files_with_several_members_and_padding_are_read_completely(
    tmp_path: Path, size: int, compress: Any
) -> None:
    content = bytes(range(10, 250)) * (size // 240 + 1)
    file = tmp_path / ("a.jsonl.gz" if compress is gzip.compress else "a.jsonl.zst")
    padding = bytes(70_000) if compress is gzip.compress else b"\x50\x2a\x4d\x18\x03\0\0\0abc"
    file.write_bytes(compress(content) + compress(b"") + compress(content) + padding)
    assert b"".join(blocks_of(file)) == content * 2


@pytest.mark.parametrize("ending", ["gz", "zst"])
def test_rows_before_a_damage_are_read(tmp_path: Path, ending: str) -> None:
    lines = [b'{"text": "%d"}' % (i * 7919**5) for i in range(3000)]
    members = [COMPRESS["." + ending](b"\n".join(lines[i : i + 100]) + b"\n") for i in range(0, 3000, 100)]
    complete = b"".join(members)
    file = tmp_path / f"a.jsonl.{ending}"
    for cut in range(0, len(complete), len(complete) // 37):
        file.write_bytes(complete[:cut])
        result = records(file)
        ends = [sum(map(len, members[:i])) for i in range(31)]
        valid = [record for record in result if not record.broken]
        assert len(valid) >= 100 * (sum(end <= cut for end in ends) - 1)
        assert [record.value for record in valid] == [json.loads(line) for line in lines[: len(valid)]]
        assert [record.broken for record in result[len(valid) :]] == ([] if cut in ends else ["damaged file"])
        assert cut in ends or (result[-1].number, "lost" in result[-1].detail) == (len(valid) + 1, True)


def test_parquet_values_are_python_values(tmp_path: Path) -> None:
    rows = [
        {
            "messages": [{"role": "user", "content": "q"}],
            "n": 1,
            "x": 0.5,
            "when": None,
            "tags": ["a", None],
            "d": Decimal("1.5"),
        },
        {"messages": [], "n": None, "x": None, "when": None, "tags": None, "d": None},
    ]
    table = pa.Table.from_pylist(rows)
    table = table.append_column("kind", pa.array(["a", "b"]).dictionary_encode())
    parquet.write_table(table, tmp_path / "a.parquet")
    assert values(tmp_path / "a.parquet") == [{**row, "kind": kind} for row, kind in zip(rows, "ab", strict=True)]


def test_files_of_a_folder_or_glob_are_sorted_by_name(tmp_path: Path) -> None:
    for name in ("b.jsonl", "a.jsonl.gz", "C.TXT", "notes.md", ".hidden.jsonl", "._a.jsonl", "d.gz"):
        (tmp_path / name).write_bytes(b"")
    (tmp_path / "inner").mkdir()
    (tmp_path / "inner" / "z.json").write_bytes(b"")
    folder = Source(path=str(tmp_path))
    assert [file.name for file in files_of(folder, "key")] == ["C.TXT", "a.jsonl.gz", "b.jsonl"]
    assert [file.name for file in ignored_files(folder)] == ["._a.jsonl", ".hidden.jsonl", "d.gz", "inner", "notes.md"]
    assert [file.name for file in files_of(Source(path=f"{tmp_path}/**/*.json*"), "key")] == ["a.jsonl.gz", "b.jsonl", "z.json"]
    assert ignored_files(Source(path=f"{tmp_path}/*.jsonl")) == []
    (tmp_path / "odd[1].jsonl").write_bytes(b"")
    assert [file.name for file in files_of(Source(path=f"{tmp_path}/odd[1].jsonl"), "key")] == ["odd[1].jsonl"]
    with pytest.raises(FledgeError, match="its extension is not one of"):
        files_of(Source(path=f"{tmp_path}/*"), "key")


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.json.gz", "a.csv.zst", "a.txt", "a.parquet"])
def test_large_file_is_read_in_constant_memory(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    ending, compression = (*file.suffixes, "")[:2]
    rows = [{"text": f"{i} " + "text " * 200} for i in range(8_000)]
    content = encode_rows(ending, rows) if ending != ".txt" else b"\n".join(row["text"].encode() for row in rows)
    file.write_bytes(COMPRESS[compression](content))
    source = Source(path=str(file))
    del rows, content
    (span,) = spans_of([file], source, 1 << 30)
    tracemalloc.start()
    count = sum(1 for _ in read(span, source))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert count == 8_000
    assert peak < 6 << 20


def test_reading_is_lazy(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    file.write_bytes(b'{"text": "x"}\n' * 10 + b"\xff\n" * 1000)
    source = Source(path=str(file))
    assert [record.number for record in islice(read(FileRange(str(file), 0, None, 1), source), 3)] == [1, 2, 3]


def test_hub_dataset_is_streamed_and_any_failure_is_one_error(tmp_path: Path) -> None:
    pytest.importorskip("datasets")
    (tmp_path / "train.jsonl").write_bytes(encode_rows(".jsonl", ROWS))
    (tmp_path / "test.jsonl").write_bytes(encode_rows(".jsonl", ROWS[:2]))
    assert [(record.number, record.value) for record in read_hub(Source(hub=str(tmp_path)), "key")] == list(enumerate(ROWS))
    assert [record.value for record in read_hub(Source(hub=str(tmp_path), split="test"), "key")] == ROWS[:2]
    for source in (Source(hub=str(tmp_path), split="nothing"), Source(hub="nobody/nothing-at-all"), Source(hub="")):
        with pytest.raises(FledgeError, match=r"stages\.x: cannot read the dataset"):
            list(read_hub(source, "stages.x"))


def test_real_files_give_the_rows_that_json_gives(shared_data: Path) -> None:
    files = [
        *shared_data.glob("llamafactory/*_demo.json*"),
        *shared_data.glob("*/*.jsonl"),
        *shared_data.glob("poetry/*7000.json"),
    ]
    for file in files:
        text = file.read_text(encoding="utf-8")
        expected = json.loads(text) if file.suffix == ".json" else [json.loads(line) for line in text.splitlines() if line]
        assert values(file, target=1 << 17) == expected
        assert file_notices(file, Source(path="x")) == []
    assert len(files) > 20


def test_optional_libraries_are_imported_only_if_needed() -> None:
    code = "import sys, fledge.data.reading.records; print([n for n in ('pyarrow', 'datasets') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
