"""Which encoding a file has, and its text as UTF-8.

Guessing wrong garbles text without a word, so only what proves itself is recognised: a byte order mark, UTF-8, UTF-16 by its
zero bytes, and Chinese encodings by their most frequent characters. Single-byte encodings fit any bytes and are never guessed.
"""

import codecs
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from fledge.data.reading.blocks import blocks_of, check_not_foreign, head_of
from fledge.errors import FledgeError
from fledge.recipe.schema import Source

SAMPLE = 1 << 18  # bytes from which the encoding is judged
MARKS = {
    b"\xff\xfe\x00\x00": "utf-32-le",
    b"\x00\x00\xfe\xff": "utf-32-be",
    b"\xff\xfe": "utf-16-le",
    b"\xfe\xff": "utf-16-be",
    b"\xef\xbb\xbf": "utf-8",
}
CHINESE = ("gb18030", "cp950")  # cp950: Big5 as Windows writes it
# Every character two high bytes: so are GB 2312 and the EUC of Japan and Korea, but not Big5, whose second bytes are often low.
PAIRS = re.compile(rb"(?:[\x00-\x7f]|[\xa1-\xfe]{2})*+[\xa1-\xfe]?")
# The most frequent characters of modern, classical, simplified and traditional Chinese.
FREQUENT = frozenset(
    "的一是不了在人有我他这个们中来上大为和国地到以说时要就出会可也你对生能而子那得于着下自之年过发后作里用道行所然"
    "家种事成方多经么去法学如都同现当没动面起看定天分还进好小部其些主样理心她本前开但因只从想实日者意无它与长把机十"
    "這個們來為國說時會對過發後裡經麼學當沒動還進樣無與長機種現開從實個請問"
    "山月風雲水春花秋夜歸何此知若今見君相江白清獨故客萬里歌落處寒心夕鳥飛"
)
ENOUGH = 16  # characters to judge by
CHINESE_FROM = 0.15  # share of FREQUENT: 0.19 to 0.45 in Chinese (poetry is lowest), below 0.02 in what is misread as Chinese


def _not_decodable(error: UnicodeError) -> tuple[str, int]:
    """What cannot be decoded becomes a surrogate, which is no UTF-8: the row that holds it is refused later."""
    if not isinstance(error, UnicodeDecodeError):
        raise error
    return "\udcff", error.end


codecs.register_error("fledge.undecodable", _not_decodable)


def encoding_of(file: Path, source: Source) -> str:
    """The encoding of a file of text: the one that the source names, else the one that its first 256 KiB show.

    Where nothing is recognised the answer is "utf-8", and the rows that are not UTF-8 are refused one by one. A UTF-8 file
    may begin with a byte order mark. FledgeError where the name is unknown.
    """
    name = "auto" if source.encoding.lower() == "auto" else checked(source.encoding, str(file))
    if name not in ("auto", "utf-16", "utf-32"):
        return name
    found = detected(head_of(file, SAMPLE))
    return found if name == "auto" or found.startswith(name) else f"{name}-le"


@cache
def checked(name: str, where: str) -> str:
    """The usual name of an encoding; FledgeError if Python does not know it, or it is none of text."""
    try:
        "text".encode(name)
        codecs.getincrementaldecoder(name)("fledge.undecodable").decode(b"\xff\xfe\0\0text\x80", True)
        usual = codecs.lookup(name).name
    except (LookupError, ValueError):
        hint = "auto, or for example utf-8, utf-16, gb18030, big5, cp1252"
        raise FledgeError(f"'{name}' is no encoding of text that can be read", where=where, hint=hint) from None
    return "utf-8" if usual == "utf-8-sig" else usual


def detected(sample: bytes) -> str:
    """The encoding of a file that begins with these bytes."""
    for mark, encoding in MARKS.items():
        if sample.startswith(mark):
            return encoding
    if b"\0" in sample:
        return next((encoding for encoding in ("utf-16-le", "utf-16-be") if _is_utf16(sample, encoding)), "utf-8")
    lines = [line for line in sample.splitlines(keepends=True) if not line.isascii()]
    others = [line for line in lines if _decoded(line, "utf-8") is None]
    if len(others) < 0.9 * len(lines) or not others:
        return "utf-8"
    pairs = sum(PAIRS.fullmatch(line) is not None for line in others)
    candidates = CHINESE[:1] if pairs > 0.5 * len(others) else CHINESE
    best = max(candidates, key=lambda encoding: _chineseness(others, encoding))
    return best if _chineseness(others, best) >= CHINESE_FROM else "utf-8"


def _decoded(part: bytes, encoding: str) -> str | None:
    """The text of a part of a file, which may end within a character; None if it is not in this encoding."""
    try:
        return codecs.getincrementaldecoder(encoding)().decode(part)
    except UnicodeDecodeError:
        return None


def _is_han(character: str) -> bool:
    return "\u3400" <= character <= "\u9fff"


def _is_cjk_mark(character: str) -> bool:
    return "\u3000" <= character <= "\u303f" or "\uff00" <= character <= "\uffef" or "\u2010" <= character <= "\u2027"


def _is_utf16(sample: bytes, encoding: str) -> bool:
    """UTF-16 without a mark: read with the wrong byte order, or not being UTF-16 at all, most characters would be rare ones."""
    text = _decoded(sample, encoding)
    if not text or "\0" in text:
        return False
    usual = sum(c.isprintable() if c < "\u0250" else _is_han(c) or _is_cjk_mark(c) for c in text if not c.isspace())
    return usual >= 0.95 * sum(not c.isspace() for c in text) and any(c < "\x80" for c in text)


def _chineseness(lines: list[bytes], encoding: str) -> float:
    """Share of the most frequent Chinese characters among all that are not ASCII; 0 where too little can be decoded."""
    texts = [text for line in lines if (text := _decoded(line, encoding)) is not None]
    if len(lines) - len(texts) > 0.02 * len(lines):
        return 0.0
    foreign = [c for text in texts for c in text if c > "\x7f" and not _is_cjk_mark(c)]
    return sum(c in FREQUENT for c in foreign) / len(foreign) if len(foreign) >= ENOUGH else 0.0


def utf8_blocks(file: Path, encoding: str, start: int = 0, stop: int | None = None) -> Iterator[bytes]:
    """The file's text as UTF-8, in blocks, without a byte order mark.

    UTF-8 passes unchecked. Of other encodings, what cannot be decoded becomes bytes that are not UTF-8, so that the row
    around it is refused and no other.
    """
    blocks = _text_blocks(file, start, stop)
    for index, block in enumerate(blocks if encoding == "utf-8" else _recoded(blocks, encoding)):
        yield block.removeprefix(codecs.BOM_UTF8) if start == 0 and index == 0 else block


def _text_blocks(file: Path, start: int, stop: int | None) -> Iterator[bytes]:
    for index, block in enumerate(blocks_of(file, start, stop)):
        if start == 0 and index == 0:
            check_not_foreign(file, block)
        yield block


def _recoded(blocks: Iterator[bytes], encoding: str) -> Iterator[bytes]:
    decoder = codecs.getincrementaldecoder(encoding)("fledge.undecodable")
    for block in blocks:
        yield decoder.decode(block).encode("utf-8", "surrogatepass")
    yield decoder.decode(b"", True).encode("utf-8", "surrogatepass")


def why_undecodable(raw: bytes, encoding: str) -> str | None:
    """Where UTF-8 that was read from a file of this encoding is none; None if it is."""
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError as error:
        if encoding == "utf-8":
            return f"byte {error.start:,} of the row, 0x{raw[error.start]:02x}, is not UTF-8 (if the file is: set encoding)"
        return f"character {len(raw[: error.start].decode()):,} of the row is not {encoding}"
    return None
