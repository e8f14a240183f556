"""The help of the command in the language of the process, also the words of argparse itself."""

import argparse
import unicodedata
from collections.abc import Iterator

from fledge.localization import LANGUAGES, localized

OPTION = "--language"


def take_language(argv: list[str]) -> tuple[list[str], str | None]:
    """The command line without `--language CODE`, which may stand anywhere, and the code; None if it is not given.

    Raises ValueError with the reason for a code that is none.
    """
    kept, code, words = [], None, iter(argv)
    for word in words:
        name, equals, value = word.partition("=")
        if word == "--":
            kept += [word, *words]
        elif name == OPTION:
            code = value if equals else next(words, "")
            if code not in LANGUAGES:
                raise ValueError(f"{OPTION} is one of {', '.join(LANGUAGES)}, not '{code}'")
        else:
            kept.append(word)
    return kept, code


def width(text: str) -> int:
    """Columns of a text in a terminal: a Chinese character takes two."""
    return sum(2 if unicodedata.east_asian_width(sign) in "WF" else 1 for sign in text)


def wrapped(text: str, columns: int) -> list[str]:
    """The text in lines of at most `columns` columns; a line may end at a blank or after a Chinese character."""
    lines, line = [], ""
    for piece in _pieces(" ".join(text.split())):
        if line and width(line + piece.rstrip()) > columns:
            lines.append(line.rstrip())
            line = piece.lstrip()
        else:
            line += piece
    return [*lines, line.rstrip()] if line.strip() or not lines else lines


def _pieces(text: str) -> Iterator[str]:
    """The parts of a text between which a line may end. A closing mark stays with the character before it."""
    piece = ""
    for sign, after in zip(text, f"{text[1:]} " if text else "", strict=True):
        piece += sign
        wide = unicodedata.east_asian_width(sign) in "WF"
        next_wide = bool(after) and unicodedata.east_asian_width(after) in "WF"
        if (sign == " " or wide or next_wide) and after not in "，。；：、）！？》”" and sign not in "（《“":
            yield piece
            piece = ""
    if piece:
        yield piece


class WideFormatter(argparse.HelpFormatter):
    """Help whose lines are as wide as they look, with Chinese characters too."""

    def _split_lines(self, text: str, width: int) -> list[str]:
        return wrapped(text, width)

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(indent + line for line in wrapped(text, width - len(indent)))


class WideRawFormatter(WideFormatter):
    """The same, with the lines of a description as they are written."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "".join(indent + line for line in text.splitlines(keepends=True))


def localize_parser(parser: argparse.ArgumentParser) -> None:
    """Put the help of a parser and of its commands into the language of the process."""
    setattr(argparse, "_", localized)  # noqa: B010  # the words of argparse itself; it looks them up when they are shown
    raw = parser.formatter_class is argparse.RawDescriptionHelpFormatter
    parser.formatter_class = WideRawFormatter if raw else WideFormatter
    parser.description = localized(parser.description) if parser.description else parser.description
    parser.epilog = localized(parser.epilog) if parser.epilog else parser.epilog
    for group in parser._action_groups:
        group.title = localized(group.title) if group.title else group.title
    for action in parser._actions:
        action.help = localized(action.help) if action.help else action.help
        if isinstance(action, argparse._SubParsersAction):
            for listed in action._choices_actions:
                listed.help = localized(listed.help) if listed.help else listed.help
            for command in dict.fromkeys(action.choices.values()):
                localize_parser(command)
