"""Parquet and Arrow tables: saved datasets are read in their order, and a small file cannot take much memory."""

import json
import resource
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as parquet
import pytest
from pyarrow import ipc

from fledge.data.reading.formats import ROW_LIMIT, TOO_LARGE
from fledge.data.reading.records import files_of, ignored_files, read, spans_of
from fledge.errors import FledgeError
from fledge.recipe.schema import Source
from tests.support.data_files import ROWS, records, values

LARGE = "a" * (15 << 20)


def repeated(times: int) -> pa.DictionaryArray:
    """One large value many times, which takes memory only where it is read."""
    return pa.DictionaryArray.from_arrays(pa.array([0] * times, pa.int32()), pa.array([LARGE]))


def turns_of(rows: int, turns: int) -> pa.ListArray:
    """Rows of many turns that all have the same large content."""
    contents = pa.StructArray.from_arrays([repeated(rows * turns)], names=["content"])
    return pa.ListArray.from_arrays(pa.array(range(0, rows * turns + 1, turns), pa.int32()), contents)


BOMBS: dict[str, tuple[Callable[[], pa.Table], dict[str, Any]]] = {  # each of a few kilobytes
    "one value in every row": (lambda: pa.table({"text": repeated(256)}), {}),
    "plain values": (lambda: pa.table({"text": [LARGE + str(number) for number in range(40)]}), {"use_dictionary": False}),
    "one huge value": (lambda: pa.table({"text": ["a" * (600 << 20)]}), {}),
    "one value many times in a row": (lambda: pa.table({"messages": turns_of(8, 40)}), {}),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", BOMBS)
def test_a_small_parquet_file_cannot_take_much_memory(tmp_path: Path, name: str) -> None:
    make_table, options = BOMBS[name]
    file = tmp_path / "a.parquet"
    parquet.write_table(make_table(), file, compression="zstd", store_schema=False, **options)  # as plain values
    assert file.stat().st_size < 200_000
    code = (
        "import sys; from tests.support.data_files import records; from pathlib import Path;"
        "print(sum(record.broken is None for record in records(Path(sys.argv[1]))))"
    )
    limit = 3 << 30
    done = subprocess.run(
        [sys.executable, "-c", code, str(file)],
        capture_output=True,
        text=True,
        check=True,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_DATA, (limit, limit)),
    )
    assert int(done.stdout) == 0


def test_values_of_a_dictionary_are_converted_a_few_rows_at_a_time(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    parquet.write_table(pa.table({"text": repeated(12)}), file)
    source = Source(path=str(file))
    tracemalloc.start()
    assert all(record.value == {"text": LARGE} for record in read(spans_of([file], source, 1 << 30)[0], source))
    assert tracemalloc.get_traced_memory()[1] < 8 * len(LARGE)
    tracemalloc.stop()


def test_a_large_row_of_a_table_is_dropped_and_its_neighbours_stay(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    noise = bytes(range(33, 123)) * (ROW_LIMIT // 90 + 1)
    texts = ["a", noise.decode(), "b"]
    parquet.write_table(pa.table({"text": texts}), file, compression="none")
    assert [(record.broken, record.number) for record in records(file)] == [(None, 0), (TOO_LARGE, 1), (None, 2)]


def test_values_that_repeat_are_read_as_usual(tmp_path: Path) -> None:
    file = tmp_path / "a.parquet"
    rows = [{"text": "the same text " * 20, "tags": ["a"] * 50}] * 30_000
    parquet.write_table(pa.Table.from_pylist(rows), file)
    assert values(file) == rows


def save_to_disk(folder: Path, parts: dict[str, list[dict]]) -> Path:
    """A folder as `datasets` saves one: Arrow streams, and the list of them."""
    folder.mkdir()
    for name, rows in parts.items():
        table = pa.Table.from_pylist(rows)
        with pa.OSFile(str(folder / name), "wb") as sink, ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table, max_chunksize=3)
    state = {"_data_files": [{"filename": name} for name in parts], "_fingerprint": "x", "_split": None}
    (folder / "state.json").write_text(json.dumps(state))
    (folder / "dataset_info.json").write_text(json.dumps({"features": {"prompt": {"dtype": "string"}}}))
    return folder


def test_a_saved_dataset_is_read_in_the_order_that_it_names(tmp_path: Path) -> None:
    folder = save_to_disk(tmp_path / "saved", {"data-00001.arrow": ROWS[:4], "data-00000.arrow": ROWS[4:]})
    (folder / "cache-1234.arrow").write_bytes(b"")
    files = files_of(Source(path=str(folder)), "key")
    assert [file.name for file in files] == ["data-00001.arrow", "data-00000.arrow"]
    assert [row for file in files for row in values(file)] == ROWS
    assert [record.number for record in records(files[0])] == [0, 1, 2, 3]


def test_a_saved_dataset_of_the_library_is_read(tmp_path: Path) -> None:
    datasets = pytest.importorskip("datasets")
    dataset = datasets.Dataset.from_list(ROWS)
    dataset.save_to_disk(str(tmp_path / "one"))
    assert [row for file in files_of(Source(path=str(tmp_path / "one")), "key") for row in values(file)] == ROWS
    datasets.DatasetDict({"train": dataset, "test": dataset}).save_to_disk(str(tmp_path / "splits"))
    with pytest.raises(FledgeError, match=f"holds a dataset in splits: train, test\n  → write path: {tmp_path}/splits/train"):
        files_of(Source(path=str(tmp_path / "splits")), "key")


def test_an_incomplete_saved_dataset_is_an_error(tmp_path: Path) -> None:
    folder = save_to_disk(tmp_path / "saved", {"a.arrow": ROWS, "b.arrow": ROWS})
    (folder / "b.arrow").unlink()
    with pytest.raises(FledgeError, match=r"key: the saved dataset .* lacks its file b\.arrow"):
        files_of(Source(path=str(folder)), "key")


def test_descriptions_of_a_dataset_are_no_rows(tmp_path: Path) -> None:
    (tmp_path / "dataset_info.json").write_text('{"a": {"file_name": "a.jsonl"}}')
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n')
    assert [file.name for file in files_of(Source(path=str(tmp_path)), "key")] == ["a.jsonl"]
    assert [file.name for file in ignored_files(Source(path=str(tmp_path)))] == ["dataset_info.json"]


@pytest.mark.parametrize("content", [b"", b"not arrow", b"ARROW1\0\0", bytes(100)])
def test_a_file_that_is_no_arrow_is_an_error_or_empty(tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "a.arrow"
    file.write_bytes(content)
    if not content:
        assert records(file) == []
        return
    with pytest.raises(FledgeError, match="not a readable Arrow file"):
        records(file)


def test_rows_before_a_damage_of_an_arrow_file_are_read(tmp_path: Path) -> None:
    file = save_to_disk(tmp_path / "saved", {"a.arrow": ROWS}) / "a.arrow"
    file.write_bytes(file.read_bytes()[:-200])
    result = records(file)
    kept = [record.value for record in result if not record.broken]
    assert kept == ROWS[: len(kept)] and 0 < len(kept) < len(ROWS)
    assert [record.broken for record in result[len(kept) :]] == ["damaged file"]
