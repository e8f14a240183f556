"""Reading the project's documents: fenced blocks, code spans, links, headings and tables."""

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
_FENCE = re.compile(r"^(```+)(\w*)\n(.*?)^\1$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"(?<!`)(`{1,2})(?!`)(.+?)(?<!`)\1(?!`)", re.DOTALL)
_LINK = re.compile(r"\[(?:[^\[\]]|\[[^\[\]]*\])*\]\(([^()\s]+)\)")
_REFERENCE = re.compile(r"^\[([^\]]+)\]: (\S+)$", re.MULTILINE)
_FILE_NAME = re.compile(r"`([\w.-]+\.\w+)`[:：]\s*\Z")


@dataclass(frozen=True)
class Block:
    """A fenced block. `file` is the file name in backticks at the end of the paragraph before: the block shows this file."""

    language: str
    text: str
    line: int
    file: str | None


@dataclass(frozen=True)
class Row:
    """A row of a table: its cells by column title, its text, and the headings above the table, outermost first."""

    headings: tuple[str, ...]
    cells: dict[str, str]
    text: str
    line: int


def documents() -> list[Path]:
    """Every Markdown file of the project."""
    return sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])


def translations() -> list[tuple[Path, Path]]:
    """The pages in English that have a Chinese edition, each with the place of that edition."""
    pages = [page for page in sorted((ROOT / "docs").glob("*.md")) if page.name != "glossary.md"]  # in both languages itself
    return [(page, page.parent / "zh" / page.name) for page in pages]


def label(document: Path) -> str:
    """The path of a document below the project's root."""
    return str(document.relative_to(ROOT))


def blocks(document: Path) -> list[Block]:
    """The fenced blocks of a document, in order."""
    text = document.read_text(encoding="utf-8")
    fenced = []
    for match in _FENCE.finditer(text):
        named = _FILE_NAME.search(text[: match.start()])
        line = text.count("\n", 0, match.start()) + 1
        fenced.append(Block(match[2], match[3], line, named[1] if named else None))
    return fenced


def prose(document: Path) -> str:
    """A document with its fenced blocks emptied, so that line numbers stay."""
    text = document.read_text(encoding="utf-8")
    return _FENCE.sub(lambda match: "\n" * match[0].count("\n"), text)


def code_spans(document: Path) -> Iterator[tuple[int, str]]:
    """Line and text of everything in backticks, outside of fenced blocks."""
    text = prose(document)
    for match in _SPAN.finditer(text):
        yield text.count("\n", 0, match.start()) + 1, " ".join(match[2].replace("\\|", "|").split())


def links(document: Path) -> Iterator[tuple[int, str]]:
    """Line and target of every link."""
    text = prose(document)
    for pattern, group in ((_LINK, 1), (_REFERENCE, 2)):
        for match in pattern.finditer(text):
            yield text.count("\n", 0, match.start()) + 1, match[group]


def undefined_references(document: Path) -> list[str]:
    """Labels of `[text][label]` that have no definition."""
    text = prose(document)
    defined = {match[1] for match in _REFERENCE.finditer(text)}
    return [used for used in re.findall(r"\]\[([\w-]+)\]", text) if used not in defined]


def anchors(document: Path) -> set[str]:
    """The anchors of a document: those of its headings, as GitHub makes them, and those that it sets itself."""
    slugs: set[str] = set(re.findall(r'<a id="([^"]+)"></a>', prose(document)))
    for title in re.findall(r"^#+ (.+)$", prose(document), re.MULTILINE):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", title).replace("`", "").strip().lower()
        slug = re.sub(r"[^\w\- ]", "", plain).replace(" ", "-")
        number = 0
        while (name := f"{slug}-{number}" if number else slug) in slugs:
            number += 1
        slugs.add(name)
    return slugs


def _cells(line: str) -> list[str]:
    return [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]


def tables(document: Path) -> Iterator[Row]:
    """Every row of every table."""
    headings: list[str] = []
    titles: list[str] | None = None
    lines = prose(document).splitlines()
    for number, line in enumerate(lines, 1):
        if heading := re.match(r"(#+) (.+)", line):
            headings = [*headings[: len(heading[1]) - 1], heading[2].strip()]
        if not line.startswith("|"):
            titles = None
        elif titles is None:
            titles = _cells(line)
        elif not set(line) <= set("|-: "):
            yield Row(tuple(headings), dict(zip(titles, _cells(line), strict=True)), line, number)


def ticked(cell: str) -> list[str]:
    """Everything in backticks in a cell of a table."""
    return [match[2] for match in _SPAN.finditer(cell)]


@dataclass(frozen=True)
class Command:
    """A command line of a document, and the comment after it."""

    words: tuple[str, ...]
    comment: str
    line: int

    def __str__(self) -> str:
        return shlex.join(self.words)


def commands(document: Path) -> list[Command]:
    """The lines of all blocks marked `sh`."""
    lines_of_commands = []
    for block in blocks(document):
        if block.language != "sh":
            continue
        for number, line in enumerate(block.text.splitlines(), block.line + 1):
            if words := shlex.split(line, comments=True):
                lines_of_commands.append(Command(tuple(words), line.partition(" #")[2].strip(), number))
    return lines_of_commands
