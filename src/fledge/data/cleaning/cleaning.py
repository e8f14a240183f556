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

ROUNDS = 10  # maximum number of passes over one text; a faulty text usually needs two
EXCERPT = 40  # characters reported on each side of a change


@dataclass(frozen=True)
class CleaningSteps:
    """The cleaning steps to apply."""

    mojibake: bool = True
    html: bool = True
    unicode: bool = True
    whitespace: bool = True

    @classmethod
    def of(cls, config: CleanConfig, strip_html: bool) -> "CleaningSteps":
        """The steps of a recipe; `html: auto` means `strip_html`. Raises FledgeError if `html: true` is impossible
        (selectolax is missing)."""
        if config.html is True and html_parser() is None:
            raise missing_extra("selectolax", "data", "clean.html")
        html = strip_html if config.html == "auto" else config.html
        return cls(config.mojibake, html, config.unicode, config.whitespace)


def clean_text(text: str, steps: CleaningSteps) -> tuple[str, tuple[str, ...]]:
    """The cleaned text and the names of the steps that changed it, or of notices about faults that could not be repaired.

    Raises RowError "HTML only" if a text consists of markup alone.
    """
    text, events = _clean(text, steps)
    return text, tuple(event.reason for event in events)


def clean_item(item: Item, steps: CleaningSteps) -> tuple[Item, tuple[RowEvent, ...]]:
    """An item with all its texts cleaned, and one event per step that changed a text, with its first change.

    Tool descriptions and tool calls are not changed. Raises RowError "HTML only", "empty after cleaning" if a text is empty
    only now, and "chosen equals rejected" if the answers are equal only now.
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
    if len(result.answers) > 1 and len({ending.full_content for ending in result.endings}) == 1:
        raise RowError("chosen equals rejected", "after cleaning")
    return result, tuple(events.values())


def _clean(text: str, steps: CleaningSteps) -> tuple[str, tuple[RowEvent, ...]]:
    events: dict[str, RowEvent] = {}
    for _ in range(ROUNDS):
        before = text
        for name, step in _STEPS.items():
            if not getattr(steps, name):
                continue
            after, notice = step(text)
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
    """The event for the first change that a step made."""
    excerpts = _excerpts(before, after)
    return RowEvent("changed", step, f"{excerpts[0]!r} -> {excerpts[1]!r}", excerpts=excerpts)


def _excerpts(before: str, after: str) -> tuple[str, str]:
    """Sections of both texts around the first difference."""
    low, high = 0, min(len(before), len(after))
    while low < high:  # bisection for the longest common prefix: comparing slices is faster than comparing characters
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
