"""Files that are no logs, and logs in odd states: each one an error that says what was looked for."""

from pathlib import Path

import pytest

from fledge.errors import FledgeError
from fledge.training_log import read_logs

WRONG: dict[str, tuple[bytes, str]] = {
    "empty.txt": (b"", "empty"),
    "page.html": (b"<html><body><h1>Hello</h1>\n<p>nothing here</p></body></html>\n", "begins with: <html>"),
    "three.txt": (b"hello\nthis is\nnot a log\n", "hello"),
    "numbers.txt": (b"1 2 3\n4 5 6\n7 8 9\n", "1 2 3"),
    "bytes.bin": (bytes(range(256)) * 64, "binary"),
    "weights.safetensors": (b"\x08\x00\x00\x00\x00\x00\x00\x00{}      " + bytes(4000), "binary"),
    "archive.zip": (b"PK\x03\x04" + bytes(100), "ZIP"),
    "broken.gz": (b"\x1f\x8b\x08\x00" + bytes(20), "gzip"),
    "data.jsonl": (b'{"prompt": "a", "answer": "b"}\n{"prompt": "c", "answer": "d"}\n', "none with numbers"),
    "script.py": (b"import os\n\nprint(os.getcwd())\n", "import os"),
}


@pytest.mark.parametrize("name", WRONG)
def test_no_log(tmp_path: Path, name: str) -> None:
    content, said = WRONG[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(FledgeError, match=said) as error:
        read_logs(tmp_path / name)
    assert error.value.where == str(tmp_path / name) and error.value.hint


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(FledgeError, match="no such file"):
        read_logs(tmp_path / "missing")
    with pytest.raises(FledgeError, match="holds nothing"):
        read_logs(tmp_path)
    (tmp_path / "data.txt").write_text("text\n")
    with pytest.raises(FledgeError, match=r"holds data\.txt"):
        read_logs(tmp_path)
