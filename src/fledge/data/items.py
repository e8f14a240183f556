"""What a row means: a document, a conversation or a preference, recognised by its columns."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fledge.recipe.schema import Source
from fledge.tokenizer import Message

ROLES = {
    "user": "user", "human": "user", "prompter": "user", "question": "user",
    "assistant": "assistant", "gpt": "assistant", "bot": "assistant", "model": "assistant", "answer": "assistant",
    "system": "system",
}  # fmt: skip
PROMPTS = ("prompt", "instruction", "question", "query")
RESPONSES = ("response", "output", "answer", "completion")
CONVERSATIONS = ("messages", "conversations", "conversation")
TEXTS = ("text", "content")


class RowError(ValueError):
    """A row that cannot be used: a short reason to count by, and the detail of this row."""

    def __init__(self, reason: str, detail: str = "") -> None:
        self.reason, self.detail = reason, detail
        super().__init__(reason)


@dataclass(frozen=True)
class Document:
    """Plain text."""

    text: str


@dataclass(frozen=True)
class Conversation:
    """Turns that end with an assistant's answer; an optional system turn comes first."""

    messages: tuple[Message, ...]


@dataclass(frozen=True)
class Preference:
    """Turns that end with the user's, and two answers of which one is preferred."""

    prompt: tuple[Message, ...]
    chosen: str
    rejected: str


Item = Document | Conversation | Preference


def _string(row: Mapping[str, Any], column: str) -> str:
    value = row[column]
    if isinstance(value, list) and all(isinstance(part, str) for part in value):
        return "\n".join(value)
    if not isinstance(value, str):
        raise RowError("wrong type", f"'{column}' is {type(value).__name__}, not text")
    return value


def _column(row: Mapping[str, Any], source: Source, role: str, usual: Sequence[str]) -> str | None:
    """The text of a role's column(s): as named in the recipe, else the first usual name that the row has."""
    named = source.columns.get(role)  # type: ignore[call-overload]
    names = [named] if isinstance(named, str) else named
    if names is None:
        names = [name for name in usual if row.get(name) is not None][:1]
    elif missing := [name for name in names if name not in row]:
        raise RowError("column missing", f"'{missing[0]}' is named in the recipe; the row has {', '.join(map(str, row))}")
    if not names:
        return None
    return "\n".join(text for text in (_string(row, name) for name in names) if text)


def _turns(value: Any) -> list[Message]:
    """`[{role, content}]` or `[{from, value}]` as messages."""
    if not isinstance(value, list):
        raise RowError("wrong type", f"the turns are {type(value).__name__}, not a list")
    turns = []
    for number, turn in enumerate(value, 1):
        if not isinstance(turn, Mapping):
            raise RowError("wrong type", f"turn {number} is {type(turn).__name__}, not an object")
        role, content = turn.get("role", turn.get("from")), turn.get("content", turn.get("value"))
        if not isinstance(content, str):
            raise RowError("wrong type", f"turn {number} has no text")
        if not isinstance(role, str) or role not in ROLES:
            raise RowError("unknown role", f"turn {number}: '{role}'")
        turns.append(Message(ROLES[role], content))
    return turns


def _check_order(turns: Sequence[Message], last: str) -> None:
    """System first if at all, then user and assistant in turn, ending with `last`."""
    body = turns[1:] if turns and turns[0].role == "system" else turns
    if not body:
        raise RowError("no turns")
    for number, turn in enumerate(body):
        expected = "user" if number % 2 == 0 else "assistant"
        if turn.role != expected:
            place = number + 1 + len(turns) - len(body)
            raise RowError("roles out of order", f"turn {place} is {turn.role}, expected {expected}")
    if body[-1].role != last:
        raise RowError("no answer" if last == "assistant" else "prompt ends with an answer")


def _prompt_turns(row: Mapping[str, Any], source: Source) -> list[Message] | None:
    """The turns of a row, from a conversation column or from prompt columns (with alpaca's input, history, system)."""
    named = source.columns.get("messages")
    column = named if isinstance(named, str) else next((name for name in CONVERSATIONS if row.get(name) is not None), None)
    if column is not None and "prompt" not in source.columns:
        if column not in row:
            raise RowError("column missing", f"'{column}' is named in the recipe; the row has {', '.join(map(str, row))}")
        turns = _turns(row[column])
    elif isinstance(row.get("prompt"), list) and "prompt" not in source.columns:
        turns = _turns(row["prompt"])
    else:
        prompt = _column(row, source, "prompt", PROMPTS)
        if prompt is None:
            return None
        extra = row.get("input") if "prompt" not in source.columns else None
        if isinstance(extra, str) and extra.strip():
            prompt = f"{prompt}\n{extra}"
        turns = _history(row.get("history"))
        turns.append(Message("user", prompt))
    return _with_system(turns, row, source)


def _with_system(turns: list[Message], row: Mapping[str, Any], source: Source) -> list[Message]:
    """The turns behind the row's own system prompt, if it has one and they have none."""
    system = _column(row, source, "system", ("system",))
    if system and (not turns or turns[0].role != "system"):
        return [Message("system", system), *turns]
    return turns


def _history(value: Any) -> list[Message]:
    if not value:
        return []
    pairs = value if isinstance(value, list) else [value]
    if not all(isinstance(p, list) and len(p) == 2 and all(isinstance(text, str) for text in p) for p in pairs):
        raise RowError("wrong type", "'history' is not a list of [question, answer]")
    return [Message(role, text) for pair in pairs for role, text in zip(("user", "assistant"), pair, strict=True)]


def _as_document(row: Mapping[str, Any], source: Source) -> Item:
    text = _column(row, source, "text", TEXTS)
    if text is None:
        raise RowError("no known column", f"expected one of {', '.join(TEXTS)}; the row has {', '.join(map(str, row))}")
    if not text.strip():
        raise RowError("empty text")
    return Document(text)


def _as_conversation(row: Mapping[str, Any], source: Source) -> Item:
    turns = _prompt_turns(row, source)
    if turns is None:
        raise RowError("no known column", f"no conversation, prompt or instruction; the row has {', '.join(map(str, row))}")
    if turns and turns[-1].role == "user":
        answer = _column(row, source, "response", RESPONSES)
        if answer is not None:
            turns.append(Message("assistant", answer))
    _check_order(turns, "assistant")
    if not all(turn.content.strip() for turn in turns if turn.role == "assistant"):
        raise RowError("empty answer")
    if not all(turn.content.strip() for turn in turns if turn.role == "user"):
        raise RowError("empty question")
    return Conversation(tuple(turns))


def _answer(row: Mapping[str, Any], source: Source, role: str) -> tuple[list[Message], str]:
    """A preference answer: text, one turn, or a whole conversation whose last turn it is."""
    named = source.columns.get(role)  # type: ignore[call-overload]
    column = named if isinstance(named, str) else role
    if row.get(column) is None:
        raise RowError("no known column", f"no '{column}'; the row has {', '.join(map(str, row))}")
    value = row[column]
    if isinstance(value, str):
        return [], value
    turns = _turns([value] if isinstance(value, Mapping) else value)
    if not turns or turns[-1].role != "assistant":
        raise RowError("no answer", f"'{column}' does not end with the assistant's turn")
    return turns[:-1], turns[-1].content


def _as_preference(row: Mapping[str, Any], source: Source) -> Item:
    before_chosen, chosen = _answer(row, source, "chosen")
    before_rejected, rejected = _answer(row, source, "rejected")
    if before_chosen != before_rejected:
        raise RowError("prompts differ", "chosen and rejected do not share their first turns")
    prompt = _with_system(before_chosen, row, source) if before_chosen else _prompt_turns(row, source)
    if prompt is None:
        raise RowError("no known column", f"no prompt; the row has {', '.join(map(str, row))}")
    _check_order(prompt, "user")
    if not chosen.strip() or not rejected.strip():
        raise RowError("empty answer", "chosen" if not chosen.strip() else "rejected")
    if not all(turn.content.strip() for turn in prompt if turn.role == "user"):
        raise RowError("empty question")
    if chosen == rejected:
        raise RowError("chosen equals rejected")
    return Preference(tuple(prompt), chosen, rejected)


RECOGNISE: dict[str, Callable[[Mapping[str, Any], Source], Item]] = {
    "pretrain": _as_document,
    "sft": _as_conversation,
    "preference": _as_preference,
}


def recognise(row: Any, source: Source, kind: str, system: str | None = None) -> Item:
    """The item that a stage of this kind makes of a row; RowError says why it cannot."""
    if not isinstance(row, Mapping):
        raise RowError("not an object", type(row).__name__)
    item = RECOGNISE[kind](row, source)
    if system is None or isinstance(item, Document):
        return item
    turns = item.messages if isinstance(item, Conversation) else item.prompt
    if turns[0].role == "system":
        return item
    turns = (Message("system", system), *turns)
    return Conversation(turns) if isinstance(item, Conversation) else Preference(turns, item.chosen, item.rejected)
