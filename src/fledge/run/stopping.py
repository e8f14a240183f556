"""SIGINT and SIGTERM: obeyed at once where nothing is at stake, at the next safe place where something is."""

import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """Somebody asked the run to stop, and it did in good order. No Exception, so that nothing on the way takes it for a
    failure of its own. The command exits with 128 + the signal's number."""

    def __init__(self, number: int, text: str) -> None:
        super().__init__(text)
        self.number, self.text = number, text


_heard: list[int] = []


def signal_received() -> bool:
    """Whether a signal has reached this program's own handler: it does not while a library works or waits outside Python."""
    return bool(_heard)


class SignalHandler:
    """Listens to both signals while it is entered. The first one raises Interrupted where it comes, or, within `held`,
    sets `asked`; later ones change nothing. In a thread that is not the main one, signals are somebody else's."""

    def __init__(self, say: Callable[[str], None], text: str) -> None:
        """`say` gets a line at the first signal; `text` is what Interrupted says where nothing was held."""
        self.say, self.text = say, text
        self.asked: int | None = None
        self._held = 0
        self._before: dict[int, object] = {}

    def __enter__(self) -> "SignalHandler":
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._ask)
        except ValueError:
            self._before = {}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._before = {}

    def _ask(self, number: int, frame: FrameType | None) -> None:
        _heard.append(number)
        first, self.asked = self.asked is None, self.asked or number
        if not first:
            return
        if not self._held:
            raise Interrupted(number, self.text)
        self.say("stopping at the next safe place; the state will be saved")

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, a signal only sets `asked`: whoever holds looks at it and stops in good order. Where nobody did, leaving
        raises Interrupted."""
        self._held += 1
        try:
            yield
        finally:
            self._held -= 1
        if self.asked is not None and not self._held:
            raise Interrupted(self.asked, self.text)
