"""The Chinese edition of the documents is complete: the same sections, blocks, tables and names as the English one."""

import re
from collections import Counter
from pathlib import Path

import pytest

from tests.support import markdown

PAIRS = markdown.translations()
pairs = pytest.mark.parametrize(("english", "chinese"), PAIRS, ids=[page.stem for page, _ in PAIRS])


def levels(document: Path) -> list[int]:
    return [len(marks) for marks in re.findall(r"^(#+) ", markdown.prose(document), re.MULTILINE)]


def without_comments(text: str) -> list[str]:
    return [re.sub(r"(^|\s+)#.*$", "", line) for line in text.splitlines()]


def test_every_page_has_a_chinese_edition_and_no_other_is_there() -> None:
    assert {page.name for page in (markdown.ROOT / "docs" / "zh").glob("*.md")} == {page.name for page, _ in PAIRS}


@pairs
def test_headings_have_the_same_levels(english: Path, chinese: Path) -> None:
    assert levels(chinese) == levels(english)


@pairs
def test_blocks_are_equal_apart_from_comments(english: Path, chinese: Path) -> None:
    assert [(block.language, without_comments(block.text)) for block in markdown.blocks(chinese)] == [
        (block.language, without_comments(block.text)) for block in markdown.blocks(english)
    ]


@pairs
def test_tables_have_the_same_shape(english: Path, chinese: Path) -> None:
    shapes = [[len(row.cells) for row in markdown.tables(document)] for document in (english, chinese)]
    if english.stem == "index":  # its row for Chinese readers is not needed in Chinese
        assert len(shapes[0]) - len(shapes[1]) == 1
    else:
        assert shapes[1] == shapes[0]


@pairs
def test_every_name_of_the_english_page_stands_in_the_chinese_one(english: Path, chinese: Path) -> None:
    there, here = (Counter(text for _, text in markdown.code_spans(document)) for document in (english, chinese))
    assert sorted((there - here).elements()) == []


@pairs
def test_no_paragraph_is_left_in_english(english: Path, chinese: Path) -> None:
    text = re.sub(r"`[^`]*`|\]\([^)]*\)|<[^>]*>|（[ -~]*）", "", markdown.prose(chinese))
    left = [line for line in text.splitlines() if re.search(r"(?:\b[a-z]{2,}\b[ ,]+){6,}", line)]
    assert left == []
