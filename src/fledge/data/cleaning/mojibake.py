"""Repair of mojibake: text whose bytes were decoded with a wrong encoding."""

import re
from collections.abc import Callable
from functools import cache

SUSPECTED_MOJIBAKE = "mojibake suspected (install fledge[data])"

# UTF-8 decoded as Latin-1, Windows-1252, Windows-1251 (Cyrillic) or Mac Roman, and control characters in place of Windows-1252
# letters. One character class comes first, because a search skips to the next member of a class faster than to alternatives.
_CONTINUATION = "[\x80-\xbf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]"
_CYRILLIC_CONTINUATION = "[ЂѓЃљњќћџЎўЈ¤Ґ¦§Ё©Є«¬®Ї°±Ііґµ¶·№є»јЅѕї‚„…†‡€‰‹‘’“”•–—™›]"
_SUSPECT = re.compile(
    "[\x80-\x9f\ufffdÂÃÅÄà-ôРС√‚](?:"
    rf"(?<=[\x80-\x9f\ufffd])|(?<=[ÂÃÅÄ]){_CONTINUATION}|(?<=[à-ô]){_CONTINUATION}{{2}}"
    rf"|(?<=[РС]){_CYRILLIC_CONTINUATION}[РС]{_CYRILLIC_CONTINUATION}|(?<=√)[©®†°±]|(?<=‚)Ä[ôúùìî])"
)
# UTF-8 decoded as GBK: the results of full-width punctuation and of the most frequent Chinese characters.
_SUSPECT_GBK = re.compile("[锛銆鈥鐨鏄鎴浣涓鍦浜]")
_ANY_SUSPECT = re.compile("[\x80-\x9f\ufffdÂÃÅÄà-ôРС√‚锛銆鈥鐨鏄鎴浣涓鍦浜]")


def repair_mojibake(text: str) -> tuple[str, str | None]:
    """Undo a wrong decoding in the lines that show it; returns the text and a notice if ftfy is needed but not installed."""
    if text.isascii() or not _ANY_SUSPECT.search(text):
        return text, None
    notice = None
    if _SUSPECT.search(text):
        fix_encoding = _ftfy_fix_encoding()
        if fix_encoding is None:
            notice = SUSPECTED_MOJIBAKE
        else:
            text = "\n".join(fix_encoding(line) if _SUSPECT.search(line) else line for line in text.split("\n"))
    if _SUSPECT_GBK.search(text):
        text = "\n".join(_from_gbk(line) if _SUSPECT_GBK.search(line) else line for line in text.split("\n"))
    return text, notice


def _from_gbk(line: str) -> str:
    """The line decoded as UTF-8, if its GBK bytes are UTF-8 of East Asian text, which those of Chinese text never are by
    chance.

    Characters that the wrong decoding had lost stay lost.
    """
    try:
        data = b"\xff".join(section.encode("gb18030") for section in line.split("\ufffd"))
    except UnicodeError:
        return line
    decoded = re.sub("\ufffd+", "\ufffd", data.decode("utf-8", "replace"))
    if decoded.count("\ufffd") > line.count("\ufffd") or any("\x80" <= character <= "\u1fff" for character in decoded):
        return line
    return decoded


@cache
def _ftfy_fix_encoding() -> Callable[[str], str] | None:
    try:
        from ftfy import fix_encoding
    except ImportError:
        return None
    return fix_encoding
