"""The last thing that the user says in a prompt of tokens."""

from collections.abc import Sequence
from dataclasses import dataclass

from fledge.errors import FledgeError
from fledge.tokenizer import Message, Tokenizer

MARK = "QXZJ"  # stands where a user's text stands


@dataclass(frozen=True)
class LastTurn:
    """Finds the user's last text in prompts that a chat template wrote: it stands between `header` and `footer`."""

    tokenizer: Tokenizer
    header: str
    footer: str

    @classmethod
    def of(cls, tokenizer: Tokenizer) -> "LastTurn":
        """What the template writes around a user's text, the same in the first turn and in a later one."""
        before, after = cls._around(tokenizer, [])
        try:
            later, _ = cls._around(tokenizer, [Message("user", "1"), Message("assistant", "2")])
        except FledgeError:  # a template of single questions
            return cls(tokenizer, before, after)
        same = 0
        while same < min(len(before), len(later)) and before[-1 - same] == later[-1 - same]:
            same += 1
        return cls(tokenizer, before[len(before) - same :], after)

    @staticmethod
    def _around(tokenizer: Tokenizer, earlier: list[Message]) -> tuple[str, str]:
        text = tokenizer.decode(tokenizer.encode_prompt([*earlier, Message("user", MARK)]))
        before, _, after = text.partition(MARK)
        return before, after

    def text(self, prompt: Sequence[int]) -> str:
        """The user's last text; all of the prompt where the template's marks are not found."""
        text = self.tokenizer.decode(prompt)
        if self.footer:
            text = text.removesuffix(self.footer)
        return text.rpartition(self.header)[2] if self.header else text
