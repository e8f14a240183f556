"""Normalisation of Unicode and white space."""

import re
import unicodedata

_BLANKS = " \t\xa0\u3000"
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff]")  # and lone surrogates
_LINE_ENDS = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")
_TRAILING = re.compile(f"(?<![{_BLANKS}])[{_BLANKS}]++(?=\n)")
_HAS_TRAILING = re.compile(f"\n(?<=[{_BLANKS}]\n)")  # searched backwards from line feeds, of which there are few
_LEADING = re.compile(f"\\A[{_BLANKS}\n\u200b]*\n|\\A\u200b+")


def normalize_unicode(text: str) -> tuple[str, str | None]:
    """The text in Unicode normalization form C. The notice is always None."""
    return (text if unicodedata.is_normalized("NFC", text) else unicodedata.normalize("NFC", text)), None


def normalize_whitespace(text: str) -> tuple[str, str | None]:
    """Normalize line ends to line feeds; remove control characters, trailing blanks, blanks around the text, and blank lines
    beyond two in a row. Indentation is kept. The notice is always None."""
    if _CONTROL.search(text):
        text = _CONTROL.sub("", _LINE_ENDS.sub("\n", text))
    if _HAS_TRAILING.search(text):
        text = _TRAILING.sub("", text)
    if "\n\n\n\n" in text:
        text = re.sub("\n{4,}", "\n\n\n", text)
    text = text.rstrip(f"{_BLANKS}\n\u200b")
    return _LEADING.sub("", text), None
