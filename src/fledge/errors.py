"""Errors that a user can cause and can mend."""

import json
from collections.abc import Callable

EXIT_PEER_LOST = 3  # exit code of a process that ends because another one of its run has


class FledgeError(Exception):
    """An error that the user can mend: `what` is wrong, `where`, and a `hint` on what to do.

    The command prints it without a traceback and exits with 2.
    """

    def __init__(self, what: str, *, where: str | None = None, hint: str | None = None) -> None:
        self.what, self.where, self.hint = what, where, hint
        super().__init__(self.text())

    def text(self, localize: Callable[[str], str] = str) -> str:
        """The message as the user reads it: `where: what`, and the hint on its own line. `localize` translates a part."""
        what = localize(self.what)
        first = f"{localize(self.where)}: {what}" if self.where else what
        return f"{first}\n  → {localize(self.hint)}" if self.hint else first

    def as_json(self) -> str:
        """The error as one line of JSON, for another process."""
        return json.dumps([self.what, self.where, self.hint])

    @classmethod
    def from_json(cls, text: str) -> "FledgeError":
        """The error that `as_json` wrote."""
        what, where, hint = json.loads(text)
        return cls(what, where=where, hint=hint)


class PeerLostError(FledgeError):
    """Another process of the run has ended, so that this one cannot go on. The command exits with EXIT_PEER_LOST."""

    def __init__(self) -> None:
        super().__init__("another process of this run has ended, so this one ends too")


def missing_extra(package: str, extra: str, purpose: str) -> FledgeError:
    """The error for a library that only an extra installs."""
    return FledgeError(f"{purpose} needs the package '{package}'", hint=f"pip install 'fledge[{extra}]'")


def first_line(error: BaseException) -> str:
    """The first line of the message of a library's error, at most 200 characters; the name of its type if it has none."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]
