"""The name of one run of the bench."""

import zlib
from dataclasses import dataclass


@dataclass(frozen=True, order=True, kw_only=True)
class CaseKey:
    """One run: a condition at a level on a shape of a group, with a seed. `is_fault`: the condition is one."""

    group: str
    shape: str
    condition: str
    level: str
    seed: int
    is_fault: bool

    @property
    def text(self) -> str:
        """The key as a line of text."""
        kind = "fault" if self.is_fault else "control"
        return "/".join((self.group, self.shape, kind, self.condition, self.level, str(self.seed)))

    @classmethod
    def parse(cls, text: str) -> "CaseKey":
        """The key from its text. Raises ValueError for another text."""
        group, shape, kind, condition, level, seed = text.split("/")
        return cls(group=group, shape=shape, condition=condition, level=level, seed=int(seed), is_fault=kind == "fault")

    @property
    def folder(self) -> str:
        """The name of the folder of the run."""
        return self.text.replace("/", "__").replace(" ", "-")

    def is_sampled(self, percent: int) -> bool:
        """Whether the case is in a random sample of so many percent of all cases: drawn by a hash of its text, so that nobody
        chooses it and every machine draws the same."""
        return zlib.crc32(self.text.encode()) % 100 < percent
