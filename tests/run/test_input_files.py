"""Files that a user names are checked before they are read: pipes, devices, pointers of Git LFS, missing permission."""

import os
from pathlib import Path

import pytest

from fledge.data.reading.records import files_of
from fledge.errors import FledgeError
from fledge.recipe.schema import Source
from fledge.run.input_files import check_input_file

POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:%064d\nsize 12345\n" % 7


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.parquet", "a.jsonl.gz", "a.txt", "a.arrow"])
def test_a_pointer_of_git_lfs_is_called_so(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(POINTER)
    for path in (tmp_path / name, tmp_path, tmp_path / "*"):
        with pytest.raises(FledgeError, match=r"key: .* is a Git LFS pointer, not the file itself\n  → run `git lfs pull`"):
            files_of(Source(path=str(path)), "key")


def test_a_pipe_or_device_is_refused_without_waiting(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.jsonl")
    (tmp_path / "b.jsonl").symlink_to("/dev/zero")
    for name in ("a.jsonl", "b.jsonl"):
        with pytest.raises(FledgeError, match=r"key: .* is not a regular file"):
            files_of(Source(path=str(tmp_path / name)), "key")
        with pytest.raises(FledgeError, match="is not a regular file"):
            check_input_file(tmp_path / name)


def test_a_missing_file_is_told_with_the_place_that_was_searched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for path in ("../data/a.jsonl", "none/*.jsonl"):
        with pytest.raises(FledgeError, match="there is no file") as caught:
            files_of(Source(path=path), "key")
        assert f"looked in {tmp_path}: relative paths start where the command runs" in str(caught.value)
    with pytest.raises(FledgeError, match="there is no file") as caught:
        files_of(Source(path=str(tmp_path / "none.jsonl")), "key")
    assert "check the path" in str(caught.value) and "looked in" not in str(caught.value)


def test_a_file_that_may_not_be_read_is_not_called_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a.jsonl").write_text("{}")

    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(FledgeError, match=r"key: cannot read '.*a\.jsonl': Permission denied"):
        files_of(Source(path=str(tmp_path / "a.jsonl")), "key")


def test_a_folder_without_rows_names_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "model.bin").write_bytes(b"")
    with pytest.raises(FledgeError, match=r"has no file of rows\n  → it holds model\.bin"):
        files_of(Source(path=str(tmp_path)), "key")
