"""Cleaning of the text of rows: mojibake, markup, Unicode, white space. Every change is named and can be shown.

The steps run in this order until nothing changes any more, so cleaning a cleaned text changes nothing. Text without faults
costs only the searches for them.
"""

from collections.abc import Callable
from dataclasses import dataclass

from fledge.data.cleaning.markup import html_parser, strip_markup
from fledge.data.cleaning.mojibake import repair_mojibake
from fledge.data.cleaning.whitespace import normalize_unicode, normalize_whitespace
from fledge.data.parsing.columns import RowError
from fledge.data.parsing.items import Item
from fledge.data.row_events import RowEvent
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
    def of(cls, config: CleanConfig, strip_html: bool) -> "CleaningSteps":
        """The steps that a recipe asks for; `html: auto` is `strip_html`. FledgeError where `html: true` cannot be done."""
        if config.html is True and html_parser() is None:
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


_STEPS: dict[str, Callable[[str], tuple[str, str | None]]] = {
    "mojibake": repair_mojibake,
    "html": strip_markup,
    "unicode": normalize_unicode,
    "whitespace": normalize_whitespace,
}
