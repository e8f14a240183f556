"""Removal of HTML markup from text.

Whole pages are parsed as a browser does. In other text only real markup is removed; operators, type parameters and code
stay."""

import re
from collections.abc import Callable
from functools import cache, partial
from html import unescape
from typing import Any

from fledge.data.cleaning.languages import detect_language
from fledge.data.parsing.columns import RowError

SUSPECTED_HTML = "HTML suspected (install fledge[data])"
EXCERPT = 40  # characters of a text that an error shows

# Marks in a parsed text; noncharacters, which no text contains.
_LINE, _BLOCK, _PARAGRAPH, _OPEN, _CLOSE = "\ufdd0", "\ufdd1", "\ufdd2", "\ufdd3", "\ufdd4"
_PARAGRAPH_TAGS = "p h1 h2 h3 h4 h5 h6 pre blockquote ul ol dl table section article hr figure"
_BLOCK_TAGS = """address aside body caption center dd details dialog dir div dt fieldset figcaption footer form head header
hgroup html legend li main menu nav optgroup option search summary tbody tfoot thead title tr"""
_INVISIBLE = "script style template iframe object svg canvas noscript noembed noframes audio video select"
_VOID_TAGS = "area base br col embed hr img input link meta param source track wbr"
_INLINE_TAGS = """a abbr acronym b bdi bdo big button cite code data del dfn em font i ins kbd label mark output q rp rt ruby
samp small span strike strong sub sup td th time tt u var"""
_PAGE_TAGS = frozenset(("html", "head", "body"))
# Often written without an end tag or attributes.
_OFTEN_UNCLOSED = frozenset(("br", "hr", "wbr", "p", "li", "td", "th", "tr", "dt", "dd"))
_KNOWN_TAGS = frozenset(f"{_PARAGRAPH_TAGS} {_BLOCK_TAGS} {_INVISIBLE} {_VOID_TAGS} {_INLINE_TAGS}".split())

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
_CODE_TAGS = re.compile(r"<(script|style|pre|code)\b.*?</\1\s*>", re.DOTALL | re.IGNORECASE)
_PLACEHOLDER = re.compile(f"{_OPEN}([0-9]{{1,9}}){_CLOSE}")
_RESERVED = re.compile("[\ufdd0-\ufdd4]|&#(?:0*6497[6-9]|0*64980|x0*fdd[0-4]);?", re.IGNORECASE)
_SPACES = re.compile(rf"[ \t\n{_LINE}{_BLOCK}{_PARAGRAPH}]+")


def strip_markup(text: str) -> tuple[str, str | None]:
    """Remove HTML tags, comments, scripts and styles, and decode entities; (text, a notice if selectolax is needed but not
    installed).

    A text that is not a page loses only real markup: known tags that are closed, have attributes or need no end tag. Code
    (in Markdown, in a program, or in XML) is kept. Raises RowError "HTML only" if no text is left."""
    text = _RESERVED.sub("", text) if "<" in text else text
    is_page = "<" in text and _PAGE.match(text) is not None
    protected: list[str] = []
    source = text if is_page else _as_fragment(text, protected)
    if source is None:
        return _decode_entities(text), None
    parser = html_parser()
    if parser is None:
        return text, SUSPECTED_HTML
    result = _SPACES.sub(partial(_collapse_spaces, is_page), _text_of_tree(parser(source, is_fragment=not is_page), protected))
    if _as_fragment(result, []) is not None:  # markup shown as text, which a second pass must not remove
        result = _TAG.sub(lambda tag: _as_code(tag[0], protected), result)
    result = _restore(result, protected, len(protected))
    if not result or result.isspace():
        raise RowError("HTML only", repr(text[:EXCERPT]))
    return result, None


def _as_fragment(text: str, protected: list[str]) -> str | None:
    """Text that is not a page, as HTML: Markdown code is replaced by placeholders, and "<" outside of real tags by an entity.

    None if the text has no markup.
    """
    if "<" not in text or not any(_is_known(match) for match in _TAG.finditer(text)):
        return None
    text = _MARKDOWN_CODE.sub(lambda match: _placeholder(match[0], protected), text)
    tags = list(_TAG.finditer(text))
    opened = {tag["name"] for tag in tags if tag["name"] and not tag["end"]}
    if not _PAGE_TAGS.isdisjoint(map(str.lower, opened)):  # the text shows the source of a page
        return None
    closed = {tag["name"] for tag in tags if tag["end"]} & opened
    foreign = sum(1 for name in closed if name.lower() not in _KNOWN_TAGS or not _has_one_case(name))
    markup = [tag for tag in tags if _is_markup(tag, text, opened, closed)]
    if not markup or 2 * foreign > len(closed) or detect_language(_TAG.sub("", _CODE_TAGS.sub("", text[:8000]))) == "code":
        return None
    pieces, end = [], 0
    for tag in markup:
        pieces += [text[end : tag.start()].replace("<", "&lt;"), tag[0]]
        end = tag.end()
    return "".join([*pieces, text[end:].replace("<", "&lt;")])


def _has_one_case(name: str) -> bool:
    return name.islower() or name.isupper()  # <Button> is a component or a type


def _is_known(tag: re.Match[str]) -> bool:
    return tag["name"] is None or (tag["name"].lower() in _KNOWN_TAGS and _has_one_case(tag["name"]))


def _is_markup(tag: re.Match[str], text: str, opened: set[str], closed: set[str]) -> bool:
    """Whether a tag is markup, and not an operator, a type parameter or a placeholder such as <input>."""
    if not _is_known(tag) or tag["name"] is None:
        return tag["name"] is None
    name = tag["name"].lower()
    if tag["end"]:
        return tag["name"] in opened or name in _OFTEN_UNCLOSED
    if tag["name"] in closed:
        return True
    if name in _INVISIBLE.split():
        return False
    if "=" in tag["attributes"]:
        return True
    return (
        name in _OFTEN_UNCLOSED
        and not tag["attributes"]
        and (name in _VOID_TAGS.split() or not text[max(0, tag.start() - 1)].isalnum())
    )


def _placeholder(text: str, protected: list[str]) -> str:
    """A placeholder for text that must pass through the parser unchanged."""
    protected.append(text)
    return f"{_OPEN}{len(protected) - 1}{_CLOSE}"


def _restore(text: str, protected: list[str], below: int) -> str:
    """The text with placeholders replaced by the protected text, which may contain earlier placeholders."""

    def replacement(match: re.Match[str]) -> str:
        number = int(match[1])
        return _restore(protected[number], protected, number) if number < below else ""

    return _PLACEHOLDER.sub(replacement, text)


def _as_code(text: str, protected: list[str], block: bool = False) -> str:
    """A placeholder for code; the code is put in Markdown code quotes if it could be taken for markup."""
    if any(_is_known(tag) for tag in _TAG.finditer(text)) or _ENTITY.search(text):
        ticks = "`" * max(3 if block else 1, 1 + max(map(len, re.findall("`+", text)), default=0))
        text = f"{ticks}\n{text}\n{ticks}" if block else f"{ticks}{text}{ticks}"
    return _placeholder(text, protected)


def _text_of_tree(tree: Any, protected: list[str]) -> str:
    """The text of a parsed tree, with marks at the borders of lines and paragraphs, and placeholders for code."""
    for node in reversed(tree.css(_selector(_INVISIBLE))):  # innermost first, before their parents are removed
        node.decompose()
    for node in tree.css("br"):
        node.replace_with(_LINE)
    for names, block in (("pre", True), ("code", False)):
        for node in reversed(tree.css(names)):
            code = _as_code(node.text().replace(_LINE, "\n"), protected, block)
            node.replace_with(f"{_PARAGRAPH}{code}{_PARAGRAPH}" if block else code)
    for node in tree.css("td,th"):
        node.insert_after("\t")
    for names, mark in ((_PARAGRAPH_TAGS, _PARAGRAPH), (_BLOCK_TAGS, _BLOCK)):
        for node in tree.css(_selector(names)):
            node.insert_before(mark)
            node.insert_after(mark)
    return tree.text()


def _selector(names: str) -> str:
    return ",".join(names.split())


def _collapse_spaces(is_page: bool, match: re.Match[str]) -> str:
    """White space as a browser shows it: one space in a page; at block borders line breaks and the next line's indentation."""
    run = match[0]
    last = max(map(run.rfind, (_LINE, _BLOCK, _PARAGRAPH)))
    if last < 0:
        return run if not is_page else "\t" if "\t" in run and "\n" not in run else " "
    breaks = max(2 if _PARAGRAPH in run else 1, run.count(_LINE), 0 if is_page else min(run.count("\n"), 2))
    after = run[last + 1 :]
    return "\n" * breaks + (after[after.rindex("\n") + 1 :] if "\n" in after and not is_page else "")


def _decode_entities(text: str) -> str:
    """Text with typographic entities decoded, outside of code; entities of "<" and ">" stay, because they show markup."""
    if "&" not in text or not _ENTITY.search(text) or detect_language(text) == "code":
        return text
    pieces, end = [], 0
    for code in _MARKDOWN_CODE.finditer(text):
        pieces += [_ENTITY.sub(_unescape, text[end : code.start()]), code[0]]
        end = code.end()
    return "".join([*pieces, _ENTITY.sub(_unescape, text[end:])])


def _unescape(entity: re.Match[str]) -> str:
    character = unescape(entity[0])
    return entity[0] if character in "<>" else character


@cache
def html_parser() -> Callable[..., Any] | None:
    """selectolax's HTML parser; None if it is not installed."""
    try:
        from selectolax.lexbor import LexborHTMLParser
    except ImportError:
        return None
    return LexborHTMLParser
