"""Text encodings that can be verified are detected; others are read only when the recipe names them."""

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fledge.data.reading.encodings import detect_encoding, encoding_of
from fledge.data.reading.records import file_notices
from fledge.recipe.schema import Source
from tests.support.data_files import CHINESE, COMPRESS, encode_rows, records, values

ENCODINGS = ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32", "gb18030", "gbk", "big5"]
DETECTED_AS = {"utf-8-sig": "utf-8", "utf-16": "utf-16-le", "utf-32": "utf-32-le", "gbk": "gb18030", "big5": "cp950"}


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("ending", [".jsonl", ".json", ".csv", ".txt"])
def test_verifiable_encodings_are_detected_and_reported(tmp_path: Path, encoding: str, ending: str) -> None:
    lines = (CHINESE if encoding != "big5" else "春眠不覺曉，處處聞啼鳥。我們說這個國家的人來了。\n") * 20
    rows = [{"text": line} for line in lines.splitlines()]
    content = lines.encode() if ending == ".txt" else encode_rows(ending, rows)
    name = DETECTED_AS.get(encoding, encoding)
    for compression, compress in COMPRESS.items():
        file = tmp_path / f"a{ending}{compression}"
        file.write_bytes(compress(content.decode().encode(encoding)))
        assert values(file, target=100) == rows
        assert encoding_of(file, Source(path="x")) == name
        assert file_notices(file, Source(path="x")) == ([f"read as {name}"] if name != "utf-8" else [])
        assert values(file, encoding=encoding) == rows
        assert file_notices(file, Source(path="x", encoding=encoding)) == []
        if encoding.startswith("utf-16"):
            assert values(file, encoding="utf-16") == rows


@pytest.mark.parametrize(
    ("encoding", "text"),
    [
        ("cp1252", "Les élèves français étudient à l'école. “Déjà l'été”, naïve garçon.\n"),
        ("cp1251", "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива по-своему.\n"),
        ("koi8-r", "Все счастливые семьи похожи друг на друга, каждая несчастливая семья несчастлива по-своему.\n"),
        ("cp949", "한국어는 한국과 북한의 공용어이다. 세계 여러 지역에 한민족 인구가 거주하게 되면서 사용되고 있다.\n"),
        ("euc-jp", "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。\n"),
        ("euc-jp", "吾輩は猫である。名前はまだ無い。\n"),
        ("shift_jis", "吾輩は猫である。名前はまだ無い。どこで生れたかとんと見当がつかぬ。\n"),
        ("cp874", "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ\n"),
    ],
)  # fmt: skip
def test_unverifiable_encoding_is_never_guessed_but_read_when_named(tmp_path: Path, encoding: str, text: str) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(text.encode(encoding) * 30 + b"plain\n")
    result = records(file)
    assert [record.broken for record in result] == ["undecodable"] * 30 + [None]
    assert "is not UTF-8" in result[0].detail
    assert [value["text"] for value in values(file, target=50, encoding=encoding)] == [text.rstrip("\n")] * 30 + ["plain"]


@given(st.text(max_size=60), st.integers(0, 60))
def test_utf8_is_always_detected_even_if_cut_within_a_character(text: str, cut: int) -> None:
    sample = text.replace("\0", "").encode()
    assert detect_encoding(sample[: len(sample) - min(cut, 3)]) == "utf-8"


def test_one_undecodable_line_does_not_change_the_detected_encoding(tmp_path: Path) -> None:
    file = tmp_path / "a.txt"
    file.write_bytes(CHINESE.encode() * 20 + CHINESE.encode("gb18030") + CHINESE.encode())
    assert [record.number for record in records(file) if record.broken] == [41, 42]
