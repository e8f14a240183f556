"""Mending the text of rows: wrong encodings, markup, Unicode, white space. Every change is named, and can be shown.

The steps run in this order until nothing changes any more, so a text that was cleaned stays as it is. Text without a fault
costs only the searches for faults.
"""

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial
from html import unescape
from typing import Any

from fledge.data.cleaning.languages import detect_language
from fledge.data.parsing.columns import RowError
from fledge.data.parsing.items import Item
from fledge.data.row_events import RowEvent
from fledge.errors import missing_extra
from fledge.recipe.schema import CleanConfig

SUSPECTED_MOJIBAKE = "mojibake suspected (install fledge[data])"
SUSPECTED_HTML = "HTML suspected (install fledge[data])"
ROUNDS = 10  # most passes over one text; two are usual for a text with faults
EXCERPT = 40  # characters shown on each side of a change


@dataclass(frozen=True)
class CleaningSteps:
    """Which steps are taken."""

    mojibake: bool = True
    html: bool = True
    unicode: bool = True
    whitespace: bool = True

    @classmethod
    def of(cls, config: CleanConfig, strip_html: bool) -> "CleaningSteps":
        """The steps that a recipe asks for; `html: auto` is `strip_html`. FledgeError where `html: true` cannot be done."""
        if config.html is True and _html_parser() is None:
            raise missing_extra("selectolax", "data", "clean.html")
        html = strip_html if config.html == "auto" else config.html
        return cls(config.mojibake, html, config.unicode, config.whitespace)


def clean_text(text: str, steps: CleaningSteps) -> tuple[str, tuple[str, ...]]:
    """The mended text, and the names of the steps that changed it (or of what was noticed, where it could not be mended).

    RowError "HTML only": nothing is left of a text that is markup throughout.
    """
    text, events = _clean(text, steps)
    return text, tuple(event.reason for event in events)


def clean_item(item: Item, steps: CleaningSteps) -> tuple[Item, tuple[RowEvent, ...]]:
    """An item with all its texts mended, and for each step that changed one an event with its first change.

    Tools and calls of tools are left alone.

    RowError "empty after cleaning", where a text had something before, "HTML only", or "chosen equals rejected", where only
    what was mended told them apart.
    """
    events: dict[str, RowEvent] = {}

    def cleaned(text: str) -> str:
        result, text_events = _clean(text, steps)
        if not result and text.strip():
            raise RowError("empty after cleaning", repr(text[:EXCERPT]))
        for event in text_events:
            events.setdefault(event.reason, event)
        return result

    result = item.map_texts(cleaned)
    if len(result.answers) > 1 and len(set(result.answers)) == 1:
        raise RowError("chosen equals rejected", "after cleaning")
    return result, tuple(events.values())


def _clean(text: str, steps: CleaningSteps) -> tuple[str, tuple[RowEvent, ...]]:
    events: dict[str, RowEvent] = {}
    for _ in range(ROUNDS):
        before = text
        for name, mend in _STEPS.items():
            if not getattr(steps, name):
                continue
            after, notice = mend(text)
            if notice:
                events.setdefault(notice, RowEvent("changed", notice))
            if after != text:
                if name not in events:
                    events[name] = _change_event(name, text, after)
                text = after
        if text == before:
            break
    return text, tuple(events.values())


def _change_event(step: str, before: str, after: str) -> RowEvent:
    """The event that a step changed a text."""
    excerpts = _excerpts(before, after)
    return RowEvent("changed", step, f"{excerpts[0]!r} -> {excerpts[1]!r}", excerpts=excerpts)


def _excerpts(before: str, after: str) -> tuple[str, str]:
    """Both texts around the first place where they differ."""
    low, high = 0, min(len(before), len(after))
    while low < high:  # the longest common prefix, by halves: comparing slices is fast, comparing characters is not
        middle = (low + high + 1) // 2
        low, high = (middle, high) if before[low:middle] == after[low:middle] else (low, middle - 1)
    start = max(0, low - EXCERPT)
    return before[start : low + EXCERPT], after[start : low + EXCERPT]


# -- mojibake -----------------------------------------------------------------------------------------------------------

# UTF-8 read as Latin-1 or Windows-1252, as Windows-1251 (Cyrillic) or as Mac Roman; control characters where Windows-1252 has
# letters. One class of characters comes first: a search skips fast to the next of a class, but not of alternatives.
_AFTER_LEAD = "[\x80-\xbf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]"
_AFTER_CYRILLIC = "[ЂѓЃљњќћџЎўЈ¤Ґ¦§Ё©Є«¬®Ї°±Ііґµ¶·№є»јЅѕї‚„…†‡€‰‹‘’“”•–—™›]"
_SUSPECT = re.compile(
    "[\x80-\x9f\ufffdÂÃÅÄà-ôРС√‚](?:"
    rf"(?<=[\x80-\x9f\ufffd])|(?<=[ÂÃÅÄ]){_AFTER_LEAD}|(?<=[à-ô]){_AFTER_LEAD}{{2}}"
    rf"|(?<=[РС]){_AFTER_CYRILLIC}[РС]{_AFTER_CYRILLIC}|(?<=√)[©®†°±]|(?<=‚)Ä[ôúùìî])"
)
# UTF-8 read as GBK: what becomes of full-width punctuation and of the most frequent Chinese characters.
_SUSPECT_GBK = re.compile("[锛銆鈥鐨鏄鎴浣涓鍦浜]")
_SUSPECT_AT_ALL = re.compile("[\x80-\x9f\ufffdÂÃÅÄà-ôРС√‚锛銆鈥鐨鏄鎴浣涓鍦浜]")


def _mend_encoding(text: str) -> tuple[str, str | None]:
    """Undo a wrong decoding, line by line, in the lines where it shows."""
    if text.isascii() or not _SUSPECT_AT_ALL.search(text):
        return text, None
    notice = None
    if _SUSPECT.search(text):
        fix = _ftfy()
        if fix is None:
            notice = SUSPECTED_MOJIBAKE
        else:
            text = "\n".join(fix(line) if _SUSPECT.search(line) else line for line in text.split("\n"))
    if _SUSPECT_GBK.search(text):
        text = "\n".join(_from_gbk(line) if _SUSPECT_GBK.search(line) else line for line in text.split("\n"))
    return text, notice


def _from_gbk(line: str) -> str:
    """The line as UTF-8, if its bytes in GBK are UTF-8 of East Asian text, which those of Chinese text never are by chance.

    Characters that the wrong decoding had lost stay lost.
    """
    try:
        data = b"\xff".join(part.encode("gb18030") for part in line.split("\ufffd"))
    except UnicodeError:
        return line
    decoded = re.sub("\ufffd+", "\ufffd", data.decode("utf-8", "replace"))
    if decoded.count("\ufffd") > line.count("\ufffd") or any("\x80" <= character <= "\u1fff" for character in decoded):
        return line
    return decoded


@cache
def _ftfy() -> Callable[[str], str] | None:
    try:
        from ftfy import fix_encoding
    except ImportError:
        return None
    return fix_encoding


# -- markup -------------------------------------------------------------------------------------------------------------

_LINE, _BLOCK, _PARAGRAPH, _OPEN, _CLOSE = "\ufdd0", "\ufdd1", "\ufdd2", "\ufdd3", "\ufdd4"  # noncharacters: in no text
_PARAGRAPHS = "p h1 h2 h3 h4 h5 h6 pre blockquote ul ol dl table section article hr figure"
_BLOCKS = """address aside body caption center dd details dialog dir div dt fieldset figcaption footer form head header hgroup
html legend li main menu nav optgroup option search summary tbody tfoot thead title tr"""
_UNSEEN = "script style template iframe object svg canvas noscript noembed noframes audio video select"
_VOID = "area base br col embed hr img input link meta param source track wbr"
_INLINE = """a abbr acronym b bdi bdo big button cite code data del dfn em font i ins kbd label mark output q rp rt ruby samp
small span strike strong sub sup td th time tt u var"""
_OF_PAGES = frozenset(("html", "head", "body"))
_BARE = frozenset(("br", "hr", "wbr", "p", "li", "td", "th", "tr", "dt", "dd"))  # often without an end tag or attributes
_KNOWN = frozenset(f"{_PARAGRAPHS} {_BLOCKS} {_UNSEEN} {_VOID} {_INLINE}".split())

_ATTRIBUTES = r"""(?:\s++[^\s"'<>/=]++(?:\s*+=\s*+(?:"[^"]*+"|'[^']*+'|[^\s"'=<>`]++))?+)*+"""
_TAG = re.compile(rf"<(?P<end>/?)(?P<name>[A-Za-z][\w.-]*+)(?P<attributes>{_ATTRIBUTES})\s*+/?>|<!--(?s:.{{0,4000}}?)-->")
_PAGE = re.compile(
    r"\s*+(?:<\?xml[^>]*+>\s*+)?+(?:(?><!--.*?-->)\s*+)*+<(?:!doctype\s+html|html|head|body)\b", re.DOTALL | re.IGNORECASE
)
_ENTITY = re.compile(r"&(?:amp|nbsp|quot|apos|hellip|[mn]dash|[lr][sd]quo|bull|e[mn]sp|#[0-9]{1,7}|#[xX][0-9a-fA-F]{1,6});")
_MARKDOWN_CODE = re.compile(
    r"^[ \t]*(?P<fence>`{3,}|~{3,})[^\n`]*\n(?s:.*?)(?:^[ \t]*(?P=fence)[`~]*[ \t]*$|\Z)"
    r"|(?<!`)(?P<ticks>`++)[^\n]*?(?<!`)(?P=ticks)(?!`)",
    re.MULTILINE,
)
_NOT_PROSE = re.compile(r"<(script|style|pre|code)\b.*?</\1\s*>", re.DOTALL | re.IGNORECASE)
_KEPT = re.compile(f"{_OPEN}([0-9]{{1,9}}){_CLOSE}")
_MARKS = re.compile("[\ufdd0-\ufdd4]|&#(?:0*6497[6-9]|0*64980|x0*fdd[0-4]);?", re.IGNORECASE)
_SPACES = re.compile(rf"[ \t\n{_LINE}{_BLOCK}{_PARAGRAPH}]+")


def _strip_markup(text: str) -> tuple[str, str | None]:
    """Text without HTML tags, comments, scripts and styles, and with characters for entities.

    A page is read as a browser does. In any other text only real markup goes: known tags that are closed, have attributes or
    need no end. What is written as code (in Markdown, in a program, or in XML of its own) stays.
    """
    text = _MARKS.sub("", text) if "<" in text else text
    page = "<" in text and _PAGE.match(text) is not None
    kept: list[str] = []
    source = text if page else _fragment(text, kept)
    if source is None:
        return _decode_entities(text), None
    parser = _html_parser()
    if parser is None:
        return text, SUSPECTED_HTML
    written = _SPACES.sub(partial(_spaces, page), _written(parser(source, is_fragment=not page), kept))
    if _fragment(written, []) is not None:  # markup shown as text, which must not be taken for real a second time
        written = _TAG.sub(lambda found: _as_code(found[0], kept), written)
    written = _put_back(written, kept, len(kept))
    if not written or written.isspace():
        raise RowError("HTML only", repr(text[:EXCERPT]))
    return written, None


def _fragment(text: str, kept: list[str]) -> str | None:
    """Text that is no page, as HTML: its code in Markdown kept aside, and each "<" that opens no real tag as an entity.

    None where nothing is markup.
    """
    if "<" not in text or not any(_is_known(found) for found in _TAG.finditer(text)):
        return None
    text = _MARKDOWN_CODE.sub(lambda found: _keep(found[0], kept), text)
    found = list(_TAG.finditer(text))
    opened = {tag["name"] for tag in found if tag["name"] and not tag["end"]}
    if not _OF_PAGES.isdisjoint(map(str.lower, opened)):  # a page shown in a text
        return None
    closed = {tag["name"] for tag in found if tag["end"]} & opened
    foreign = sum(1 for name in closed if name.lower() not in _KNOWN or not _one_case(name))
    real = [tag for tag in found if _is_real(tag, text, opened, closed)]
    if not real or 2 * foreign > len(closed) or detect_language(_TAG.sub("", _NOT_PROSE.sub("", text[:8000]))) == "code":
        return None
    parts, end = [], 0
    for tag in real:
        parts += [text[end : tag.start()].replace("<", "&lt;"), tag[0]]
        end = tag.end()
    return "".join([*parts, text[end:].replace("<", "&lt;")])


def _one_case(name: str) -> bool:
    return name.islower() or name.isupper()  # <Button> is a component or a type


def _is_known(tag: re.Match[str]) -> bool:
    return tag["name"] is None or (tag["name"].lower() in _KNOWN and _one_case(tag["name"]))


def _is_real(tag: re.Match[str], text: str, opened: set[str], closed: set[str]) -> bool:
    """Whether this is markup, and not an operator, a type parameter or a placeholder such as <input>."""
    if not _is_known(tag) or tag["name"] is None:
        return tag["name"] is None
    name = tag["name"].lower()
    if tag["end"]:
        return tag["name"] in opened or name in _BARE
    if tag["name"] in closed:
        return True
    if name in _UNSEEN.split():
        return False
    if "=" in tag["attributes"]:
        return True
    return name in _BARE and not tag["attributes"] and (name in _VOID.split() or not text[max(0, tag.start() - 1)].isalnum())


def _keep(text: str, kept: list[str]) -> str:
    """A stand-in for a piece of text that goes through the parser unread."""
    kept.append(text)
    return f"{_OPEN}{len(kept) - 1}{_CLOSE}"


def _put_back(text: str, kept: list[str], below: int) -> str:
    """The pieces for their stand-ins; a piece may hold earlier ones."""

    def piece(found: re.Match[str]) -> str:
        number = int(found[1])
        return _put_back(kept[number], kept, number) if number < below else ""

    return _KEPT.sub(piece, text)


def _as_code(text: str, kept: list[str], block: bool = False) -> str:
    """Code, kept as it is; in Markdown's code quotes where it would else be taken for markup."""
    if any(_is_known(found) for found in _TAG.finditer(text)) or _ENTITY.search(text):
        ticks = "`" * max(3 if block else 1, 1 + max(map(len, re.findall("`+", text)), default=0))
        text = f"{ticks}\n{text}\n{ticks}" if block else f"{ticks}{text}{ticks}"
    return _keep(text, kept)


def _written(tree: Any, kept: list[str]) -> str:
    """The text of a parsed tree, with marks where lines and paragraphs begin and end, and its code kept aside."""
    for node in reversed(tree.css(_selector(_UNSEEN))):  # the inner ones first, while they are there
        node.decompose()
    for node in tree.css("br"):
        node.replace_with(_LINE)
    for names, block in (("pre", True), ("code", False)):
        for node in reversed(tree.css(names)):
            code = _as_code(node.text().replace(_LINE, "\n"), kept, block)
            node.replace_with(f"{_PARAGRAPH}{code}{_PARAGRAPH}" if block else code)
    for node in tree.css("td,th"):
        node.insert_after("\t")
    for names, mark in ((_PARAGRAPHS, _PARAGRAPH), (_BLOCKS, _BLOCK)):
        for node in tree.css(_selector(names)):
            node.insert_before(mark)
            node.insert_after(mark)
    return tree.text()


def _selector(names: str) -> str:
    return ",".join(names.split())


def _spaces(page: bool, found: re.Match[str]) -> str:
    """Space as it is shown: in a page one blank; at the borders of blocks line breaks, and the next line's indentation."""
    run = found[0]
    last = max(map(run.rfind, (_LINE, _BLOCK, _PARAGRAPH)))
    if last < 0:
        return run if not page else "\t" if "\t" in run and "\n" not in run else " "
    breaks = max(2 if _PARAGRAPH in run else 1, run.count(_LINE), 0 if page else min(run.count("\n"), 2))
    after = run[last + 1 :]
    return "\n" * breaks + (after[after.rindex("\n") + 1 :] if "\n" in after and not page else "")


def _decode_entities(text: str) -> str:
    """Characters for the entities of typography, outside of code; not for those of "<" and ">", which show markup."""
    if "&" not in text or not _ENTITY.search(text) or detect_language(text) == "code":
        return text
    parts, end = [], 0
    for code in _MARKDOWN_CODE.finditer(text):
        parts += [_ENTITY.sub(_character, text[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*parts, _ENTITY.sub(_character, text[end:])])


def _character(entity: re.Match[str]) -> str:
    character = unescape(entity[0])
    return entity[0] if character in "<>" else character


@cache
def _html_parser() -> Callable[..., Any] | None:
    try:
        from selectolax.lexbor import LexborHTMLParser
    except ImportError:
        return None
    return LexborHTMLParser


# -- Unicode and white space --------------------------------------------------------------------------------------------

_BLANKS = " \t\xa0\u3000"
_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufeff]")  # and halves of UTF-16 pairs
_LINE_ENDS = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")
_TRAILING = re.compile(f"(?<![{_BLANKS}])[{_BLANKS}]++(?=\n)")
_TRAILING_FOUND = re.compile(f"\n(?<=[{_BLANKS}]\n)")  # from the line feed backwards: few places to look at
_OUTER = re.compile(f"\\A[{_BLANKS}\n\u200b]*\n|\\A\u200b+")


def _normalise(text: str) -> tuple[str, str | None]:
    """Unicode normalisation form C."""
    return (text if unicodedata.is_normalized("NFC", text) else unicodedata.normalize("NFC", text)), None


def _mend_spaces(text: str) -> tuple[str, str | None]:
    """Lines that end with a line feed; no control characters, no blanks at line ends or around the text, and at most two
    blank lines in a row. Indentation stays."""
    if _CONTROL.search(text):
        text = _CONTROL.sub("", _LINE_ENDS.sub("\n", text))
    if _TRAILING_FOUND.search(text):
        text = _TRAILING.sub("", text)
    if "\n\n\n\n" in text:
        text = re.sub("\n{4,}", "\n\n\n", text)
    text = text.rstrip(f"{_BLANKS}\n\u200b")
    return _OUTER.sub("", text), None


_STEPS: dict[str, Callable[[str], tuple[str, str | None]]] = {
    "mojibake": _mend_encoding,
    "html": _strip_markup,
    "unicode": _normalise,
    "whitespace": _mend_spaces,
}
