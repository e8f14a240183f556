"""Detection of a file's encoding, and its text as UTF-8.

A wrong guess garbles text silently, so only encodings that can be verified are detected: by a byte order mark, UTF-8, UTF-16
by its zero bytes, and Chinese encodings by their most frequent characters. Single-byte encodings fit any bytes and are never
guessed."""

import codecs
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from fledge.data.reading.blocks import blocks_of, check_is_text, head_of
from fledge.errors import FledgeError
from fledge.recipe.schema import Source

SAMPLE = 1 << 18  # bytes of a file that are used for detection
BYTE_ORDER_MARKS = {
    b"\xff\xfe\x00\x00": "utf-32-le",
    b"\x00\x00\xfe\xff": "utf-32-be",
    b"\xff\xfe": "utf-16-le",
    b"\xfe\xff": "utf-16-be",
    b"\xef\xbb\xbf": "utf-8",
}
CHINESE_ENCODINGS = ("gb18030", "cp950")  # cp950: Big5 as written by Windows
# Every character is two high bytes: true for GB 2312, EUC-JP and EUC-KR, but not for Big5, whose second bytes are often low.
TWO_HIGH_BYTES = re.compile(rb"(?:[\x00-\x7f]|[\xa1-\xfe]{2})*+[\xa1-\xfe]?")
# The most frequent characters of modern, classical, simplified and traditional Chinese.
FREQUENT_HAN = frozenset(
    "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里用道行所然"
    "家种事成方多经么去法学如都同现当没动面起看定天分还进好小部其些主样理心她本前开但因只从想实日者意无它与长把机十"
    "這個們來為國說時會對過發後裡經麼學當沒動還進樣無與長機種現開從實個請問"
    "山月風雲水春花秋夜歸何此知若今見君相江白清獨故客萬里歌落處寒心夕鳥飛"
)
MIN_CHARACTERS = 16  # needed to detect Chinese
MIN_CHINESE_FRACTION = 0.15  # of FREQUENT_HAN: 0.19 to 0.45 in Chinese (lowest: poetry), below 0.02 in misread text


def _mark_undecodable(error: UnicodeError) -> tuple[str, int]:
    """An error handler: undecodable bytes become a surrogate, which is not valid UTF-8, so that the row is rejected later."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "\udcff", error.end


codecs.register_error("fledge.undecodable", _mark_undecodable)


def encoding_of(file: Path, source: Source) -> str:
    """The encoding of a text file: named by the source, or detected in the file's first 256 KiB.

    If nothing is detected the result is "utf-8", and rows that are not UTF-8 are dropped one by one. A UTF-8 file may begin
    with a byte order mark. Raises FledgeError for an unknown encoding name.
    """
    name = "auto" if source.encoding.lower() == "auto" else canonical_encoding(source.encoding, str(file))
    if name not in ("auto", "utf-16", "utf-32"):
        return name
    detected = detect_encoding(head_of(file, SAMPLE))
    return detected if name == "auto" or detected.startswith(name) else f"{name}-le"


@cache
def canonical_encoding(name: str, location: str) -> str:
    """The canonical name of an encoding. Raises FledgeError if Python does not know it or it is not a text encoding."""
    try:
        "text".encode(name)
        codecs.getincrementaldecoder(name)("fledge.undecodable").decode(b"\xff\xfe\0\0text\x80", True)
        canonical = codecs.lookup(name).name
    except (LookupError, ValueError):
        hint = "auto, or for example utf-8, utf-16, gb18030, big5, cp1252"
        raise FledgeError(f"'{name}' is not a text encoding that can be read", where=location, hint=hint) from None
    return "utf-8" if canonical == "utf-8-sig" else canonical


def detect_encoding(sample: bytes) -> str:
    """The encoding of a file that begins with these bytes."""
    for byte_order_mark, encoding in BYTE_ORDER_MARKS.items():
        if sample.startswith(byte_order_mark):
            return encoding
    if b"\0" in sample:
        return next((encoding for encoding in ("utf-16-le", "utf-16-be") if _is_utf16(sample, encoding)), "utf-8")
    lines = [line for line in sample.splitlines(keepends=True) if not line.isascii()]
    non_utf8 = [line for line in lines if _decode(line, "utf-8") is None]
    if len(non_utf8) < 0.9 * len(lines) or not non_utf8:
        return "utf-8"
    num_pairs = sum(TWO_HIGH_BYTES.fullmatch(line) is not None for line in non_utf8)
    candidates = CHINESE_ENCODINGS[:1] if num_pairs > 0.5 * len(non_utf8) else CHINESE_ENCODINGS
    best = max(candidates, key=lambda encoding: _fraction_of_frequent_han(non_utf8, encoding))
    return best if _fraction_of_frequent_han(non_utf8, best) >= MIN_CHINESE_FRACTION else "utf-8"


def _decode(section: bytes, encoding: str) -> str | None:
    """The text of a section of a file, which may end within a character; None if it is not in this encoding."""
    try:
        return codecs.getincrementaldecoder(encoding)().decode(section)
    except UnicodeDecodeError:
        return None


def _is_han(character: str) -> bool:
    return "\u3400" <= character <= "\u9fff"


def _is_cjk_punctuation(character: str) -> bool:
    return "\u3000" <= character <= "\u303f" or "\uff00" <= character <= "\uffef" or "\u2010" <= character <= "\u2027"


def _is_utf16(sample: bytes, encoding: str) -> bool:
    """Whether a text without byte order mark is UTF-16: decoded wrongly, most characters would be rare ones."""
    text = _decode(sample, encoding)
    if not text or "\0" in text:
        return False
    common = sum(c.isprintable() if c < "\u0250" else _is_han(c) or _is_cjk_punctuation(c) for c in text if not c.isspace())
    return common >= 0.95 * sum(not c.isspace() for c in text) and any(c < "\x80" for c in text)


def _fraction_of_frequent_han(lines: list[bytes], encoding: str) -> float:
    """Fraction of the most frequent Chinese characters among non-ASCII characters; 0 if too little can be decoded."""
    texts = [text for line in lines if (text := _decode(line, encoding)) is not None]
    if len(lines) - len(texts) > 0.02 * len(lines):
        return 0.0
    foreign = [c for text in texts for c in text if c > "\x7f" and not _is_cjk_punctuation(c)]
    return sum(c in FREQUENT_HAN for c in foreign) / len(foreign) if len(foreign) >= MIN_CHARACTERS else 0.0


def utf8_blocks(file: Path, encoding: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
    """The text of a file as UTF-8 in blocks, without a byte order mark.

    UTF-8 is passed through unchecked. For other encodings, undecodable characters become invalid UTF-8, so that only their
    row is rejected."""
    blocks = _text_blocks(file, start, stop)
    for index, block in enumerate(blocks if encoding == "utf-8" else _recode(blocks, encoding)):
        yield block.removeprefix(codecs.BOM_UTF8) if start == 0 and index == 0 else block


def _text_blocks(file: Path, start: int, stop: int | None) -> Iterator[bytes]:
    for index, block in enumerate(blocks_of(file, start, stop)):
        if start == 0 and index == 0:
            check_is_text(file, block)
        yield block


def _recode(blocks: Iterator[bytes], encoding: str) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder(encoding)("fledge.undecodable")
    for block in blocks:
        yield decoder.decode(block).encode("utf-8", "surrogatepass")
    yield decoder.decode(b"", True).encode("utf-8", "surrogatepass")


def undecodable_detail(raw: bytes, encoding: str) -> str | None:
    """A sentence about the first byte of `raw` that is not valid UTF-8; None if all are valid. `encoding`: of the file."""
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        if encoding == "utf-8":
            return (
                f"byte {error.start:,} of the row, 0x{raw[error.start]:02x}, is not UTF-8 (for another encoding, set encoding)"
            )
        return f"character {len(raw[: error.start].decode()):,} of the row is not {encoding}"
    return None
