"""The catalogue of Chinese messages is complete, and what it says is what the messages say."""

import re

import pytest

from fledge.localization.catalogue import PLACEHOLDER, Catalogue, read_catalogue, read_words
from tests.support.messages import catalogue_files, messages

CATALOGUE = read_catalogue("zh")
TRANSLATED = {english: text for english, text in CATALOGUE.items() if text is not None}


def test_every_message_of_the_code_has_an_entry() -> None:
    missing = {english: places[0] for english, places in messages().items() if english not in CATALOGUE}
    assert not missing, "add them to src/fledge/localization/zh: python -m tests.support.messages lists them"


def test_every_entry_belongs_to_a_message_of_the_code() -> None:
    current = messages()
    assert [english for entries in catalogue_files("zh").values() for english in entries if english not in current] == []


def test_no_message_has_two_translations() -> None:
    seen: dict[str, str | None] = {}
    for entries in catalogue_files("zh").values():
        for english, text in entries.items():
            assert seen.setdefault(english, text) == text, english


def test_translations_are_chinese_and_keep_their_values() -> None:
    for english, text in TRANSLATED.items():
        assert re.search(r"[\u4e00-\u9fff，。：；（）？]", text), english
        values, kept = PLACEHOLDER.findall(english), PLACEHOLDER.findall(text)
        assert len(set(kept)) == len(kept) and set(kept) <= set(values), english
        for left_out in set(values) - set(kept):  # an ending or an article of English
            around = re.search(rf"\w?\{{{left_out}\}}\w?| \{{{left_out}\}} ?|^\{{{left_out}\}}", english)
            assert around, english


def test_no_sentence_of_english_is_left_in_a_translation() -> None:
    left = []
    for english, text in TRANSLATED.items():
        plain = re.sub(r"`[^`]*`|'[^']*'|--\S+|\{\d+\}", "", text)
        if re.search(r"(?:\b[a-z]{2,}\b[ ,]+){5,}", plain) and not re.search(r"fledge [a-z]+|\bpip\b|torch", plain):
            left.append((english, text))
    assert left == []


def test_single_words_are_words() -> None:
    assert all(len(word.split()) <= 2 and re.search(r"[\u4e00-\u9fff]", text) for word, text in read_words("zh").items())


@pytest.fixture(scope="module")
def chinese() -> Catalogue:
    return Catalogue("zh")


def test_a_message_with_its_values_is_found_again(chinese: Catalogue) -> None:
    """No template takes a message of another one: what is filled in comes out as it went in."""
    wrong = []
    for english, text in TRANSLATED.items():
        kept = set(PLACEHOLDER.findall(text))
        values = {number: f"v{number}x.y" if number in kept else "s" for number in PLACEHOLDER.findall(english)}
        message, expected = english, text.replace("!}", "}")
        for number, value in values.items():
            message, expected = (one.replace(f"{{{number}}}", value) for one in (message, expected))
        if "".join(chinese.text(message).split()) != "".join(expected.split()):
            wrong.append((message, chinese.text(message)))
    assert wrong == []
