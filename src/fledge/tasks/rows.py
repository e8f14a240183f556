"""Rows of a task, and how their texts are typed: case, width, separators, blanks, subscripts. All of it folds away."""

import json
import random
from dataclasses import dataclass
from typing import Any

_WIDE = str.maketrans({code: code + 0xFEE0 for code in range(0x21, 0x7F)})
_SUBSCRIPTS = str.maketrans("0123456789", "₀₁₂₃₄₅₆₇₈₉")
TYPED_PLAINLY = 0.6
WHOLE_WIDE = 0.03  # of the texts: typed with a full-width input method


@dataclass(frozen=True, kw_only=True)
class TaskRow:
    """A row: conversation, answer, and what is new in it: `group`, and the keys of the answer whose name is held out."""

    task: str
    lang: str
    group: str
    held_out: tuple[str, ...]
    messages: tuple[dict[str, str], ...]
    answer: dict[str, str | None]

    @property
    def question(self) -> str:
        """The user's turn."""
        return self.messages[-2]["content"]

    def as_dict(self) -> dict[str, Any]:
        """The row as the files have it."""
        return {
            "messages": list(self.messages),
            "task": self.task,
            "lang": self.lang,
            "group": self.group,
            "held_out": list(self.held_out),
        }


def conversation(system: str, question: str, answer: str) -> tuple[dict[str, str], ...]:
    """The three turns of a row. The question has no blanks at the ends of its lines, which reading a file would take away."""
    question = "\n".join(line.rstrip() for line in question.strip().split("\n"))
    turns = (("system", system), ("user", question), ("assistant", answer))
    return tuple({"role": role, "content": text} for role, text in turns)


def as_json(answer: dict[str, str | None]) -> str:
    """The answer as the one form of JSON that all rows use."""
    return json.dumps(answer, ensure_ascii=False, separators=(",", ":"))


def as_typed(rng: random.Random, name: str) -> str:
    """A name with other case, width, separators or blanks, or with subscripts; mostly as it is."""
    if rng.random() < TYPED_PLAINLY:
        return name
    return rng.choice(_TYPINGS)(name)


def shaped(rng: random.Random, text: str) -> str:
    """The whole text, now and then in full width."""
    return text.translate(_WIDE) if rng.random() < WHOLE_WIDE else text


_TYPINGS = (
    str.upper,
    str.lower,
    str.title,
    lambda name: name.translate(_WIDE),
    lambda name: name.translate(_SUBSCRIPTS),
    lambda name: name.replace(" ", "_").replace("-", "_"),
    lambda name: name.replace(" ", "-"),
    lambda name: name.replace(" ", ""),
    lambda name: name.replace(" ", "  "),
    lambda name: f" {name} ",
    lambda name: f"“{name}”",
    lambda name: " ".join(name) if len(name) < 5 else name,
)
