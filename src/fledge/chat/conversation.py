"""A conversation on the terminal: its system prompt, its rounds, and what of it fits a model."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from fledge.chat.output import system_turn
from fledge.errors import FledgeError, first_line
from fledge.tokenizer import Message

Tokens = list[int]


@dataclass
class Conversation:
    """The turns so far. `rounds`: questions and answers in turns. `start`: the first of them that the model is still given."""

    system: str | None = None
    rounds: list[Message] = field(default_factory=list)
    start: int = 0

    @property
    def messages(self) -> list[Message]:
        """All turns, the system prompt first."""
        return [*system_turn(self.system), *self.rounds]

    def clear(self) -> None:
        """Forget all rounds; the system prompt stays."""
        self.rounds, self.start = [], 0

    def undo(self) -> str | None:
        """Forget the last question and its answer, and return that question; None if there is none."""
        if not self.rounds:
            return None
        question = self.rounds[-2].content
        del self.rounds[-2:]
        self.start = 0  # what was left out may fit again
        return question

    def add(self, question: str, answer: str, start: int) -> None:
        """Add a round; `start`: the first turn that the model was given for it."""
        self.rounds += [Message("user", question), Message("assistant", answer)]
        self.start = start

    def fitted(self, question: str, encode: Callable[[list[Message]], Tokens], most: int) -> tuple[Tokens, int]:
        """The tokens of the conversation with one more question, and the first turn in them: the oldest rounds are left out
        until there are at most `most` tokens, or the question alone is left."""
        turns, start = [*self.rounds, Message("user", question)], self.start
        prompt = encode([*system_turn(self.system), *turns[start:]])
        while len(prompt) > most and start < len(turns) - 1:
            start += 2
            prompt = encode([*system_turn(self.system), *turns[start:]])
        return prompt, start

    def save(self, file: Path) -> int:
        """Append the conversation to a file of JSON Lines, as one row that fledge can train on; returns the number of rounds.

        Raises FledgeError if there is no round, or if the file cannot be written or is no file of rows."""
        if not self.rounds:
            raise FledgeError("there is nothing to save: no question was answered", where="/save")
        if file.suffix.lower() not in (".jsonl", ".ndjson"):
            raise FledgeError("a conversation is saved as one line of a .jsonl file", where=str(file), hint="/save talks.jsonl")
        turns = [{"role": one.role, "content": one.content} for one in self.messages]
        line = json.dumps({"messages": turns}, ensure_ascii=False)
        try:
            if file.exists() and file.stat().st_size and not _ends_a_line(file):
                line = f"\n{line}"
            with file.open("a", encoding="utf-8", errors="backslashreplace") as output:
                output.write(f"{line}\n")
        except OSError as error:
            raise FledgeError(f"the conversation cannot be saved: {first_line(error)}", where=str(file)) from None
        return len(self.rounds) // 2


def _ends_a_line(file: Path) -> bool:
    """Whether the last byte of a file that is not empty ends a line."""
    with file.open("rb") as content:
        content.seek(-1, 2)
        return content.read(1) == b"\n"
