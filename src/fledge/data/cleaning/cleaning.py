"""Cleaning of the text of rows: mojibake, markup, Unicode, white space. Every change is named and can be shown.

The steps run in this order until nothing changes any more, so cleaning a cleaned text changes nothing. Text without faults
costs only the searches for them.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from fledge.data.cleaning.markup import html_parser, strip_markup
from fledge.data.cleaning.mojibake import repair_mojibake
from fledge.data.cleaning.whitespace import normalize_unicode, normalize_whitespace
from fledge.data.parsing.rows import Item, RowError
from fledge.errors import missing_extra
from fledge.recipe.schema import CleanConfig

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
    def of(cls, config: CleanConfig, kind: str) -> "CleaningSteps":
        """The steps for a stage of this kind; `html: auto` is for documents. FledgeError where `html: true` cannot be done."""
        if config.html is True and html_parser() is None:
            raise missing_extra("selectolax", "data", "clean.html")
        html = kind == "pretrain" if config.html == "auto" else config.html
        return cls(config.mojibake, html, config.unicode, config.whitespace)


@dataclass(frozen=True)
class Change:
    """What a step did to a text, where it first differs. A notice about a text left as it is has two empty excerpts."""

    step: str
    before: str = ""
    after: str = ""


def clean_text(text: str, steps: CleaningSteps) -> tuple[str, tuple[str, ...]]:
    """The mended text, and the names of the steps that changed it (or of what was noticed, where it could not be mended).

    RowError "HTML only": nothing is left of a text that is markup throughout.
    """
    text, changes = _clean(text, steps)
    return text, tuple(change.step for change in changes)


def clean_item(item: Item, steps: CleaningSteps) -> tuple[Item, tuple[Change, ...]]:
    """An item with all its texts mended, and the first change of each step. Tools and calls of tools are left alone.

    RowError "empty after cleaning", where a text had something before, "HTML only", or "chosen equals rejected", where only
    what was mended told them apart.
    """
    changed: dict[str, Any] = {}
    changes: dict[str, Change] = {}

    def mended(text: str) -> str:
        cleaned, made = _clean(text, steps)
        if not cleaned and text.strip():
            raise RowError("empty after cleaning", repr(text[:EXCERPT]))
        for change in made:
            changes.setdefault(change.step, change)
        return cleaned

    for name in _TEXTS:
        value = getattr(item, name, None)
        if isinstance(value, str):
            after: Any = mended(value)
        elif isinstance(value, tuple):
            contents = [mended(message.content) for message in value]
            after = tuple(
                message if message.content == content else replace(message, content=content)
                for message, content in zip(value, contents, strict=True)
            )
        else:
            continue
        if after != value:
            changed[name] = after
    if "chosen" in changed or "rejected" in changed:
        chosen, rejected = (changed.get(name, getattr(item, name)) for name in ("chosen", "rejected"))
        if chosen == rejected:
            raise RowError("chosen equals rejected", "after cleaning")
    return (replace(item, **changed) if changed else item), tuple(changes.values())


_TEXTS = ("text", "messages", "prompt", "chosen", "rejected", "answer")


def _clean(text: str, steps: CleaningSteps) -> tuple[str, tuple[Change, ...]]:
    changes: dict[str, Change] = {}
    for _ in range(ROUNDS):
        before = text
        for name, mend in _STEPS.items():
            if not getattr(steps, name):
                continue
            after, notice = mend(text)
            if notice:
                changes.setdefault(notice, Change(notice))
            if after != text:
                changes.setdefault(name, Change(name, *_excerpts(text, after)))
                text = after
        if text == before:
            break
    return text, tuple(changes.values())


def _excerpts(before: str, after: str) -> tuple[str, str]:
    """Both texts around the first place where they differ."""
    low, high = 0, min(len(before), len(after))
    while low < high:  # the longest common prefix, by halves: comparing slices is fast, comparing characters is not
        middle = (low + high + 1) // 2
        low, high = (middle, high) if before[low:middle] == after[low:middle] else (low, middle - 1)
    start = max(0, low - EXCERPT)
    return before[start : low + EXCERPT], after[start : low + EXCERPT]


_STEPS: dict[str, Callable[[str], tuple[str, str | None]]] = {
    "mojibake": repair_mojibake,
    "html": strip_markup,
    "unicode": normalize_unicode,
    "whitespace": normalize_whitespace,
}
