"""Text from data, models and files, made safe to print: no character of it can control the terminal.

A control sequence in a row or in an answer could otherwise recolour or retitle the terminal, overwrite what stands there, or
write to the clipboard.
"""

CONTROL_PICTURES = {number: chr(0x2400 + number) for number in range(0x20)} | {0x7F: "␡"}
INVISIBLE = (
    *range(0x80, 0xA0),  # C1 controls: U+009B begins a control sequence as ESC [ does
    *range(0x2028, 0x202F),  # line separators; embeddings and overrides of the writing direction
    *range(0x2066, 0x206A),  # isolates of the writing direction
    *range(0xD800, 0xE000),  # halves of surrogate pairs, which no encoding can write
)
PICTURES: dict[int, str] = CONTROL_PICTURES | {number: f"\\u{number:04x}" for number in INVISIBLE}
"""Visible forms: `␛` for escape, `\\u202e` for the characters that have no picture; for `str.translate`."""
_KEEP_LINES = {number: picture for number, picture in PICTURES.items() if number not in (ord("\n"), ord("\t"))}
_OF_JSON = {number: f"\\u{number:04x}" for number in (0x7F, *INVISIBLE)}


def escaped(text: str) -> str:
    """The text with visible forms of all control characters but line feeds and tabs.

    Marks of the writing direction that Arabic and Hebrew need stay; embeddings, overrides and isolates do not.
    """
    return text.translate(_KEEP_LINES)


def escaped_line(text: str) -> str:
    """The text with visible forms of all control characters, line feeds and tabs included, so that it stays on one line."""
    return text.translate(PICTURES)


def escaped_json(text: str) -> str:
    """A JSON document that has the same value, with the characters that JSON allows and a terminal obeys as `\\u009b`."""
    return text.translate(_OF_JSON)
