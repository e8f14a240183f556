"""The messages of the code: every text with words that stands in it, but for docstrings, data and texts in both languages."""

import ast
import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from tests.support.markdown import ROOT

CODE = ROOT / "src" / "fledge"
WORDS = re.compile(r"[A-Za-z][A-Za-z]+")
LEFT_OUT = (
    "world/",
    "tasks/",
    "doctor_bench/",
    "localization/",
    "report/i18n.py",
    "report/reasons.py",
)  # data, figures of a bench, or in both languages
LABELS = ("add_column", "Column", "add_row", "title", "Text", "assemble", "log", "say")  # their single words are shown too
OF_OTHERS = ("argparse", "heads", "joined", "pydantic", "system", "words")
_FIELD = re.compile(r"\{\w*(?:![rs])?(?::[^{}]*)?\}")
_OF_PAGES = re.compile(r"\{\{ (?:(\"[^\"]*\")|\(([^{}]*)\))\|both \}\}")
_CHINESE = re.compile(r"[\u4e00-\u9fff]")


def _template(node: ast.expr) -> str | None:
    """The text of a string or an f-string, with numbered blanks; None for other expressions."""
    numbers = iter(range(1000))
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return _FIELD.sub(lambda _: f"{{{next(numbers)}}}", node.value)
    if isinstance(node, ast.JoinedStr):
        return "".join(str(v.value) if isinstance(v, ast.Constant) else f"{{{next(numbers)}}}" for v in node.values)
    return None


def _not_alone(tree: ast.AST) -> Iterator[int]:
    """Docstrings and the parts of f-strings, which are no messages by themselves."""
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            yield from (id(value) for value in node.values)
            for value in node.values:
                if isinstance(value, ast.FormattedValue) and value.format_spec is not None:
                    yield from (id(inner) for inner in ast.walk(value.format_spec))
        body = getattr(node, "body", None)
        for statement in body if isinstance(body, list) else ():
            if isinstance(statement, ast.Expr) and isinstance(statement.value, ast.Constant):
                yield id(statement.value)


def _has_words(text: str) -> bool:
    return WORDS.search(re.sub(r"\{\d+\}", "", text)) is not None and not _CHINESE.search(text) and "{%" not in text


def _messages(file: Path) -> Iterator[tuple[str, int]]:
    """Every message of a file with its line: texts with a blank between words, and the single words that a call shows."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    skipped = set(_not_alone(tree))
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant | ast.JoinedStr) and id(node) not in skipped:
            text = _template(node)
            if text is not None and " " in text.strip() and _has_words(text):
                yield text.strip(" \n"), node.lineno
        elif isinstance(node, ast.Call):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            for value in (*node.args, *(k.value for k in node.keywords if k.arg == "title")) if name in LABELS else ():
                text = _template(value)
                if text and _has_words(text):
                    yield text.strip(" \n"), value.lineno


@cache
def messages() -> dict[str, list[str]]:
    """Every message of the code with the places where it stands."""
    found: dict[str, list[str]] = {}
    for file in sorted(CODE.rglob("*.py")):
        place = file.relative_to(CODE).as_posix()
        if not place.startswith(LEFT_OUT):
            for text, line in _messages(file):
                found.setdefault(text, []).append(f"{place}:{line}")
    for file in sorted(CODE.rglob("*.j2")):  # {{ "text"|both }}
        for match in _OF_PAGES.finditer(file.read_text(encoding="utf-8")):
            numbers = iter(range(100))
            parts = re.split(r""" ~ (?=(?:[^"]*"[^"]*")*[^"]*$)""", match[1] or match[2])
            text = "".join(part[1:-1] if part.startswith('"') else f"{{{next(numbers)}}}" for part in parts)
            found.setdefault(text.replace("\\\\'", "'").strip(), []).append(file.relative_to(CODE).as_posix())
    return found


def catalogue_files(code: str) -> dict[Path, dict[str, str | None]]:
    """The files of a language with the entries of each; words of libraries, single words and what is joined from parts of
    the code are in files of their own."""
    folder = CODE / "localization" / code
    return {
        file: json.loads(file.read_text(encoding="utf-8"))
        for file in sorted(folder.glob("*.json"))
        if file.stem not in OF_OTHERS
    }


def update(code: str = "zh") -> None:
    """Remove the entries that the code has no more, and print the messages that have none yet, with their places."""
    current, files = messages(), catalogue_files(code)
    for file, entries in files.items():
        kept = {english: text for english, text in entries.items() if english in current}
        if kept != entries:
            file.write_text(json.dumps(kept, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
    known = {english for entries in files.values() for english in entries}
    for english, places in current.items():
        if english not in known:
            print(f"{json.dumps(english, ensure_ascii=False)}: null,  # {places[0]}")


if __name__ == "__main__":  # python -m tests.support.messages
    update()
