"""SIGINT and SIGTERM: the run stops at once, or at the next point where its state can be saved."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from fledge.run.console import Log


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop and has stopped in good order. The command exits with 128 + the signal's number.

    Not an Exception, so that no handler on the way takes it for a failure.
    """

    def __init__(self, number: int, text: str) -> None:
        super().__init__(text)
        self.number, self.text = number, text


_received: list[int] = []


def signal_received() -> bool:
    """Whether the handler of this program has received a signal. False while library code delays the handler."""
    return bool(_received)


class SignalHandler:
    """Handles both signals inside its context. The first signal raises Interrupted, or sets `requested` inside `deferred`.

    Later signals change nothing. Outside of the main thread, the handler does nothing.
    """

    def __init__(self, log: Log, text: str) -> None:
        """`log` gets a line at the first deferred signal. `text` is the message of Interrupted."""
        self.log, self.text = log, text
        self.requested: int | None = None
        self._deferrals = 0
        self._at_once = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> "SignalHandler":
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._handle)
        except ValueError:
            self._previous = {}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        self._previous = {}

    def _handle(self, number: int, frame: FrameType | None) -> None:
        _received.append(number)
        first, self.requested = self.requested is None, self.requested or number
        if not first:
            return
        if self._at_once:
            self.log(self.text)
            os._exit(128 + number)
        if not self._deferrals:
            raise Interrupted(number, self.text)
        self.log("stopping as soon as possible; the state will be saved")

    @contextmanager
    def at_once(self) -> Iterator[None]:
        """Inside, where nothing has begun that could be lost, a signal ends the process: while libraries are loaded, some of
        which swallow whatever is raised."""
        self._at_once = True
        try:
            yield
        finally:
            self._at_once = False

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Inside, a signal only sets `requested`; the caller checks it and stops in good order.

        A request that is still open at the end of the context raises Interrupted.
        """
        self._deferrals += 1
        try:
            yield
        finally:
            self._deferrals -= 1
        if self.requested is not None and not self._deferrals:
            raise Interrupted(self.requested, self.text)
