"""The order of the turns of a conversation: what is expected, and what a source's `turn_order` mends."""

from collections.abc import Sequence
from dataclasses import replace

from fledge.data.parsing.columns import Row, RowError
from fledge.tokenizer.template import Message

AFTER = {"system": ("user",), "user": ("assistant",), "assistant": ("user", "tool"), "tool": ("tool", "assistant", "user")}
MERGES, TRIMS = ("merge", "merge_and_trim"), ("trim", "merge_and_trim")  # values of `turn_order`
MERGE_HINT = "turn_order: merge joins turns of one role"
TRIM_HINT = "turn_order: trim leaves such turns out"


def in_order(turns: Sequence[Message], row: Row, ends_with_answer: bool) -> list[Message]:
    """The turns, after what the source's `turn_order` mends: a system turn or none; then user (or tool results, after an
    answer) and assistant in turn; a user may speak before the answer to a tool result. RowError for another order.

    Tool calls in turns of their own, behind another turn of the assistant, always become calls of that turn."""
    result = _merge_calls(list(turns), row)
    if row.source.turn_order in MERGES:
        result = _merge_roles(result, row)
    if row.source.turn_order in TRIMS:
        result = _trim(result, row, ends_with_answer)
    _check_order(result, row, ends_with_answer)
    return result


def _merge_calls(turns: list[Message], row: Row) -> list[Message]:
    result: list[Message] = []
    for number, turn in enumerate(turns, 1):
        only_calls = turn.role == "assistant" and turn.tool_calls and not turn.content.strip() and not turn.reasoning
        if only_calls and result and result[-1].role == "assistant":
            result[-1] = _merged(result[-1], turn, number)
            row.event("tool calls in several turns are merged into one turn", f"turns {number - 1} and {number}", changed=True)
        else:
            result.append(turn)
    return result


def _merge_roles(turns: list[Message], row: Row) -> list[Message]:
    result: list[Message] = []
    for number, turn in enumerate(turns, 1):
        if result and turn.role == result[-1].role != "tool" and turn.name == result[-1].name:
            result[-1] = _merged(result[-1], turn, number)
            detail = f"turns {number - 1} and {number} are both {turn.role}"
            row.event("turns of one role are merged", detail, changed=True)
        else:
            result.append(turn)
    return result


def _merged(first: Message, second: Message, number: int) -> Message:
    """Two turns of one role as one, their texts joined by a line break."""
    if first.weight != second.weight:
        raise RowError("wrong weight", f"turns {number - 1} and {number} are one turn, but their weights differ")
    content, reasoning = (
        "\n".join(text for text in texts if text)
        for texts in ((first.content, second.content), (first.reasoning, second.reasoning))
    )
    return replace(first, content=content, reasoning=reasoning or None, tool_calls=first.tool_calls + second.tool_calls)


def _trim(turns: list[Message], row: Row, ends_with_answer: bool) -> list[Message]:
    """The turns from the first question on and, where they end with an answer, up to the last answer."""
    first = int(bool(turns) and turns[0].role == "system")
    start = next(
        (number for number, turn in enumerate(turns) if number >= first and turn.role in ("user", "system")), len(turns)
    )
    stop = len(turns)
    if ends_with_answer:
        stop = next((number for number in range(len(turns), 0, -1) if turns[number - 1].role == "assistant"), 0)
    if start >= stop:
        return turns
    for reason, left_out in (("before the first question", turns[first:start]), ("after the last answer", turns[stop:])):
        if left_out:
            text = left_out[0].content[:80]
            detail = f"{len(left_out)} turns" if len(left_out) > 1 else f"{left_out[0].role}: {text}"
            row.event(f"turns {reason} are left out", detail, changed=True)
    return [*turns[:first], *turns[start:stop]]


def _check_order(turns: Sequence[Message], row: Row, ends_with_answer: bool) -> None:
    first = int(bool(turns) and turns[0].role == "system")
    if len(turns) == first:
        raise RowError("no turns")
    before = "system"
    for number, turn in enumerate(turns[first:], first + 1):
        if turn.role not in AFTER[before]:
            hint = _hint(turn, before, row)
            detail = f"turn {number} is {turn.role}, expected {' or '.join(AFTER[before])}{hint}"
            raise RowError("roles out of order", detail)
        before = turn.role
    if before != "assistant" and ends_with_answer:
        can_be_trimmed = row.source.turn_order not in TRIMS and any(turn.role == "assistant" for turn in turns)
        raise RowError("no answer", f"the last turn is {before}; {TRIM_HINT}" if can_be_trimmed else "")
    if before == "assistant" and not ends_with_answer:
        raise RowError("prompt ends with an answer")


def _hint(turn: Message, before: str, row: Row) -> str:
    """Which value of `turn_order` mends a turn that follows `before`."""
    if turn.role == before and row.source.turn_order not in MERGES:
        return f"; {MERGE_HINT}"
    return f"; {TRIM_HINT}" if before == "system" and row.source.turn_order not in TRIMS else ""
