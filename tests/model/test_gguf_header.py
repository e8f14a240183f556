"""Damaged GGUF files: each is an error that says what is wrong, and no number of a header is believed before it is checked."""

import os
import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fledge.errors import FledgeError
from fledge.model.gguf.directory import gguf_directory
from fledge.model.gguf.header import read_header
from tests.export.exporting import write_model

gguf = pytest.importorskip("gguf")
from tests.support.gguf_files import export_gguf  # noqa: E402 - it needs the package gguf


@pytest.fixture(scope="module")
def good(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A GGUF file of a small model."""
    folder = tmp_path_factory.mktemp("gguf")
    with pytest.MonkeyPatch.context() as patch:
        return export_gguf(write_model(folder / "model", tie_word_embeddings=False), folder / "out", patch, "f16")


def _text(value: str) -> bytes:
    return struct.pack("<Q", len(value)) + value.encode()


def _file(folder: Path, tensors: int, pairs: int, rest: bytes, version: int = 3) -> Path:
    """A file with these counts in its header."""
    path = folder / "x.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", version, tensors, pairs) + rest)
    return path


def _tensor(name: str, shape: tuple[int, ...], kind: int = 0, offset: int = 0) -> bytes:
    return _text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


def test_a_sound_file_is_read_as_the_package_gguf_reads_it(good: Path) -> None:
    header, reader = read_header(good), gguf.GGUFReader(good)
    for name, value in header.settings.items():
        assert reader.fields[name].contents() == value, name
    assert set(header.settings) == {name for name in reader.fields if not name.startswith("GGUF.")}
    places = {tensor.name: (int(tensor.data_offset), int(tensor.n_bytes), tensor.tensor_type.name) for tensor in reader.tensors}
    assert {each.name: (each.start, each.size, each.type_name) for each in header.tensors.values()} == places


def test_a_truncated_file_says_both_sizes_wherever_it_is_cut(good: Path, tmp_path: Path) -> None:
    size, copy = good.stat().st_size, tmp_path / "x.gguf"
    copy.write_bytes(good.read_bytes())
    os.truncate(copy, size - 40)
    with pytest.raises(FledgeError, match=rf"truncated: it has {size - 40:,} bytes, its header says [\d,]+; 1 of \d+ tensors"):
        read_header(copy)
    for left in (0, 3, 4, 12, 24, 30, 200, 5000, size // 2):
        os.truncate(copy, left) if left < copy.stat().st_size else copy.write_bytes(good.read_bytes()[:left])
        with pytest.raises(FledgeError):
            read_header(copy)
        copy.write_bytes(good.read_bytes())


@pytest.mark.parametrize(("tensors", "pairs", "rest", "message"), [
    (2**40, 0, b"", "tensors do not fit into"),
    (0, 2**63, b"", "settings do not fit into"),
    (0, 1, struct.pack("<Q", 2**62) + b"\0" * 20, r"the name of a setting has [\d,]+ bytes"),
    (0, 1, _text("a") + struct.pack("<IQ", 8, 2**62), r"a needs [\d,]+ bytes at byte"),
    (0, 1, _text("a") + struct.pack("<IIQ", 9, 4, 2**60), "values of a do not fit"),
    (0, 1, _text("a") + struct.pack("<IIQ", 9, 8, 2**60), "values of a do not fit"),
    (0, 1, _text("a") + struct.pack("<I", 13) + b"\0" * 20, "a has the type 13"),
    (0, 1, _text("a") + struct.pack("<IIQIQIQIQ", 9, 9, 1, 9, 1, 9, 1, 9, 1) + b"\0" * 20, "a has the type 9"),
    (0, 2, (_text("a") + struct.pack("<IB", 0, 1)) * 2 + b"\0" * 40, "the setting a occurs twice"),
    (0, 1, struct.pack("<Q", 2) + b"\xff\xfe" + struct.pack("<IB", 0, 1), "is not UTF-8"),
    (2, 0, (_tensor("t", (4,))) * 2 + b"\0" * 64, "the tensor t occurs twice"),
    (2, 0, _tensor("t", (4,)) + _tensor("u", (4,)) + b"\0" * 64, "t and u lie over each other"),
    (1, 0, _tensor("t", (2**40, 2**40)) + b"\0" * 64, "truncated: it has"),
    (1, 0, _tensor("t", (4, 0)) + b"\0" * 64, r"t has the sizes \(4, 0\)"),
    (1, 0, _text("t") + struct.pack("<I", 5) + b"\0" * 99, "t has 5 dimensions"),
    (1, 0, _tensor("t", (48,), kind=8) + b"\0" * 99, "t is Q8_0 with rows of 48 weights, and 32 belong together"),
    (1, 0, _tensor("t", (4,), kind=999) + b"\0" * 99, "a type of weights with the number 999"),
    (1, 0, _tensor("t", (4,), offset=5) + b"\0" * 99, "no multiple of 32"),
    (0, 1, _text("general.alignment") + struct.pack("<II", 4, 0) + b"\0" * 99, "general.alignment is 0"),
])  # fmt: skip
def test_impossible_numbers_are_refused_before_they_are_believed(
    tmp_path: Path, tensors: int, pairs: int, rest: bytes, message: str
) -> None:
    with pytest.raises(FledgeError, match=message) as caught:
        read_header(_file(tmp_path, tensors, pairs, rest))
    assert "x.gguf" in str(caught.value.where)


@pytest.mark.parametrize(("version", "message"), [
    (1, "of version 1;"), (4, "of version 4;"), (3 << 24, "another byte order")
])  # fmt: skip
def test_other_versions_are_named(tmp_path: Path, version: int, message: str) -> None:
    with pytest.raises(FledgeError, match=message):
        read_header(_file(tmp_path, 0, 0, b"\0" * 64, version))


@pytest.mark.parametrize(("content", "message"), [
    (b"", "no GGUF file"), (b"GGUF", "has 4 bytes only"), (b"PK\x03\x04" + b"\0" * 99, "begins with b'PK"),
    (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "Git LFS pointer"),
])  # fmt: skip
def test_files_that_are_something_else_are_told(tmp_path: Path, content: bytes, message: str) -> None:
    (tmp_path / "x.gguf").write_bytes(content)
    with pytest.raises(FledgeError, match=message):
        read_header(tmp_path / "x.gguf")


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_no_changed_byte_of_a_header_is_a_traceback(
    good: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, data: st.DataObject
) -> None:
    monkeypatch.setenv("FLEDGE_CACHE", str(tmp_path / "cache"))
    content = bytearray(good.read_bytes())
    start = min(tensor.start for tensor in read_header(good).tensors.values())
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.integers(0, start - 1))
        content[place] = data.draw(st.integers(0, 255))
    changed = tmp_path / "changed.gguf"
    changed.write_bytes(content)
    try:
        gguf_directory(changed)
    except FledgeError as error:
        assert error.what
